/* scenes.h -- the built-in dataset: rendered scenes with graphs, questions, programs and step labels.
 *
 * Everything is a pure function of (seed, split, domain, index): no files, no clock, no thread order.
 * scenes.c lays objects out, scenes_draw.c paints them, scenes_ask.c asks about them, scenes_write.c
 * writes the files. A changed pixel, word or number means a new SCENES_VERSION.
 *
 * Two domains. CLEAN: plain light ground, crisp. HARD: textures, colour cast, blur, noise, clutter.
 * What is asked is the same in both; only the pixels differ.
 */
#pragma once
#include "engine/base.h"
#include "kernels/rect.h"

#define SCENES_VERSION "1"

enum {
    SCENE_W = 192,
    SCENE_H = 144,
    SCENE_BYTES = SCENE_W * SCENE_H * 3,
    SCENE_MAX_OBJECTS = 9,
    SCENE_CATEGORIES = 12,
    SCENE_COLORS = 8,
    SCENE_PATTERNS = 4,
    SCENE_SIZES = 2,
};

typedef enum SceneDomain { SCENE_CLEAN, SCENE_HARD, SCENE_DOMAINS } SceneDomain;
typedef enum SceneSplit { SCENE_TRAIN, SCENE_VAL, SCENE_TEST, SCENE_SPLITS } SceneSplit;

extern const char *const scene_category_names[SCENE_CATEGORIES];
extern const char *const scene_category_plurals[SCENE_CATEGORIES];
extern const char *const scene_color_names[SCENE_COLORS];
extern const char *const scene_pattern_names[SCENE_PATTERNS];
extern const char *const scene_size_names[SCENE_SIZES];
extern const char *const scene_domain_names[SCENE_DOMAINS];
extern const char *const scene_split_names[SCENE_SPLITS];

/* Every lower-case word of the questions, statements, LOC phrases and VQA queries, and every answer;
 * both end with NULL. tests/data/test_scenes.c keeps them complete. */
extern const char *const scene_words[];
extern const char *const scene_answers[];

/* Counter-based random numbers: draw n of stream `key` is mix(key + (n + 1) * 2^64/phi) with splitmix64's
 * finaliser (Steele et al. 2014). Streams with different keys are independent and need no state. */
typedef struct SceneRng {
    uint64_t key, n;
} SceneRng;
SceneRng scene_rng(uint64_t seed, int split, int domain, int64_t index, int purpose);
uint64_t rng_bits(SceneRng *r);
int rng_below(SceneRng *r, int n); /* 0 .. n-1, n >= 1 */
float rng_unit(SceneRng *r);       /* [0, 1), 24 bits */
float rng_range(SceneRng *r, float lo, float hi);
bool rng_chance(SceneRng *r, float p);
enum { RNG_LAYOUT, RNG_DRAW, RNG_ASK, RNG_STEPS, RNG_NLVR, RNG_CURRICULUM };

typedef struct SceneObject {
    int category, color, pattern, size;
    Rect box;      /* full extent of the silhouette (also where something hides it), inside the image */
    float cx, cy;  /* centre, px */
    float depth;   /* painting order: 0 is farthest; a nearer object hides a farther one */
    float half;    /* half of the nominal size, px: the shape lives in [-1, 1]^2 * half */
    float ax, ay;  /* aspect: width and height factors */
    float rc, rs;  /* cosine and sine of its rotation (within 15 degrees) */
    float phase;   /* shift of the pattern, 0..1 */
    float visible; /* share of the silhouette that no nearer object hides, > 0.55 */
} SceneObject;

typedef struct Scene {
    uint64_t seed;
    int64_t index;
    int split, domain, nobjects;
    SceneObject obj[SCENE_MAX_OBJECTS];
} Scene;

/* Lays out one scene of min_objects..max_objects (1 <= min <= max <= 9). With both 1, the object is large (40
 * to 90% of the image height) and near the centre, for the first lessons of a network. */
void scene_make(Scene *s, uint64_t seed, int split, int domain, int64_t index, int min_objects,
                int max_objects);
/* Paints it: rgb has SCENE_BYTES bytes, rows without gaps. Bit-identical on every IEEE machine (no libm, no
 * FMA). */
