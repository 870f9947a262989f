/* attention.c -- softmax(scale q k^T + masks) v and its backward on the CPU. Contract: ops.h.
 *
 * One thread per (batch, head), its keys and values packed once: rows that no query may see are left out (padded
 * text costs nothing), k and v^T lie as the inner products read them. Then blocks of queries: scores,
 * softmax and products of a block stay in the second cache, so (Tq, Tk) never exists. The inner products are
 * a register tile of our own (`tile`): for sizes like 80 x 32 a library's set-up costs more than the product.
 * Sums run over keys and queries in their order, whatever the threads.
 */
#include "kernels/cpu/cpu.h"

/* ---- small matrix products ------------------------------------------------------------------------ */

#ifdef __AVX512F__
enum { TILE_V = 4 }; /* 6 x 4 sums in 32 registers */
#else
enum { TILE_V = 2 }; /* 6 x 2 in 16 */
#endif
enum { TILE_M = 6, PAD = 16, QUERY_BLOCK = 96 };

/* A product's left side: value (i, k) at p[i * row + k * col]. */
typedef struct Left { const float *p; int64_t row, col; } Left;

/* C (mr, nv VL) = A B, or += when add. mr and nv are constants where this is inlined: the sums are registers. */
__attribute__((always_inline)) static inline void tile(const int mr, const int nv, float *C, int64_t ldc, Left A,
                                                       const float *B, int64_t ldb, int64_t K, bool add) {
    VR sum[TILE_M][TILE_V];
#define EACH(what) UNROLL for (int i = 0; i < mr; i++) UNROLL for (int j = 0; j < nv; j++) what
    EACH(sum[i][j] = add ? REG(C + i * ldc + j * VL) : (VR){0};)
    const float *a = A.p;
#pragma GCC unroll 2
    for (int64_t k = 0; k < K; k++, a += A.col, B += ldb) {
        VR b[TILE_V];
        UNROLL for (int j = 0; j < nv; j++) {
            b[j] = REG(B + j * VL);
            IN_REGISTER(b[j]);
        }
        UNROLL for (int i = 0; i < mr; i++) {
            const VR x = a[i * A.row] - (VR){0}; /* the value in every lane */
            UNROLL for (int j = 0; j < nv; j++) ADD_PRODUCT(sum[i][j], x, b[j]);
        }
    }
    EACH(*(VF *)(C + i * ldc + j * VL) = (VF)sum[i][j];)
#undef EACH
}

#define TILES(nv)                                                                                            \
    static void tiles_##nv(float *C, int64_t ldc, Left A, const float *B, int64_t ldb, int64_t M, int64_t K, bool add) { \
        for (; M >= TILE_M; M -= TILE_M, C += TILE_M * ldc, A.p += TILE_M * A.row)                           \
            tile(TILE_M, nv, C, ldc, A, B, ldb, K, add);                                                     \
        switch (M) {                                                                                         \
        case 5: tile(5, nv, C, ldc, A, B, ldb, K, add); break;                                               \
        case 4: tile(4, nv, C, ldc, A, B, ldb, K, add); break;                                               \
        case 3: tile(3, nv, C, ldc, A, B, ldb, K, add); break;                                               \
        case 2: tile(2, nv, C, ldc, A, B, ldb, K, add); break;                                               \
        case 1: tile(1, nv, C, ldc, A, B, ldb, K, add); break;                                               \
        default: break;                                                                                      \
        }                                                                                                    \
    }
TILES(1)
TILES(2)
#ifdef __AVX512F__
TILES(4)
#endif

/* C (M, N) = A B, or += when add; N is a multiple of PAD. Columns outside, so that a panel of B stays in the first cache. */
static void product(float *C, int64_t ldc, Left A, const float *B, int64_t ldb, int64_t M, int64_t N, int64_t K,
                    bool add) {
    int64_t j = 0;
#ifdef __AVX512F__
    for (; j + 4 * VL <= N; j += 4 * VL) tiles_4(C + j, ldc, A, B + j, ldb, M, K, add);
#endif
    for (; j + 2 * VL <= N; j += 2 * VL) tiles_2(C + j, ldc, A, B + j, ldb, M, K, add);
    for (; j < N; j += VL) tiles_1(C + j, ldc, A, B + j, ldb, M, K, add);
}

/* ---- what both directions share ------------------------------------------------------------------- */

static int64_t padded(int64_t n) { return ceil_div(n, PAD) * PAD; }

