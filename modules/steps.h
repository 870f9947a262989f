/* steps.h -- the steps that a program can name: one table row each, and the host arithmetic of boxes behind them.
 *
 * The reference is VisProg (Gupta & Kembhavi 2023); its semantics are followed to the pixel unless the dialect is strict:
 *
 *                       reference (default)                            strict
 *   box ends            last pixel: W-1, H-1                           half-open: W, H; no row or column is lost
 *   LOC LEFT, TOP, ...  a half; CROP then enlarges it to 62.5 %        a half; CROP keeps it exactly
 *   nothing found       CROP_ABOVE/BELOW: the left half (a bug)        the top / bottom half
 *   degenerate boxes    kept                                           dropped
 *   small crops         an EMPTY side grows to CROP_MIN pixels         every side below CROP_MIN grows
 *
 *   SELECT query        items as they are between commas             without blanks around them; upper case or lower
 *   nothing to edit     COLORPOP, BGBLUR: all is background          the image unchanged
 *
 * (An empty crop makes the reference fail; so does a box beyond the image. Here crops stay inside the image and grow, and
 * the value says so: Value.grown. SELECT of nothing fails there; here it is nothing.)
 *
 * Objects are boxes: LOC's may be given wherever objects are wanted, and their category is what was looked for. An object's
 * mask, which only SEG knows better, is its box. SEG, FACEDET and REPLACE parse and check; running one fails with the
 * network it lacks. Next: engine/program.h; edit.h, what the editing steps do to pixels.
 */
#pragma once
#include "engine/program.h"

extern const StepKind step_kinds[];
extern const int nstep_kinds;

/* The initial variables of a task: IMAGE; LEFT and RIGHT. */
extern const Dialect dialect_gqa, dialect_nlvr;

enum { CROP_MIN = 16 };

typedef enum CropKind { CROP_AROUND, CROP_LEFTOF, CROP_RIGHTOF, CROP_ABOVE, CROP_BELOW } CropKind;

/* The fonts of TAG's labels and of EMOJI's pictures, from now on; "": where Debian puts the reference's. Borrowed. */
void steps_use_fonts(const char *label, const char *emoji);

/* The reference's arithmetic: the rectangle that a crop of a W x H image takes, half-open, for the first box (NULL: none
 * found). May be empty or, for a box beyond the image, stick out: see crop_image. */
Rect crop_rect(CropKind kind, const Rect *box, bool exact, int W, int H, bool strict);

/* The crop as an image value: crop_rect inside the image's own rectangle, grown when too small, flags set. */
Value crop_image(CropKind kind, const Value *image, const Boxes *boxes, bool strict);

/* TOP, BOTTOM, LEFT or RIGHT (exact, upper case) of a W x H image, as a box; false for any other name. */
bool side_box(Rect *out, Str name, int W, int H, bool strict);

/* Greedy non-maximum suppression: the best box stays, boxes with IoU >= tau to it go, and so on. IoU counts pixels
 * inclusively: (x1-x0+1)(y1-y0+1). Of equal scores the higher index is first. keep: room for n; filled with the kept
 * indices, best first. Returns how many. */
int nms_boxes(int *keep, const Rect *box, const float *score, int n, double tau);

/* A detector's output as LOC's boxes. cxcywh: Q boxes in 0..1 of a W x H crop; score: Q probabilities. Takes scores
 * strictly above `threshold`, best first (equal scores in order of index), to pixels by truncation, clamps, suppresses at
 * IoU tau, and writes at most `max` boxes to out; returns how many. NaN is no detection. Source: VisProg LocInterpreter;
 * its threshold and tau: LOC_THRESHOLD, LOC_TAU. `scratch` is used for 28 bytes per query and given back. */
int loc_postprocess(Box *out, int max, const float *cxcywh, const float *score, int Q, int W, int H, float threshold,
                    double tau, bool strict, Arena *scratch);
#define LOC_THRESHOLD 0.1f
#define LOC_TAU 0.5
