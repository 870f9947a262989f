/* dataset.h -- questions about images, from files of several formats, in memory as one table.
 *
 * A dataset is a list of items: questions with their program and answer (Sample), or single module calls with
 * their label (StepSample, steps.h). Pixels are not read here: loader.c does that. dataset.c holds the table and
 * the JSON walker; gqa.c, nlvr2.c and steps.c each read one format.
 *
 * Every reader takes outside data: errors name file and line, memory is bounded by a small multiple of what is
 * kept (not of the file), and no path leads out of the dataset's folder.
 */
#pragma once
#include "engine/base.h"
#include "kernels/rect.h"

#include <jansson.h>

typedef struct StepSample StepSample; /* steps.h */

/* One question. Strings belong to the dataset; what the file did not give is NULL. */
typedef struct Sample {
    const char *id;
    int image[2]; /* indices into the image table; image[1] is -1 when nimages is 1 */
    int nimages;
    const char *question, *answer, *program, *type;
} Sample;

typedef struct ImageTable {
    const char *dir;   /* images are dir/path */
    const char **path; /* distinct */
    int n;
    int64_t cap;
} ImageTable;

typedef struct DatasetConfig {
    const char *type;     /* "gqa", "nlvr2", "steps" */
    const char *dir;      /* the folder that holds the dataset */
    const char *split;    /* "train", "val", ... : part of the file names */
    const char *file;     /* this file instead of the split's own, or NULL */
    const char *programs; /* a JSON object, id -> program text, merged into the samples; or NULL */
    int64_t limit;        /* at most so many items, the first ones; 0: all */
    int64_t max_bad;      /* so many records that make no sense are skipped and counted; one more is an error */
} DatasetConfig;

struct DatasetNames { struct DatasetName { const char *s; int64_t value; } *slot; int64_t n, size; };
struct DatasetBlock;

/* Everything lives until dataset_close. Read-only after dataset_open: threads may share it. */
typedef struct Dataset {
    const struct DatasetType *type;
    ImageTable images;
    Sample *sample; /* questions, in the order of the file */
    int64_t nsamples;
    StepSample *step; /* or module calls */
    int64_t nsteps;
    int64_t nbad, nleft_out; /* records that were skipped as bad; lines that say "kept": false */
    char *first_bad;         /* the first bad one's sentence, or NULL */

    int64_t max_bad, limit, cap_samples, cap_steps; /* private from here */
    struct DatasetNames strings, image_names, sample_ids;
    struct DatasetBlock *blocks;
} Dataset;

/* A format: where a split's file may lie in the folder (the first that exists is taken), and its reader. */
struct MappedFile;
typedef struct DatasetType {
    const char *name, *layout[3];
    bool (*read)(Dataset *d, const struct MappedFile *m, Error *e); /* until dataset_full */
} DatasetType;
extern const DatasetType dataset_gqa, dataset_nlvr2, dataset_steps;

/* False (FAIL_DATA, FAIL_CONFIG for an unknown type) with a sentence; d is then closed. */
bool dataset_open(Dataset *d, const DatasetConfig *c, Error *e);
/* The same of a file that is mapped already (c->file and c->split only serve messages). */
bool dataset_open_mapped(Dataset *d, const DatasetConfig *c, const struct MappedFile *m, Error *e);
void dataset_close(Dataset *d); /* also right for one that is all zero */

/* Items: questions, or steps when the dataset has those. */
int64_t dataset_items(const Dataset *d);
/* The images of item i; image[1] is -1 when there is one. Returns how many, 1 or 2. */
int dataset_item_images(const Dataset *d, int64_t i, int image[2]);
/* Item index of the question with this id, or -1. */
int64_t dataset_find(const Dataset *d, const char *id);

/* Questions grouped by the images they are about: a dataset of one item per group, for a loader to draw from, so that what
 * is asked about an image comes together. Group k's questions are d->sample[item[first[k]]] .. item[first[k + 1] - 1], in the
 * order of the file; groups are in the order of their images. d is borrowed. */
typedef struct ImageGroups { Dataset group; int64_t *first, *item; } ImageGroups;
void image_groups_open(ImageGroups *g, const Dataset *d);
void image_groups_close(ImageGroups *g); /* also right for one that is all zero */
/* Puts up to k (0: all) different questions of group `at` into out, a function of seed; in the order of the file. Returns how many. */
int image_groups_choose(const ImageGroups *g, int64_t at, int k, uint64_t seed, int64_t *out);

