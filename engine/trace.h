/* trace.h -- the record of a distillation: one JSON line for each module step that a training program took.
 *
 *   {"update": 12, "image": "images/x.jpg", "rect": [x0,y0,x1,y1], "module": "VQA", "query": "What color is it?",
 *    "answer": "red", "soft": {"red": 0.9, "pink": 0.1}, "weight": 1, "student": "pink", "teacher": "red",
 *    "kept": true, "why": "replay", "program": "q17", "question": "What color is the ball?", "step": 3}
 *   {..., "module": "LOC", "query": "ball", "boxes": [[x0,y0,x1,y1]], "student": [[x0,y0,x1,y1,score]], ...}
 *
 * The file is a dataset that data/steps.h reads back: a split's file DIR/SPLIT_steps.jsonl, where lines that say "kept":
 * false are passed over. Boxes are in pixels of the whole image, half-open. Lines are in the order of the updates, so a
 * resumed run cuts off what it will write again. Next: step.c, which fills in a TraceStep.
 */
#pragma once
#include "engine/value.h"

/* One module step. Everything is borrowed for the length of the call; a NULL string is left out of the line. */
typedef struct TraceStep {
    int64_t update;
    const char *image;        /* relative to the dataset's folder */
    Rect rect;                /* what was asked about, in pixels of the image */
    const char *module;       /* "VQA" or "LOC" */
    const char *query;
    /* The label. */
    const char *answer;       /* VQA */
    const char *const *soft_answer; /* VQA: probabilities of some answers; what is no probability is left out */
    const float *soft_prob;
    int nsoft;
    const Rect *boxes;        /* LOC: as trace_boxes gives them */
    int nboxes;
    float weight;
    /* What both said: strings or boxes; NULL is left out. */
    const Value *student, *teacher;
    bool strict;              /* the dialect of their boxes */
    bool kept;
    const char *why;          /* the filter that dropped it; NULL: null */
    /* Where it was asked. */
    const char *program, *question;
    int step;
} TraceStep;

typedef struct Trace {
    FILE *f;
    char *path;
    int64_t lines; /* written through this handle */
} Trace;

/* A new file at `path` (what was there goes); its folder is made. False: FAIL_DISK. */
bool trace_open(Trace *t, const char *path, Error *e);
/* Goes on with a file: lines of `update` and later, and a last line that a killed run left half written, are cut off. No file
 * there: a new one. FAIL_DATA when the file is no trace. */
bool trace_resume(Trace *t, const char *path, int64_t update, Error *e);
/* Appends a line to the buffer. FAIL_DISK when the disk is full. */
bool trace_step(Trace *t, const TraceStep *s, Error *e);
/* Hands the lines so far to the system: call it before a checkpoint, so that the file is never behind one. */
bool trace_flush(Trace *t, Error *e);
/* Flushes, fsyncs and closes. Also right for one that is all zero or closed. */
bool trace_close(Trace *t, Error *e);

/* The boxes as the file has them: whole image, half-open, clipped to the rectangle they were found on; what then is empty is
 * dropped. out has room for b->n; returns how many. */
int trace_boxes(Rect *out, const Boxes *b, bool strict);
/* One of them. False when nothing of it lies on the rectangle. */
bool trace_box(Rect *out, const Boxes *b, int i, bool strict);
/* The same, in pixels of the w x h image that the box is on. */
bool box_rect(Rect *out, const Box *b, bool exact, int w, int h, bool strict);
/* Indices of the k largest of p[0..n) that are > floor, largest first (of equals the first). Returns how many. */
int top_probs(int *index, int k, const float *p, int n, float floor);

/* For whoever writes JSON by the line: a string in quotes (bytes that are not UTF-8 become U+FFFD; s NULL: null), the shortest
 * digits that read back as the same float (null when it is no number), a value of a program (a classified object is
 * [x0,y0,x1,y1,score,class,class score]). */
void json_put_string(FILE *f, const char *s, size_t n);
void json_put_float(FILE *f, float x);
void json_put_rect(FILE *f, Rect r);
void json_put_value(FILE *f, const Value *v, bool strict);
/* Bytes of the UTF-8 character at s (n >= 1 bytes left); 0 when it is not one. */
int utf8_length(const char *s, size_t n);