void scene_render(const Scene *s, uint8_t *rgb);
/* The JPEG quality this scene is stored at: 92 clean, 50..80 hard. */
int scene_quality(const Scene *s);
/* Silhouette of an object with its centre at (0, 0): sets mask[(y + R) * 2R + x + R] for x, y in -R .. R-1 to
 * 0 or 1 with R = SCENE_MASK_R, and *box to its extent. For the layout and for tests. */
enum { SCENE_MASK_R = 96 };
void scene_mask(const SceneObject *o, uint8_t *mask, Rect *box);

/* --- asking ----------------------------------------------------------------------------------------------
 */

typedef struct SceneOp { /* one step of GQA's functional program */
    char operation[24], argument[64];
    int ndeps, dep[2];
} SceneOp;

typedef struct SceneRef {
    int object, word0, word1;
} SceneRef; /* words [word0, word1) of the question name this object */

typedef struct SceneQuestion {
    char question[160], answer[16], full_answer[160];
    char type[12];       /* exist query verify choose compare and or count relation side */
    char structural[12]; /* GQA: verify query choose logical compare (and our own: count) */
    char semantic[8];    /* GQA: obj attr rel */
    char detailed[24];
    char group[16];    /* GQA's global answer group; "" = null */
    char program[800]; /* VisProg lines, no newline at the end */
    int nops;
    SceneOp op[10];
    int nrefs;
    SceneRef ref[3];
} SceneQuestion;

/* Up to `max` different questions about a scene, in random order of type; returns how many (few objects allow
 * few). Yes and no are equally likely within each binary type: a yes/no question is only asked of a scene
 * that allows both, and a coin picks. Objects are named by phrases that are unique in the image. */
int scene_questions(const Scene *s, SceneQuestion *out, int max, SceneRng *r);

typedef struct SceneStatement {
    char sentence[160], type[16], program[800];
    bool label;
} SceneStatement;
/* Up to `max` different NLVR-style statements about a pair, true and false equally likely. */
int scene_statements(const Scene *left, const Scene *right, SceneStatement *out, int max, SceneRng *r);

typedef struct SceneStep {
    Rect rect; /* the part of the image that is asked about */
    bool loc;  /* LOC: query is a phrase, the boxes are the answer; else VQA */
    char query[96], answer[16];
    int nobj, obj[SCENE_MAX_OBJECTS];
    Rect box[SCENE_MAX_OBJECTS]; /* pixels of the whole image, clipped to rect */
} SceneStep;
/* Up to `max` labelled module calls on the rectangles that programs make: crops of exact and of jittered
 * boxes, halves, directional crops, the whole image. Rectangles in which the answer would be a matter of
 * taste are left out. */
int scene_steps(const Scene *s, SceneStep *out, int max, SceneRng *r);

/* The reference program semantics on rectangles (CROP and its relatives): dir is 'C' (CROP), 'L' left of, 'R'
 * right of, 'A' above, 'B' below. `in` is the rectangle of the input image, box is in pixels of the whole
 * image. */
Rect scene_crop(Rect in, Rect box, char dir);
/* Share of the object's box that lies in r. The oracle calls an object visible in a crop from 0.5 on. */
float scene_inside(const SceneObject *o, Rect r);

/* --- files -----------------------------------------------------------------------------------------------
 */

typedef struct ScenesConfig {
    uint64_t seed;
    int domain;
    int64_t images[SCENE_SPLITS];
    int questions_per_image; /* <= 32 */
    int steps_per_image;     /* <= 64; 0: no steps file */
    int statements_per_pair; /* <= 16; images 2k and 2k+1 make pair k */
    float single_fraction;   /* share of images with exactly one object ... */
    float few_fraction; /* ... and with 2 or 3: curriculum images, they get steps and a graph but no questions
                         */
    int threads;        /* 0: OpenMP's choice */
} ScenesConfig;

void scenes_config_default(ScenesConfig *c);
/* Writes dir/images/<id>.jpg, <split>_questions.json, <split>_sceneGraphs.json, <split>_nlvr.jsonl,
 * <split>_steps.jsonl and, last, dataset.json: a folder without dataset.json is incomplete. The bytes
 * do not depend on the number of threads. */
bool scenes_write(const char *dir, const ScenesConfig *c, Error *e);
/* The scene behind image `index` of a split, as scenes_write makes it; *curriculum (may be NULL): true when
 * it gets no questions. */
void scenes_image(Scene *s, const ScenesConfig *c, int split, int64_t index, bool *curriculum);
