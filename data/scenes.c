/* scenes.c -- what is in a scene: names, random numbers, and the layout of objects.
 *
 * Layout is by rejection on exact silhouettes: an object is put down where every object it covers
 * stays at least VISIBLE_MIN visible. Painting is in scenes_draw.c, questions in scenes_ask.c.
 */
#pragma GCC optimize("fp-contract=off") /* a fused multiply-add would round differently on other machines */
#include "data/scenes.h"

const char *const scene_category_names[SCENE_CATEGORIES] = {
    "ball", "box", "star", "heart", "ring", "cross", "moon", "tree", "house", "cup", "fish", "arrow",
};
const char *const scene_category_plurals[SCENE_CATEGORIES] = {
    "balls", "boxes", "stars",  "hearts", "rings", "crosses",
    "moons", "trees", "houses", "cups",   "fish",  "arrows",
};
/* No orange, pink or cyan: under a colour cast they cannot be told from yellow, white and blue. */
const char *const scene_color_names[SCENE_COLORS] = {
    "red", "yellow", "green", "blue", "purple", "brown", "white", "black",
};
const char *const scene_pattern_names[SCENE_PATTERNS] = {"solid", "striped", "dotted", "checkered"};
const char *const scene_size_names[SCENE_SIZES] = {"small", "large"};
const char *const scene_domain_names[SCENE_DOMAINS] = {"clean", "hard"};
const char *const scene_split_names[SCENE_SPLITS] = {"train", "val", "test"};

/* The layout's constants, frozen with SCENES_VERSION. Sizes in px. */
static const struct { float lo, hi; } size_range[SCENE_SIZES] = {{34, 42}, {56, 70}};
static const float SINGLE_LO = 0.42f,
                   SINGLE_HI = 0.90f; /* of the image height less 4 px: even a tilted box fits */
static const float SAME_CATEGORY =
    0.30f;                             /* chance to repeat an earlier object's category: counts above one */
static const float SAME_COLOR = 0.20f; /* same for colour: "the same color" needs pairs */
static const float VISIBLE_MIN = 0.60f;
static const float CENTRES_APART = 0.62f; /* of the sum of the two half sizes */
static const float TILT_MAX = 0.2618f;    /* 15 degrees */
enum {
    TRIES_PER_OBJECT = 60,
    TRIES_PER_SCENE = 20,
    ALIKE_MAX = 5
}; /* at most five of a category: answers stay in 0..5 */

