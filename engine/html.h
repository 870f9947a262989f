/* html.h -- what programs did, as one page for a person: each step with its crop, boxes and answer.
 *
 * The page is one file: styles and pictures are inside, there is no script, and its own policy (CSP) forbids the browser
 * to fetch anything. Everything that comes from outside (questions, answers, file names) is escaped. Each input image is
 * in it once; crops are windows on it, except where it had to be shrunk so much that a crop needs pixels of its own.
 * So is each image that a step made. Below 2 MB per 100 programs, and some 30 kB for each image made.
 */
#pragma once
#include "engine/sched.h"

enum { VIEW_PROBS = 3, HTML_IMAGES = PROGRAM_INPUTS_MAX };

/* One step after a run. */
typedef struct StepView {
    const Value *value;    /* NULL: the step failed or was not reached */
    const Question *asked; /* the first of nasked questions that the step put; NULL: none */
    int nasked;
    int nprobs;            /* VQA: the most probable answers */
    const char *answer[VIEW_PROBS];
    float prob[VIEW_PROBS];
} StepView;

/* One program after a run. */
typedef struct ProgramView {
    const char *title;     /* the question it answers; NULL: not known */
    const char *place;     /* "programs.txt:12" */
    const char *source;    /* as written; nsource bytes */
    size_t nsource;
    const Program *prog;   /* NULL: it does not parse */
    const StepView *step;  /* of each step */
    const char *result;    /* NULL: it failed */
    const char *error;     /* why it failed */
    int line;              /* of the file, where source begins */
    int error_line;        /* in source, from 1; 0: none */
    int failed_step;       /* -1: none */
} ProgramView;

typedef struct HtmlImage {
    const char *name, *file; /* "LEFT", "a.jpg" */
    ImageView view;
    uint64_t id;             /* as the values of the program name it */
} HtmlImage;

typedef struct Html {
    FILE *f;
    char *path;
    HtmlImage image[HTML_IMAGES];
    float scale[HTML_IMAGES];    /* of its copy in the page; 0: none could be made */
    int nimages;
    struct HtmlCrop { int image; Rect rect; } *crop; /* crops with pixels of their own */
    int64_t ncrops, crop_cap, crop_bytes;
    uint64_t *made;              /* ids of the made images that are in the page already */
    int64_t nmade, made_cap;
    char *index;                 /* the list of programs, written last */
    size_t index_size;
    FILE *index_file;
    int64_t nprograms, nfailed;
    char summary[256];           /* told above the list of programs; the caller may write it until html_close */
    bool failed;                 /* an image could not be written: `why` */
    Error why;
} Html;

/* Begins the page. The images are borrowed until html_close. notes: lines for the head of the page (which models). */
bool html_open(Html *h, const char *path, const HtmlImage *image, int nimages, const char *const *note, int nnotes, Error *e);
void html_program(Html *h, const ProgramView *p);
/* Ends it. FAIL_DISK when anything could not be written. Also right for one that is all zero. */
bool html_close(Html *h, Error *e);

/* Text for HTML: & < > " ' become entities, bytes that are not UTF-8 and control characters U+FFFD. */
void html_put(FILE *f, const char *s, size_t n);