/* The keys a batch's queries may see, and how many of them come up to each position. */
typedef struct Keys {
    int64_t n, ld;     /* visible keys; the same, padded */
    int32_t *at, *upto; /* (n) their positions; (Tk + 1) visible ones before each position */
} Keys;

static Keys keys_of(const uint8_t *mask, int64_t Tk, int32_t *room) {
    Keys k = {.at = room, .upto = room + Tk};
    for (int64_t j = 0; j < Tk; j++) {
        k.upto[j] = (int32_t)k.n;
        if (!mask || mask[j]) k.at[k.n++] = (int32_t)j;
    }
    k.upto[Tk] = (int32_t)k.n;
    k.ld = padded(k.n);
    return k;
}

/* How many of the visible keys query i sees: a prefix of them. */
static int64_t seen(const Keys *k, int64_t i, bool causal, int64_t Tq, int64_t Tk) {
    return causal ? k->upto[MIN(MAX(i + Tk - Tq + 1, 0), Tk)] : k->n;
}

/* Rows of D values of type t: row i begins `first` + i ld values after p. */
typedef struct Rows {
    DType t;
    const void *p;
    int64_t first, ld;
} Rows;

static const float *row_of(Rows x, int64_t i, int64_t D, float *room) {
    return wide_row(x.t, x.p, x.first + i * x.ld, D, room);
}

/* out (n, Dp) = rows `at` of x (NULL: rows i0..i0 + n) times scale, columns D..Dp zero. */
static void pack(float *out, Rows x, const int32_t *at, int64_t i0, int64_t n, int64_t D, int64_t Dp,
                 float scale) {
    for (int64_t j = 0; j < n; j++) {
        float *o = out + j * Dp;
        const float *r = row_of(x, at ? at[j] : i0 + j, D, o);
        SIMD
        for (int64_t d = 0; d < D; d++) o[d] = r[d] * scale;
        for (int64_t d = D; d < Dp; d++) o[d] = 0;
    }
}

enum { ROWS_TURNED = 8, ROOM = ROWS_TURNED + 1 };

/* out (D, ld) = the transpose of rows `at` of x, columns n..ld zero. room: ROOM rows. */
static void pack_transposed(float *out, Rows x, const Keys *k, int64_t D, float *room) {
    float *zeros = room + ROWS_TURNED * D;
    memset(zeros, 0, (size_t)D * sizeof *zeros);
    for (int64_t j = 0; j < k->ld; j += ROWS_TURNED) {
        const float *r[ROWS_TURNED];
        for (int u = 0; u < ROWS_TURNED; u++)
            r[u] = j + u < k->n ? row_of(x, k->at[j + u], D, room + u * D) : zeros;
        for (int64_t d = 0; d < D; d++) {
            float *o = out + d * k->ld + j;
            for (int u = 0; u < ROWS_TURNED; u++) o[u] = r[u][d];
        }
    }
}

/* Pieces of one scratch block, each at a 64-byte boundary. First pass with base NULL: only counts. */
typedef struct Pieces { char *base; size_t used; } Pieces;
static void *piece(Pieces *p, int64_t n) {
    void *at = p->base ? p->base + p->used : NULL;
    p->used += ((size_t)n * 4 + 63) & ~(size_t)63;
    return at;
}

/* ---- forward -------------------------------------------------------------------------------------- */

typedef struct Forward {
    int32_t *keys;
    float *kt, *v, *q, *s, *o, *sum, *rows;
} Forward;

static Forward forward_room(int64_t Tk, int64_t D) {
    Forward f = {0};
    Pieces p = {0};
    const int64_t ld = padded(Tk), Dp = padded(D);
    for (int pass = 0; pass < 2; pass++) {
        f.keys = piece(&p, 2 * Tk + 1);
        f.kt = piece(&p, D * ld);
        f.v = piece(&p, Tk * Dp);
        f.q = piece(&p, QUERY_BLOCK * Dp);
        f.s = piece(&p, QUERY_BLOCK * ld);
        f.o = piece(&p, QUERY_BLOCK * Dp);
        f.sum = piece(&p, QUERY_BLOCK);
        f.rows = piece(&p, ROOM * D);
        if (!pass) p = (Pieces){.base = cpu_scratch(SCRATCH_THREAD, p.used)};
    }
    return f;
}

/* Scores s[0..n) to e^(s - max), zeros up to ld; *sum of them; returns log sum exp. n = 0: all zero, sum 1, -infinity. */
static float softmax_scores(float *s, int64_t n, int64_t ld, float *sum) {
    *sum = 1;
    if (n == 0) {
        memset(s, 0, (size_t)ld * sizeof(float));
        return -INFINITY;
    }
    for (int64_t j = n; j < ld; j++) s[j] = -INFINITY;
    const float m = row_max(s, ld);
    float total;
    SUM_LANES(total, j, ld, { s[j] = term = exp_neg_f(s[j] - m); });
    *sum = total;
    return m + log_f(total);
}

