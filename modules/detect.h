/* detect.h -- supervising LOC: which patch answers for which box, and the loss that follows.
 *
 * A detector gives P candidate boxes per ask and has to learn which of them is the object. As in DETR
 * (Carion et al. 2020) each target box is given one patch of its own, so that the total cost is least, and the
 * other patches learn "nothing here". Matching runs on the host; the losses are ops on the tape.
 * Boxes are (cx, cy, w, h) in 0..1 of the ask's rectangle unless said otherwise.
 */
#pragma once
#include "modules/module.h"

/* The supervision of one ask. Arrays are borrowed for the call. */
typedef struct LocTarget {
    int nboxes;               /* 0 with a weight: the object is not there, no patch may see it */
    const float (*box)[4];
    const float *score;       /* target probability of a box's patch; NULL: 1 */
    const float *box_weight;  /* of a box's coordinates: 0 teaches only its score; NULL: 1 */
    const int32_t *patch;     /* the patch that answers for a box when that is known, -1: match it; NULL: match all */
    float negative_weight;    /* of the class loss of patches without a box */
    const float *negative;    /* (P) times that: 0 = no class loss there unless a box is matched to it; NULL: 1 */
    float weight;             /* of the whole ask, 0: not supervised; already divided by the global count */
} LocTarget;

typedef struct LocLossConfig {
    float w_class, w_l1, w_giou; /* in the cost and in the loss. OWL-ViT 1, 1, 1; DETR 1, 5, 2 */
    float alpha, gamma;          /* focal: 0.3, 2; alpha < 0: no balancing */
    bool corners;                /* L1 of the loss on x0, y0, x1, y1 (OWL-ViT), not on cx, cy, w, h (DETR) */
    int repeat;                  /* patches matched to each box; 0 is 1. More make a fresh network learn faster; NMS removes the doubles */
} LocLossConfig;
static const LocLossConfig loc_loss_default = {.w_class = 1, .w_l1 = 1, .w_giou = 1, .alpha = 0.3f, .gamma = 2, .corners = true};

/* Matches targets to the predictions of `out`, target[i] for ask i, and puts the losses on the tape. Returns their sum;
 * parts (NULL is fine) its three terms: class, L1, GIoU. Of more boxes than patches the costliest go without.
 * A box whose sides are not above 0, or not finite, is a CHECK: whoever reads boxes has looked. */
double loc_loss(Ctx *c, const Outputs *out, const LocTarget *target, const LocLossConfig *cfg, double parts[3]);

/* The assignment of least total cost: row i of cost (n, m) is given column col[i]; -1 for n - m rows when n > m. Costs that are
 * not finite count as worse than any other. Shortest augmenting paths, O(min(n, m)^2 max(n, m)). */
void assign_min(int32_t *col, const float *cost, int n, int m, Arena *scratch);

/* What the cost of a box is made of. Source: Rezatofighi et al. 2019; Lin et al. 2017 as a cost in Zhu et al. 2021. */
float box_iou(const float a[4], const float b[4]);
float box_giou(const float a[4], const float b[4]);
float focal_cost(float logit, float alpha, float gamma);

/* A box somewhere in a set of items (asks), to measure detectors with; truths have no score. */
typedef struct ScoredBox { int64_t item; float score, box[4]; } ScoredBox;

/* Average precision: predictions by falling score (ties in order) each take the free truth of their item with the largest
 * IoU when that is at least `iou`; area under the precision envelope over recall (all points). NaN without truths. */
double average_precision(const ScoredBox *pred, int64_t n, const ScoredBox *truth, int64_t ntruth, float iou);
