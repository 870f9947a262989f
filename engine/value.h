/* value.h -- what a variable of a visual program can hold.
 *
 * A crop is a rectangle in pixels of the original image, never a copy of pixels. A step that draws or edits makes an image
 * of its own, which is then the original of what is cropped from it. Pixels, strings, boxes and lists live in the arena
 * of whoever made the value (a job's arena, or the program's for constants); a Value only points to them, so it is
 * copied freely. Next: program.h.
 */
#pragma once
#include "engine/arena.h"
#include "kernels/rect.h"

typedef enum ValueKind {
    VAL_NONE,
    VAL_BOOL,
    VAL_INT,
    VAL_FLOAT,
    VAL_STR,
    VAL_IMAGE,
    VAL_BOXES,   /* what LOC found: rectangles with scores, best first */
    VAL_OBJECTS, /* SELECT and CLASSIFY: boxes chosen from others, with a class when that is known */
    VAL_LIST,    /* of strings */
    VAL_KINDS
} ValueKind;

/* Sets of kinds, for the static checks. */
#define KIND(k) (1u << (k))
enum { KINDS_ANY = (1 << VAL_KINDS) - 1 };

/* x1 and y1 as the reference writes them: the last pixel for what LOC finds (strict dialect: one past it). */
typedef struct Box {
    Rect rect;   /* pixels of the crop it was found on, not of the original */
    float score;
    int query;   /* which of the model's output rows it came from; -1: none (LEFT, TOP, ...) */
} Box;

typedef struct Str { const char *s; int n; } Str; /* UTF-8, no zero byte at the end promised */

/* What CLASSIFY says of a box. */
typedef struct BoxClass {
    Str name;
    double score; /* 100 times the cosine, to one decimal */
} BoxClass;

typedef struct Boxes {
    int n;
    bool exact;  /* TOP, BOTTOM, LEFT, RIGHT: a side of the image, not a detection */
    Rect of;     /* the crop they were found on, in original pixels */
    Str category; /* what all of them are: LOC's object; n = 0: not known */
    const BoxClass *classes; /* of each; NULL: not classified */
    Box box[];
} Boxes;

enum { BOXES_MAX = 256 }; /* of one LOC step; lower scores are dropped */

typedef struct Value Value;
struct Value {
    ValueKind kind;
    bool missing; /* image: a crop whose box list was empty (the reference's silent fallback) */
    bool grown;   /* image: the crop was empty or too small and has been enlarged */
    union {
        bool b;
        int64_t i;
        double f;
        Str str;
        /* Of the original: id, the caller's name for it (or made from its pixels when a step drew it): equal ids, equal
         * pixels; the pixels, where they are known (sched_run sees to it). */
        struct { uint64_t id; Rect rect; const ImageView *pixels; } image;
        const Boxes *boxes;                       /* also of VAL_OBJECTS */
        struct { const Value *at; int n; } list;
    };
};

static inline Value value_none(void) { return (Value){.kind = VAL_NONE}; }
static inline Value value_bool(bool b) { return (Value){.kind = VAL_BOOL, .b = b}; }
static inline Value value_int(int64_t i) { return (Value){.kind = VAL_INT, .i = i}; }
static inline Value value_float(double f) { return (Value){.kind = VAL_FLOAT, .f = f}; }
static inline Value value_str(const char *s, int n) { return (Value){.kind = VAL_STR, .str = {s, n}}; }
/* A whole image of w x h pixels. */
static inline Value value_image(uint64_t id, int w, int h) {
    return (Value){.kind = VAL_IMAGE, .image = {id, {0, 0, w, h}, NULL}};
}
/* A whole image that a step made. The pixels must live as long as the value. */
Value value_made(const ImageView *pixels);
/* Ids of made images have their highest bit set; callers' own have not. */
static inline bool image_is_made(uint64_t id) { return id >> 63; }
static inline Value value_boxes(const Boxes *b) { return (Value){.kind = VAL_BOXES, .boxes = b}; }

/* A string that ends with a zero byte: a copy in `a`. Of a program's constants `s` itself already does. */
static inline const char *str_z(Arena *a, Str t) { return arena_strdup(a, t.s, (size_t)t.n); }

/* Room for n boxes (n <= BOXES_MAX) found on `of`, of no category; the caller fills box[]. */
Boxes *boxes_new(Arena *a, int n, Rect of);

/* "a bool", "an int", "a string", "an image", ... for error sentences. */
const char *value_kind_name(ValueKind k);
/* The names of the kinds in a set, "an int or a string", into out. */
const char *value_kinds_text(char *out, size_t size, unsigned kinds);

enum { FLOAT_TEXT = 32 };
/* Python's repr() of a float: the shortest digits that read back as the same number. Returns the length. */
int float_text(char out[FLOAT_TEXT], double f);

/* Python's str() of a None, bool, int, float or string, cut at size - 1 bytes. Returns the length written, -1 for the
 * other kinds. */
int value_text(char *out, size_t size, const Value *v);

/* How a program's result becomes the text that is compared with the task's answer. */
typedef enum AnswerStyle {
    ANSWER_YES_NO,     /* GQA, VQA: a bool is "yes" or "no" */
    ANSWER_TRUE_FALSE, /* NLVR2: a bool is "True" or "False"; "yes" and "no" become these, too */
} AnswerStyle;

/* Ints become decimal digits, floats Python's repr, strings themselves, lists and boxes their count. False, with a
 * sentence, for an image or None, and when out is too small. */
bool answer_text(char *out, size_t size, const Value *v, AnswerStyle style, Error *e);