/* ---- scene graphs ------------------------------------------------------------------------------------------- */

typedef struct GraphRelation { const char *name; int object; } GraphRelation; /* this object --name--> object */
typedef struct GraphObject {
    const char *id, *name;
    const char **attribute;
    GraphRelation *relation;
    int nattributes, nrelations;
    Rect box;
} GraphObject;
typedef struct SceneGraph {
    int w, h, nobjects; /* w 0: this image has no graph */
    GraphObject *object;
} SceneGraph;

/* GQA's sceneGraphs.json for the images of one dataset. */
typedef struct SceneGraphs { SceneGraph *graph; int n; Dataset *d; int nfound; } SceneGraphs;

/* Reads the graphs of d's images (those of other images are passed over). The strings belong to d, so d must stay
 * open. A relation to an object that the graph lacks is left out. */
bool scenegraphs_open(SceneGraphs *g, Dataset *d, const char *path, Error *e);
bool scenegraphs_open_mapped(SceneGraphs *g, Dataset *d, const struct MappedFile *m, Error *e);
void scenegraphs_close(SceneGraphs *g);
/* NULL when the image has none. */
const SceneGraph *scenegraphs_find(const SceneGraphs *g, int image);

/* ---- for the readers of formats ------------------------------------------------------------------------------ */

/* A copy of s that lives as long as the dataset; equal strings are one. NULL gives NULL. */
const char *dataset_string(Dataset *d, const char *s);
/* Zeroed memory that lives as long as the dataset, aligned for anything. */
void *dataset_alloc(Dataset *d, size_t bytes);
/* The image's index, adding it when new. `path` is relative to the folder; one that leads out of it is an error. */
bool dataset_image(Dataset *d, const char *path, int *index, Error *e);
/* Adds a question (its strings are copied); a second one with the same id is an error. */
bool dataset_add(Dataset *d, const Sample *s, Error *e);
/* Counts a record that is skipped, with the sentence in e; false when they are more than max_bad (e says so). */
bool dataset_bad(Dataset *d, Error *e);
/* The limit is reached. */
bool dataset_full(const Dataset *d);

/* A whole file, mapped. It must not shrink while it is open (we replace files by rename). */
typedef struct MappedFile { const char *path, *data; size_t size; } MappedFile;
bool file_map(MappedFile *m, const char *path, Error *e);
bool file_map_memory(MappedFile *m, const void *data, size_t size, const char *path); /* borrowed, never unmapped; for fuzzing */
void file_unmap(MappedFile *m);

/* The members of the file's one top-level object, one after the other: a file of any size costs the memory of its
 * largest member, which may have JSON_MAX_VALUE bytes of text. */
#define JSON_MAX_VALUE (2 << 20)
typedef struct JsonWalk {
    const MappedFile *m;
    size_t at;
    int64_t members;
    const char *key; /* of the current member; valid until the next call */
    json_t *value;
    size_t value_at;
    json_t *key_json;
} JsonWalk;
void json_walk_begin(JsonWalk *w, const MappedFile *m);
/* 1: key and value are set; 0: the end of a proper file; -1: e says what is wrong, with file and line. */
int json_walk_next(JsonWalk *w, Error *e);
void json_walk_end(JsonWalk *w);
/* The line (from 1) of a byte. */
int64_t file_line(const MappedFile *m, size_t at);

/* The lines of a JSON-lines file. Empty lines are passed over. */
typedef struct JsonLines {
    const MappedFile *m;
    size_t at;
    int64_t line;
    json_t *value;
} JsonLines;
void json_lines_begin(JsonLines *w, const MappedFile *m);
/* 1: value is set (an object); 0: the end; -1: this line is bad, e says why, the next call goes on behind it. */
int json_lines_next(JsonLines *w, Error *e);
void json_lines_end(JsonLines *w);

/* The string member `key` of o, or NULL when absent (or null). *ok becomes false when it is something else, with a
 * sentence in e that starts with nothing: the caller adds file and line. */
const char *json_text(const json_t *o, const char *key, bool *ok, Error *e);
/* [x0, y0, x1, y1] -> r; reals are rounded. Beyond +-10^6, or not four numbers: an error. */
bool json_rect(const json_t *v, Rect *r, Error *e);