void cpu_attention_fwd(Stream *stream, DType t, void *out, int64_t ldo, float *lse, const void *q_,
                       int64_t ldq, const void *k_, const void *v_, int64_t ldkv, const uint8_t *key_mask,
                       bool causal, float scale, int B, int H, int Tq, int Tk, int D) {
    (void)stream;
    const int64_t Dp = padded(D);
    if (!D) return;
    OMP_(omp parallel for schedule(dynamic) if ((int64_t)B * H * Tq * (Tk + 1) * D >= 8 * PAR_MIN))
    for (int64_t bh = 0; bh < (int64_t)B * H; bh++) {
        const int64_t b = bh / H, h = bh % H;
        const int64_t at_k = b * Tk * ldkv + h * D, at_o = b * Tq * ldo + h * D;
        const Rows q = {t, q_, b * Tq * ldq + h * D, ldq}, k = {t, k_, at_k, ldkv}, v = {t, v_, at_k, ldkv};
        Forward f = forward_room(Tk, D);
        const Keys keys = keys_of(key_mask ? key_mask + b * Tk : NULL, Tk, f.keys);
        pack_transposed(f.kt, k, &keys, D, f.rows);
        pack(f.v, v, keys.at, 0, keys.n, D, Dp, 1.0f);
        for (int64_t i0 = 0; i0 < Tq; i0 += QUERY_BLOCK) {
            const int64_t m = MIN(QUERY_BLOCK, Tq - i0), n = seen(&keys, i0 + m - 1, causal, Tq, Tk), ld = padded(n);
            pack(f.q, q, NULL, i0, m, D, Dp, scale);
            product(f.s, keys.ld, (Left){f.q, Dp, 1}, f.kt, keys.ld, m, ld, D, false);
            for (int64_t i = 0; i < m; i++)
                lse[bh * Tq + i0 + i] =
                    softmax_scores(f.s + i * keys.ld, seen(&keys, i0 + i, causal, Tq, Tk), ld, &f.sum[i]);
            product(f.o, Dp, (Left){f.s, keys.ld, 1}, f.v, Dp, m, Dp, n, false);
            for (int64_t i = 0; i < m; i++) {
                const float r = 1.0f / f.sum[i];
                const int64_t at = at_o + (i0 + i) * ldo;
                float *y = row_room(t, out, at, f.rows);
                SIMD
                for (int64_t d = 0; d < D; d++) y[d] = f.o[i * Dp + d] * r;
                round_row(t, out, at, D, y);
            }
        }
    }
}

/* ---- backward ------------------------------------------------------------------------------------- */

typedef struct Backward {
    int32_t *keys;
    float *kt, *vt, *k, *dk, *dv, *q, *dout, *p, *ds, *dq, *delta, *rows;
} Backward;

static Backward backward_room(int64_t Tk, int64_t D) {
    Backward f = {0};
    Pieces p = {0};
    const int64_t ld = padded(Tk), Dp = padded(D);
    for (int pass = 0; pass < 2; pass++) {
        f.keys = piece(&p, 2 * Tk + 1);
        f.kt = piece(&p, D * ld);
        f.vt = piece(&p, D * ld);
        f.k = piece(&p, Tk * Dp);
        f.dk = piece(&p, Tk * Dp);
        f.dv = piece(&p, Tk * Dp);
        f.q = piece(&p, QUERY_BLOCK * Dp);
        f.dout = piece(&p, QUERY_BLOCK * Dp);
        f.p = piece(&p, QUERY_BLOCK * ld);
        f.ds = piece(&p, QUERY_BLOCK * ld);
        f.dq = piece(&p, QUERY_BLOCK * Dp);
        f.delta = piece(&p, QUERY_BLOCK);
        f.rows = piece(&p, ROOM * D);
        if (!pass) p = (Pieces){.base = cpu_scratch(SCRATCH_THREAD, p.used)};
    }
    return f;
}

/* In: p = scores, ds = dout v^T. Out: p = softmax, ds = p (ds - delta), both zero past n. */
static void softmax_gradient(float *p, float *ds, int64_t n, int64_t ld, float lse, float delta) {
    SIMD
    for (int64_t j = 0; j < ld; j++) {
        p[j] = exp_neg_f(p[j] - lse);
        ds[j] = p[j] * (ds[j] - delta);
    }
    for (int64_t j = n; j < ld; j++) p[j] = ds[j] = 0;
}

