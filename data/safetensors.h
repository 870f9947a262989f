/* safetensors.h -- the model file format: named tensors behind one JSON header, read through mmap.
 *
 * A file is 8 bytes of header length (little-endian), the JSON header, the tensors' bytes back to back.
 * The reader keeps the rules of the reference implementation (https://github.com/huggingface/safetensors)
 * and is stricter in five places where the reference is lenient and a C caller could be fooled: a name twice,
 * a zero byte in a name, white space before the '{', more than ST_MAX_DIMS dimensions or one above 2^63 - 1,
 * and a tensor described by an array instead of an object. All of them are errors here.
 *
 * A sharded model is several such files and an index that says which tensor is where: st_open_index makes them one.
 */
#pragma once
#include "engine/base.h"

#define ST_MAX_DIMS   8
#define ST_MAX_HEADER 100000000u /* bytes; the reference's cap */

/* name, bits per value. In the reference's order: the writer sorts by it, widest type first. */
#define ST_DTYPES(X)                                                                                         \
    X(BOOL, 8) X(F4, 4) X(F6_E2M3, 6) X(F6_E3M2, 6) X(U8, 8) X(I8, 8) X(F8_E5M2, 8) X(F8_E4M3, 8)            \
    X(F8_E8M0, 8) X(F8_E4M3FNUZ, 8) X(F8_E5M2FNUZ, 8) X(I16, 16) X(U16, 16) X(F16, 16) X(BF16, 16)           \
    X(I32, 32) X(U32, 32) X(F32, 32) X(C64, 64) X(F64, 64) X(I64, 64) X(U64, 64)

typedef enum StDType {
#define X(name, bits) ST_##name,
    ST_DTYPES(X)
#undef X
    ST_NDTYPES,
} StDType;

typedef struct StTensor {
    const char *name;
    StDType dtype;
    int ndim; /* 0: a scalar, one value */
    int64_t shape[ST_MAX_DIMS];
    const void *data; /* read: inside the mapping, NOT necessarily aligned to the type; 0 bytes are possible */
    size_t bytes;
} StTensor;

typedef struct SafeTensors {
    char *path;
    StTensor *tensors; /* by name, as strcmp orders them */
    int ntensors;
    char *(*metadata)[2]; /* key, value, in the file's order */
    int nmetadata;
    char *header;        /* owns every name, key and value */
    const uint8_t *base; /* the whole file */
    size_t size;
    bool mapped;
    struct SafeTensors *shard; /* of an index: the files, which own everything */
    int nshards;
} SafeTensors;

/* Opens and checks the whole header; tensor bytes are paged in when read. On failure *st is empty and e
 * (status FAIL_MODEL) names the file, the tensor and the rule it breaks. Memory: at most ten times the header.
 * The file must not shrink while it is open (we replace files by rename, so the old one stays whole). */
bool st_open(SafeTensors *st, const char *path, Error *e);
/* The same over `size` bytes at `data`, borrowed until st_close; `path` is only for messages. */
bool st_open_memory(SafeTensors *st, const void *data, size_t size, const char *path, Error *e);
/* Opens the files that an index (model.safetensors.index.json) names, in its folder, as if they were one. The index must know
 * every tensor of each file, and each must be where it says. */
bool st_open_index(SafeTensors *st, const char *path, Error *e);
void st_close(SafeTensors *st); /* also right for one that is all zero */

/* NULL when there is none. Logarithmic time. */
const StTensor *st_find(const SafeTensors *st, const char *name);
const char *st_metadata(const SafeTensors *st, const char *key);
/* Takes a tensor out of the list, or gives it another name (which no other has; borrowed): in memory only. */
void st_remove(SafeTensors *st, const char *name);
void st_rename(SafeTensors *st, const char *name, const char *to);
/* Its bytes will not be read again soon: their pages stop counting as this process's memory. They come back when read. */
void st_forget(const SafeTensors *st, const StTensor *t);
int64_t st_numel(const StTensor *t);
const char *st_dtype_name(StDType t);
size_t st_dtype_bits(StDType t);

/* dst[0 .. st_numel(t)) = the values as f32: exact from F32, F16, BF16, BOOL and 8- and 16-bit integers, rounded
 * from F64 and wider integers. False for the types we have no use for (F4, F6, F8, C64). */
bool st_to_f32(float *dst, const StTensor *t, Error *e);
float f16_to_f32(uint16_t h);

/* Writes `n` tensors and `nmeta` pairs so that whoever looks sees the old file or the whole new one: path.tmp,
 * fsync, rename (as file_write_atomic in engine/base.h). The bytes depend on nothing but the arguments: tensors in the reference writer's order (widest
 * type first, then by name), metadata in the order given, the header padded with spaces to 8 bytes, so that
 * tensor data of a type is aligned for it. Nothing is copied. A full disk is FAIL_DISK with the bytes needed, and
 * leaves no temporary file. Names must be distinct UTF-8 (CHECKed: they are our own). */
bool st_write(const char *path, const StTensor *tensors, int n, const char *const (*metadata)[2], int nmeta,
              Error *e);
