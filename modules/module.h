/* module.h -- a trainable answerer of one kind of program step: the vtable, and what all networks share.
 *
 * A module is a folder as Hugging Face writes it: config.json names the architecture and every size,
 * preprocessor_config.json the image rule, model.safetensors the weights, the tokenizer's files beside
 * them. The engine asks a module many questions at once (Ask); the module runs its image tower once per
 * distinct (image, rectangle) and its text tower once per distinct text between two module_begin calls.
 * Next: vilt.c, clip_towers.h.
 */
#pragma once
#include <jansson.h>

#include "data/token.h"
#include "engine/config.h"
#include "engine/lora.h"

/* One question: what the program's step wants to know of which pixels. Borrowed for the length of the update. */
typedef struct Ask {
    ImageView image;
    uint64_t image_id;  /* equal ids: equal pixels */
    Rect rect;          /* in pixels of the image; not empty */
    const char *query;  /* VQA: the question. LOC, CLIP: the object phrase, without the prompt's "a photo of " */
} Ask;

/* What one forward gave, row i for ask i, in f32 whatever the module computes in. VQA: logits (n, V). LOC: logits (n, P),
 * boxes (n, P, 4) as cx, cy, w, h in 0..1 of the rectangle. CLIP: logits (n, 1), the cosine of rectangle and text. */
typedef struct Outputs {
    int64_t n;
    Tensor *logits, *boxes;
    const void *own; /* what the module's answer_loss and write go on from */
} Outputs;

typedef struct Module Module;

typedef struct ModuleType {
    const char *name;     /* config.json's model_type: "vilt" */
    const char *step;     /* the program step that it answers: "VQA" */
    size_t size;          /* of its own struct, whose first member is the Module */
    /* Reads the sizes from m->config, declares parameters, opens the tokenizer. */
    bool (*open)(Module *m, Error *e);
    void (*forward)(Module *m, Ctx *c, const Ask *ask, int64_t n, Outputs *out);
    void (*begin)(Module *m); /* forget the towers' outputs */
    void (*init)(Module *m); /* after params_init: what a fresh network wants beyond it; may be NULL */
    void (*close)(Module *m);
    /* VQA modules that write answers instead of choosing one; NULL: the answer is the largest logit. `write` fills answer[0..n)
     * with strings in `a`; answer_loss (targets are distributions over the labels, (n, nlabels), weight (n)) puts the loss on the
     * tape and returns it. With labels such a module ranks them: logits are their log likelihoods, softmax their probabilities. */
    void (*write)(Module *m, Ctx *c, const Outputs *out, const char **answer, Arena *a);
    double (*answer_loss)(Module *m, Ctx *c, const Outputs *out, const float *target, const float *weight);
    /* {name, of}, ended by NULLs: tensors that a file may hold as copies of another, which are not ours; may be NULL. */
    const char *const (*tied)[2];
} ModuleType;

/* Which rows of which tensors hold the towers' outputs of this update. */
typedef struct TowerKey { uint64_t a, b, c; } TowerKey;
typedef struct TowerRow { int32_t source, row; } TowerRow;
typedef struct TowerCache {
    struct TowerSlot { TowerKey key; TowerRow at; uint32_t generation; } *slot;
    int64_t nslots, used;
    uint32_t generation;
} TowerCache;

struct Module {
    const ModuleType *type;
    char folder[512];
    json_t *config, *processor; /* config.json, preprocessor_config.json */
    Arena host;                 /* lives as long as the module */
    ParamSet params;
    Lora lora;                  /* rank 0: without adapters */
    Tokenizer *tokenizer;
    const char **label;         /* VQA: the answers */
    int nlabels;
    int images;                 /* pictures that a question is about: 1, or 2 (NLVR2) */
    bool loss_only;             /* what is forwarded now is for answer_loss alone: who ranks leaves the logits NULL */
    /* Counted since module_open; tests assert on them. */
    int64_t asks, image_rows, text_rows, forwards;
};

/* trained: with gradients and moments, of the adapters alone when there are any (lora.h; alpha 0: as the rank). */
typedef struct ModuleUse { bool trained; int lora_rank; float lora_alpha; } ModuleUse;
#define MODULE_FROZEN ((ModuleUse){0})
#define MODULE_TRAINED ((ModuleUse){.trained = true})
/* As a run's options want a module that learns. */
ModuleUse module_use(const Config *cfg);

/* Opens FOLDER. weights: read model.safetensors; else (a folder without it is then right too) draw initial values from
 * `seed`, with the config's initializer_range (0: by fan-in). `precision`: what it computes in, see param.h. `use`
 * decides whether gradients and moments are kept. The module is closed with module_close. */
Module *module_open(const char *folder, Device *dev, DType precision, ModuleUse use, bool weights, uint64_t seed, Error *e);
void module_close(Module *m);
/* Writes a folder that module_open reads back: weights, adapters merged into them, and copies of the other files. */
bool module_save(Module *m, const char *folder, Error *e);
/* What of it learns: its parameters, or its adapters. */
static inline ParamSet *module_learns(Module *m) { return m->lora.rank ? &m->lora.params : &m->params; }
/* A new update begins: the parameters may have changed and the step arena was reset; tower outputs are forgotten. */
void module_begin(Module *m);
/* n questions of m->images asks each: a second picture's query is not read. */
void module_forward(Module *m, Ctx *c, const Ask *ask, int64_t n, Outputs *out);

/* For module files. */
/* The value of a numeric or string member of config.json: `fallback` when absent; a wrong type or a value out of lo..hi
 * fails with file, key and value. key may be dotted ("vision_config.hidden_size"). */
bool config_int(const Module *m, const char *key, int64_t fallback, int64_t lo, int64_t hi, int64_t *out, Error *e);
bool config_float(const Module *m, const char *key, double fallback, double *out, Error *e);
const char *config_string(const Module *m, const char *key, const char *fallback);
bool config_activation(const Module *m, const char *key, const char *fallback, Activation *out, Error *e);
/* Reads size, image_mean, image_std, resample of preprocessor_config.json. mean, std of three; filter 2 bilinear, 3 bicubic. */
bool processor_norm(const Module *m, PatchSpec *spec, Error *e);
/* Whether preprocessor_config.json's size.height and size.width, where it has them, are the model's own side. */
bool processor_square(const Module *m, int64_t side, Error *e);
json_t *json_path(json_t *root, const char *dotted);
/* Reads FOLDER/NAME; the caller gives the reference back. optional: a file that is not there is NULL, and no failure. */
bool module_json(const char *folder, const char *name, bool optional, json_t **out, Error *e);

void tower_clear(TowerCache *t);
/* NULL when this update has not seen the key. */
TowerRow *tower_find(TowerCache *t, TowerKey key);
void tower_add(TowerCache *t, TowerKey key, TowerRow at);
void tower_free(TowerCache *t);
static inline TowerKey ask_image_key(const Ask *a) {
    return (TowerKey){a->image_id, (uint64_t)(uint32_t)a->rect.x0 << 32 | (uint32_t)a->rect.y0,
                      (uint64_t)(uint32_t)a->rect.x1 << 32 | (uint32_t)a->rect.y1};
}
TowerKey ask_text_key(const Ask *a);

extern const ModuleType vilt_type, owlvit_type, clip_type, blip_type;