/* Rows `at` of out += a times those of x (at NULL: rows i0..i0 + n). */
static void add_rows(DType t, void *out, int64_t first, int64_t ld, float a, const float *x,
                     const int32_t *at, int64_t i0, int64_t n, int64_t D, int64_t Dp, float *room) {
    for (int64_t j = 0; j < n; j++) {
        const int64_t to = first + (at ? at[j] : i0 + j) * ld;
        float *y = row_to_add(t, out, to, D, room);
        row_axpy(y, a, x + j * Dp, D);
        round_row(t, out, to, D, y);
    }
}

/* With P = softmax, dP = dout v^T, delta = rowsum(dout out): dS = P (dP - delta); dq = scale dS k, dk = scale dS^T q,
 * dv = P^T dout. The scale is in the packed q. */
void cpu_attention_bwd(Stream *stream, DType t, void *dq, void *dk, void *dv, const void *q_, int64_t ldq,
                       const void *k_, const void *v_, int64_t ldkv, const void *out_, const void *dout_,
                       int64_t ldo, const float *lse, const uint8_t *key_mask, bool causal, float scale,
                       int B, int H, int Tq, int Tk, int D) {
    (void)stream;
    const int64_t Dp = padded(D);
    if (!D) return;
    OMP_(omp parallel for schedule(dynamic) if ((int64_t)B * H * Tq * (Tk + 1) * D >= 8 * PAR_MIN))
    for (int64_t bh = 0; bh < (int64_t)B * H; bh++) {
        const int64_t b = bh / H, h = bh % H;
        const int64_t at_q = b * Tq * ldq + h * D, at_k = b * Tk * ldkv + h * D, at_o = b * Tq * ldo + h * D;
        const Rows q = {t, q_, at_q, ldq}, k = {t, k_, at_k, ldkv}, v = {t, v_, at_k, ldkv},
                   out = {t, out_, at_o, ldo}, dout = {t, dout_, at_o, ldo};
        Backward f = backward_room(Tk, D);
        const Keys keys = keys_of(key_mask ? key_mask + b * Tk : NULL, Tk, f.keys);
        pack_transposed(f.kt, k, &keys, D, f.rows);
        pack_transposed(f.vt, v, &keys, D, f.rows);
        if (dq) pack(f.k, k, keys.at, 0, keys.n, D, Dp, 1.0f);
        memset(f.dk, 0, (size_t)(keys.n * Dp) * sizeof(float));
        memset(f.dv, 0, (size_t)(keys.n * Dp) * sizeof(float));
        for (int64_t i0 = 0; i0 < Tq; i0 += QUERY_BLOCK) {
            const int64_t m = MIN(QUERY_BLOCK, Tq - i0), n = seen(&keys, i0 + m - 1, causal, Tq, Tk), ld = padded(n);
            pack(f.q, q, NULL, i0, m, D, Dp, scale);
            pack(f.dout, dout, NULL, i0, m, D, Dp, 1.0f);
            product(f.p, keys.ld, (Left){f.q, Dp, 1}, f.kt, keys.ld, m, ld, D, false);
            product(f.ds, keys.ld, (Left){f.dout, Dp, 1}, f.vt, keys.ld, m, ld, D, false);
            for (int64_t i = 0; i < m; i++) {
                const float delta = row_dot(f.dout + i * Dp, row_of(out, i0 + i, D, f.rows), D);
                softmax_gradient(f.p + i * keys.ld, f.ds + i * keys.ld, seen(&keys, i0 + i, causal, Tq, Tk), ld,
                                 lse[bh * Tq + i0 + i], delta);
            }
            if (dv) product(f.dv, Dp, (Left){f.p, 1, keys.ld}, f.dout, Dp, n, Dp, m, true);
            if (dk) product(f.dk, Dp, (Left){f.ds, 1, keys.ld}, f.q, Dp, n, Dp, m, true);
            if (!dq) continue;
            product(f.dq, Dp, (Left){f.ds, keys.ld, 1}, f.k, Dp, m, Dp, n, false);
            add_rows(t, dq, at_q, ldq, scale, f.dq, NULL, i0, m, D, Dp, f.rows);
        }
        if (dk) add_rows(t, dk, at_k, ldkv, 1, f.dk, keys.at, 0, keys.n, D, Dp, f.rows);
        if (dv) add_rows(t, dv, at_k, ldkv, 1, f.dv, keys.at, 0, keys.n, D, Dp, f.rows);
    }
}