static uint64_t mix64(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

SceneRng scene_rng(uint64_t seed, int split, int domain, int64_t index, int purpose) {
    uint64_t k = mix64(seed + 0x9e3779b97f4a7c15u);
    k = mix64(k ^ ((uint64_t)split << 40 | (uint64_t)domain << 32 | (uint64_t)purpose));
    k = mix64(k ^ ((uint64_t)index * 0xd1342543de82ef95u + 1));
    return (SceneRng){.key = k, .n = 0};
}

uint64_t rng_bits(SceneRng *r) { return mix64(r->key + ++r->n * 0x9e3779b97f4a7c15u); }
int rng_below(SceneRng *r, int n) { return (int)(((rng_bits(r) >> 32) * (uint64_t)n) >> 32); }
float rng_unit(SceneRng *r) { return (float)(rng_bits(r) >> 40) * 0x1p-24f; }
float rng_range(SceneRng *r, float lo, float hi) { return lo + (hi - lo) * rng_unit(r); }
bool rng_chance(SceneRng *r, float p) { return rng_unit(r) < p; }

static void set_tilt(SceneObject *o, float a) {
    const float a2 = a * a; /* Taylor to a^5: within 1e-7 below 15 degrees, and the same bits everywhere */
    o->rs = a * (1 - a2 / 6 * (1 - a2 / 20));
    o->rc = 1 - a2 / 2 * (1 - a2 / 12);
}

/* Everything about an object except its place. */
static void draw_kind(SceneObject *o, const Scene *s, int size, SceneRng *r) {
    memset(o, 0, sizeof *o);
    const int n = s->nobjects;
    o->category =
        n && rng_chance(r, SAME_CATEGORY) ? s->obj[rng_below(r, n)].category : rng_below(r, SCENE_CATEGORIES);
    for (int alike = ALIKE_MAX; alike >= ALIKE_MAX;) { /* full: the next category */
        alike = 0;
        for (int i = 0; i < n; i++) alike += s->obj[i].category == o->category;
        if (alike >= ALIKE_MAX) o->category = (o->category + 1) % SCENE_CATEGORIES;
    }
    o->color = n && rng_chance(r, SAME_COLOR) ? s->obj[rng_below(r, n)].color : rng_below(r, SCENE_COLORS);
    o->pattern = rng_below(r, SCENE_PATTERNS);
    o->size = size;
    o->half = 0.5f * rng_range(r, size_range[size].lo, size_range[size].hi);
    const float aspect = rng_range(r, -0.08f, 0.08f);
    o->ax = 1 + aspect;
    o->ay = 1 - aspect;
    o->phase = rng_unit(r);
    set_tilt(o, rng_range(r, -TILT_MAX, TILT_MAX));
}

static void move_to(SceneObject *o, Rect extent, int cx, int cy) {
    o->cx = (float)cx;
    o->cy = (float)cy;
    o->box = (Rect){extent.x0 + cx, extent.y0 + cy, extent.x1 + cx, extent.y1 + cy};
}

typedef struct Layout {
    uint8_t owner[SCENE_H][SCENE_W]; /* 1 + index of the nearest object, 0 ground */
    int area[SCENE_MAX_OBJECTS], seen[SCENE_MAX_OBJECTS];
    uint8_t mask[4 * SCENE_MASK_R * SCENE_MASK_R];
} Layout;

/* True when `o` at its place leaves every earlier object visible enough. */
static bool place_ok(const Layout *l, const Scene *s, const SceneObject *o) {
    for (int i = 0; i < s->nobjects; i++) {
        const SceneObject *p = &s->obj[i];
        const float dx = p->cx - o->cx, dy = p->cy - o->cy, apart = CENTRES_APART * (p->half + o->half);
        if (dx * dx + dy * dy < apart * apart) return false;
    }
    int hidden[SCENE_MAX_OBJECTS + 1] = {0};
    for (int y = o->box.y0; y < o->box.y1; y++) {
        const uint8_t *m =
            l->mask + (y - (int)o->cy + SCENE_MASK_R) * 2 * SCENE_MASK_R - (int)o->cx + SCENE_MASK_R;
        for (int x = o->box.x0; x < o->box.x1; x++)
            if (m[x]) hidden[l->owner[y][x]]++;
    }
    for (int i = 0; i < s->nobjects; i++)
        if ((float)(l->seen[i] - hidden[i + 1]) < VISIBLE_MIN * (float)l->area[i]) return false;
    return true;
}

static void put_down(Layout *l, Scene *s, SceneObject *o) {
    const int me = s->nobjects++;
    o->depth = (float)me;
    for (int y = o->box.y0; y < o->box.y1; y++) {
        const uint8_t *m =
            l->mask + (y - (int)o->cy + SCENE_MASK_R) * 2 * SCENE_MASK_R - (int)o->cx + SCENE_MASK_R;
        for (int x = o->box.x0; x < o->box.x1; x++) {
            if (!m[x]) continue;
            if (l->owner[y][x]) l->seen[l->owner[y][x] - 1]--;
            l->owner[y][x] = (uint8_t)(me + 1);
            l->area[me]++;
            l->seen[me]++;
        }
    }
    s->obj[me] = *o;
}

static bool add_object(Layout *l, Scene *s, int size, SceneRng *r) {
    SceneObject o;
    Rect extent;
    draw_kind(&o, s, size, r);
    scene_mask(&o, l->mask, &extent);
    const int w = SCENE_W - rect_w(extent), h = SCENE_H - rect_h(extent);
    for (int t = 0; t < TRIES_PER_OBJECT; t++) {
        const int x0 = rng_below(r, w + 1);
        const int y0 = rng_below(r, h + 1);
        move_to(&o, extent, x0 - extent.x0, y0 - extent.y0);
        if (!place_ok(l, s, &o)) continue;
        put_down(l, s, &o);
        return true;
    }
    return false;
}

static void finish(const Layout *l, Scene *s) {
    for (int i = 0; i < s->nobjects; i++) s->obj[i].visible = (float)l->seen[i] / (float)MAX(1, l->area[i]);
}

static void clear(Layout *l, Scene *s) {
    memset(l, 0, sizeof *l);
    s->nobjects = 0;
}

static void make_single(Layout *l, Scene *s, SceneRng *r) {
    SceneObject o;
    Rect extent;
    draw_kind(&o, s, 1, r);
    o.half = 0.5f * rng_range(r, SINGLE_LO, SINGLE_HI) * (SCENE_H - 4);
    scene_mask(&o, l->mask, &extent);
    /* Anywhere up to 24 px from the centre, as far as it stays inside. */
    const int mx = MIN(24, (SCENE_W - rect_w(extent)) / 2), my = MIN(24, (SCENE_H - rect_h(extent)) / 2);
    CHECK(mx >= 0 && my >= 0, "a single object of half size %g does not fit", (double)o.half);
    const int x0 = (SCENE_W - rect_w(extent)) / 2 + rng_below(r, 2 * mx + 1) - mx;
    const int y0 = (SCENE_H - rect_h(extent)) / 2 + rng_below(r, 2 * my + 1) - my;
    move_to(&o, extent, MIN(x0, SCENE_W - rect_w(extent)) - extent.x0,
            MIN(y0, SCENE_H - rect_h(extent)) - extent.y0);
    put_down(l, s, &o);
}

/* Nine small objects always fit on a 3 x 3 grid: the answer when chance keeps failing. */
static void make_grid(Layout *l, Scene *s, int n, SceneRng *r) {
    clear(l, s);
    for (int i = 0; i < n; i++) {
        SceneObject o;
        Rect extent;
        draw_kind(&o, s, 0, r);
        scene_mask(&o, l->mask, &extent);
        move_to(&o, extent, 32 + 64 * (i % 3), 24 + 48 * (i / 3));
        o.box = (Rect){MAX(0, o.box.x0), MAX(0, o.box.y0), MIN(SCENE_W, o.box.x1), MIN(SCENE_H, o.box.y1)};
        put_down(l, s, &o);
    }
}

void scene_make(Scene *s, uint64_t seed, int split, int domain, int64_t index, int min_objects,
                int max_objects) {
    CHECK(min_objects >= 1 && min_objects <= max_objects && max_objects <= SCENE_MAX_OBJECTS,
          "objects %d..%d", min_objects, max_objects);
    SceneRng r = scene_rng(seed, split, domain, index, RNG_LAYOUT);
    static _Thread_local Layout l;
    memset(s, 0, sizeof *s);
    s->seed = seed, s->index = index, s->split = split, s->domain = domain;
    clear(&l, s);
    if (max_objects == 1) {
        make_single(&l, s, &r);
        finish(&l, s);
        return;
    }
    const int n = min_objects + rng_below(&r, max_objects - min_objects + 1);
    const float large = n <= 4   ? 0.60f
                        : n <= 6 ? 0.40f
                                 : 0.20f; /* nine large ones would be the whole picture */
    for (int t = 0; t < TRIES_PER_SCENE; t++) {
        clear(&l, s);
        for (int i = 0; i < n; i++)
            if (!add_object(&l, s, rng_chance(&r, large), &r) && !add_object(&l, s, 0, &r)) break;
        if (s->nobjects == n) break;
    }
    if (s->nobjects < n) make_grid(&l, s, n, &r);
    finish(&l, s);
}

Rect scene_crop(Rect in, Rect box, char dir) {
    const int W = rect_w(in), H = rect_h(in);
    const int x0 = box.x0 - in.x0, y0 = box.y0 - in.y0, x1 = box.x1 - in.x0, y1 = box.y1 - in.y0;
    const int cx = (x0 + x1) / 2, cy = (y0 + y1) / 2;
    const int dw = 3 * (x1 - x0) / 4, dh = 3 * (y1 - y0) / 4; /* int(1.5 * side / 2) */
    Rect r;
    switch (dir) {
    case 'L':
        r = (Rect){0, 0, cx, H - 1};
        break; /* the reference loses the last row and column; so do we */
    case 'R':
        r = (Rect){cx, 0, W - 1, H - 1};
        break;
    case 'A':
        r = (Rect){0, 0, W - 1, cy};
        break;
    case 'B':
        r = (Rect){0, cy, W - 1, H - 1};
        break;
    default:
        r = (Rect){MAX(0, cx - dw), MAX(0, cy - dh), MIN(cx + dw, W), MIN(cy + dh, H)};
    }
    return (Rect){r.x0 + in.x0, r.y0 + in.y0, r.x1 + in.x0, r.y1 + in.y0};
}

float scene_inside(const SceneObject *o, Rect r) {
    const int w = MIN(o->box.x1, r.x1) - MAX(o->box.x0, r.x0),
              h = MIN(o->box.y1, r.y1) - MAX(o->box.y0, r.y0);
    if (w <= 0 || h <= 0) return 0;
    return (float)(w * h) / (float)(rect_w(o->box) * rect_h(o->box));
}
