/* steps.h -- single module calls with their label, from JSON lines: what a module is trained on step by step.
 *
 * One object per line:
 *   {"image": "images/x.jpg", "rect": [x0,y0,x1,y1], "module": "VQA", "query": "What color is it?", "answer": "red",
 *    "soft": {"red": 0.9, "pink": 0.1}, "weight": 1.0}
 *   {"image": "images/x.jpg", "module": "LOC", "query": "cup", "boxes": [[x0,y0,x1,y1], ...]}
 * Boxes and rect are in pixels of the whole image, half-open; no rect means the whole image. Other keys are ignored, but
 * a line with "kept": false is passed over: the trace that a distillation writes is such a file.
 */
#pragma once
#include "data/dataset.h" /* dataset_open with type "steps" reads them */

struct StepSample {
    int image;          /* index into the dataset's image table */
    Rect rect;          /* x0 >= x1: the whole image */
    bool is_loc;        /* LOC: find `query`; else VQA: answer it */
    const char *query;
    const char *answer; /* VQA; NULL when only soft targets are given */
    int nboxes;         /* LOC; 0: nothing of that kind is there */
    const Rect *boxes;
    int nsoft;          /* soft targets of VQA, in the file's order; probabilities in [0, 1] */
    const char *const *soft_answer;
    const float *soft_prob;
    float weight;       /* >= 0 */
};

static inline bool step_whole_image(const StepSample *s) { return s->rect.x0 >= s->rect.x1 || s->rect.y0 >= s->rect.y1; }
