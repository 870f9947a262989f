/* loader.h -- worker threads that turn a dataset into batches of decoded images. */
#pragma once
#include "data/dataset.h"
#include "data/jpeg.h"

typedef struct LoaderConfig {
    uint64_t seed;
    int batch;              /* items per batch of all ranks together, >= 1 */
    int workers;            /* decoding threads; 0: the caller's own */
    bool shuffle;           /* false: every epoch in the order of the file */
    int64_t first_batch;    /* where to begin: resuming costs nothing */
    int64_t passes;         /* stop after so many epochs, the last batch may be short; 0: endless */
    int rank, ranks;        /* of each batch this rank has the items batch*rank/ranks and on; ranks 0 means 1 */
    int min_side;           /* as jpeg_decode */
    float max_bad_percent;  /* more bad images than this, once 1000 were read or at the end of the last pass, end the run */
    size_t cache_bytes;     /* decoded images kept for the next epochs, first come; 0: none */
    size_t batch_bytes;     /* room for the pixels of one batch; 0: 1 GiB. What does not fit counts as too large */
} LoaderConfig;

/* Why an image could not be used: JPEG_OK .. JPEG_CAUSES - 1 as jpeg.h says, and these. */
enum { LOADER_UNREADABLE = JPEG_CAUSES, LOADER_CAUSES };
extern const char *const loader_cause_names[LOADER_CAUSES];

/* Items of the sequence, less those with an image that could not be used: n may be smaller than the configured
 * batch, even 0. Each distinct image is there once. */
typedef struct Batch {
    int64_t index;
    int64_t epoch;            /* of its first item */
    int n;
    const int64_t *item;      /* [n] dataset items, in the order of the sequence */
    const int *place;         /* [n] where in the batch of all ranks */
    int nimages;
    const ImageView *image;   /* [nimages] in the order of first use */
    const uint64_t *image_id; /* [nimages] index into the dataset's image table */
    const int (*image_of)[2]; /* [n] indices into image; the second is -1 when there is one */
} Batch;

/* Counted over the batches handed out, so the numbers do not depend on threads either. */
typedef struct LoaderStats {
    int64_t batches, items, skipped;      /* items handed out; items left out */
    int64_t images, bad[LOADER_CAUSES];   /* images asked for; of these not usable, by cause */
    int64_t damaged[LOADER_CAUSES];       /* usable, but decoded with warnings (truncated, corrupt) */
    char first_bad[512];                  /* the first bad image's sentence */
    double wait_s;                        /* time the caller waited */
} LoaderStats;

typedef struct Loader Loader;

/* Batch b holds items b*batch .. b*batch + batch - 1 of the endless sequence of epochs (with ranks, of these this rank's
 * share: the order is the same for any number of ranks). Each epoch is a permutation of the dataset that is a pure function of (seed, epoch): any number of
 * workers gives the same batches. d is borrowed until loader_close. */
Loader *loader_open(const Dataset *d, const LoaderConfig *c, Error *e);
/* The next batch, valid until the next call. NULL at the end of the last pass (e untouched), or with a sentence in e when
 * too many images are bad. */
const Batch *loader_next(Loader *l, Error *e);
/* The items of b whose place is part/parts to (part + 1)/parts of a batch of `batch`; its images are those of b. */
Batch batch_part(const Batch *b, int batch, int part, int parts);
const LoaderStats *loader_stats(const Loader *l);
/* The causes for which images could not be used: "2 truncated, 1 too large"; empty when all could. */
void loader_causes(const LoaderStats *t, char *out, size_t size);
void loader_close(Loader *l); /* NULL is allowed */

/* Number of batches of one epoch, rounded up. */
int64_t loader_epoch_batches(const Dataset *d, const LoaderConfig *c);
/* The dataset item at position k (0 <= k < n) of an epoch: a permutation of 0 .. n-1, in constant time and memory. */
int64_t loader_permute(uint64_t seed, int64_t epoch, int64_t k, int64_t n);
