// Products of bf16 rows with a weight (O, I): y = x · Wᵀ, fp32 sums, bf16 in and out.
//
// An output's sum runs over its inputs in ascending pairs, in one accumulator, whatever the number of rows, tiles or
// threads: a row's result does not depend on the rows beside it, so sampling one token gives the bits of training on
// thousands.
//
// Weights lie by tiles of 16 outputs, then by pairs of inputs, as the dot product takes them: (O / 16, I / 2, 16, 2),
// zeros behind the last output and input. A weight that changes is laid out tile by tile as it is used.
//
// A processor with tiles (AMX) multiplies many rows faster than this; there the tensor library serves.
//
// Legend: T rows, I inputs, O outputs, R ranks, P pairs of inputs.

#if defined(__AVX512BF16__) && defined(__AVX512VL__) && defined(__AVX512BW__) && !defined(__AMX_BF16__)

#include <immintrin.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint16_t bf16;

#define INLINED static inline __attribute__((always_inline))
#define LANES 16         // outputs of a tile
#define TILES 2          // that rows pass together: with 12 rows 24 sums, of 32 registers
#define BLOCK_ROWS 528   // whose inputs stay in the second cache while the weights pass by
#define PARALLEL_WORK 65536

// A weight: laid out, or as rows `stride` numbers apart, of outputs, or, `turned`, of inputs.
typedef struct {
    const bf16 *numbers;
    int64_t n_outputs, n_inputs, stride;  // stride 0: laid out
    int turned;
} Weight;

// Rows, `stride` numbers apart.
typedef struct {
    const bf16 *numbers;
    int64_t stride;
} Rows;

// Where results go; they are added to what is there, or, with `bias`, to that.
typedef struct {
    bf16 *numbers;
    int64_t stride;
    int adds;
    const float *bias;
} Results;

static inline int64_t n_pairs(const Weight *w) { return (w->n_inputs + 1) / 2; }
static inline int64_t n_tiles(const Weight *w) { return (w->n_outputs + LANES - 1) / LANES; }

static inline __m512bh both(const bf16 *x) {
    int32_t pair;
    memcpy(&pair, x, 4);
    return (__m512bh)_mm512_set1_epi32(pair);
}

static inline __m512 wide(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }

// Sixteen rows of sixteen pairs become sixteen columns.
static inline void transpose(__m512i row[LANES]) {
    __m512i t[LANES];
    for (int i = 0; i < LANES; i += 2) {
        t[i] = _mm512_unpacklo_epi32(row[i], row[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(row[i], row[i + 1]);
    }
    for (int i = 0; i < LANES; i += 4) {
        row[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        row[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        row[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        row[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++)
        for (int half = 0; half < 2; half++) {
            t[8 * half + i] = _mm512_shuffle_i32x4(row[8 * half + i], row[8 * half + i + 4], 0x88);
            t[8 * half + i + 4] = _mm512_shuffle_i32x4(row[8 * half + i], row[8 * half + i + 4], 0xdd);
        }
    for (int i = 0; i < 4; i++) {
        row[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        row[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        row[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        row[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

// Lays out one tile of a weight given by rows of inputs, (P, 16, 2).
static void lay_out_turned(const Weight *w, int64_t tile, bf16 *panel) {
    int64_t left = w->n_outputs - tile * LANES;
    __mmask16 present = left >= LANES ? 0xffff : (1u << left) - 1;
    for (int64_t p = 0; p < n_pairs(w); p++) {
        const bf16 *row = w->numbers + 2 * p * w->stride + tile * LANES;
        __m512i first = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(present, row)), second = _mm512_setzero_si512();
        if (2 * p + 1 < w->n_inputs)
            second = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(present, row + w->stride));
        _mm512_storeu_si512(panel + p * 2 * LANES, _mm512_or_si512(first, _mm512_slli_epi32(second, 16)));
    }
}

// The same of one given by rows of outputs.
static void lay_out(const Weight *w, int64_t tile, bf16 *panel) {
    if (w->turned) {
        lay_out_turned(w, tile, panel);
        return;
    }
    for (int64_t p = 0; p < n_pairs(w); p += LANES) {
        int64_t left = w->n_inputs - 2 * p;
        __mmask32 present = left >= 32 ? 0xffffffff : (1u << left) - 1;
        __m512i row[LANES];
        for (int o = 0; o < LANES; o++) {
            int64_t output = tile * LANES + o;
            row[o] = _mm512_setzero_si512();
            if (output < w->n_outputs)
                row[o] = _mm512_maskz_loadu_epi16(present, w->numbers + output * w->stride + 2 * p);
        }
        transpose(row);
        for (int i = 0; i < LANES && p + i < n_pairs(w); i++) _mm512_storeu_si512(panel + (p + i) * 2 * LANES, row[i]);
    }
}

// Rows of x over `tiles` tiles from `panel` on, which stand `apart` numbers apart. Meanwhile `fetched` lines a pair are
// fetched from `soon` on, where later rows or tiles will read.
INLINED void pass(const bf16 *panel, int64_t apart, const bf16 *soon, const int fetched, const int tiles,
                  const int n_rows, int64_t n_inputs, Rows x, Results y, int64_t first, int64_t n_outputs) {
    __m512 sum[12][TILES];
    for (int r = 0; r < n_rows; r++)
        for (int t = 0; t < tiles; t++) sum[r][t] = _mm512_setzero_ps();
    for (int64_t p = 0; p < n_inputs / 2; p++) {
        __m512bh weight[TILES];
        for (int t = 0; t < tiles; t++)
            weight[t] = (__m512bh)_mm512_loadu_si512(panel + t * apart + p * 2 * LANES);
        for (int f = 0; f < fetched; f++)
            _mm_prefetch((const char *)(soon + (p * fetched + f) * 2 * LANES), _MM_HINT_T1);
        for (int r = 0; r < n_rows; r++) {
            __m512bh pair = both(x.numbers + r * x.stride + 2 * p);
            for (int t = 0; t < tiles; t++) sum[r][t] = _mm512_dpbf16_ps(sum[r][t], pair, weight[t]);
        }
    }
    if (n_inputs % 2)
        for (int t = 0; t < tiles; t++) {
            __m512bh weight = (__m512bh)_mm512_loadu_si512(panel + t * apart + (n_inputs - 1) * LANES);
            for (int r = 0; r < n_rows; r++) {
                bf16 last[2] = {x.numbers[r * x.stride + n_inputs - 1], 0};
                sum[r][t] = _mm512_dpbf16_ps(sum[r][t], both(last), weight);
            }
        }
    for (int t = 0; t < tiles; t++) {
        int64_t output = first + t * LANES, left = n_outputs - output;
        __mmask16 present = left >= LANES ? 0xffff : (1u << left) - 1;
        for (int r = 0; r < n_rows; r++) {
            bf16 *at = y.numbers + r * y.stride + output;
            if (y.bias) sum[r][t] = _mm512_add_ps(sum[r][t], _mm512_maskz_loadu_ps(present, y.bias + output));
            if (y.adds) sum[r][t] = _mm512_add_ps(sum[r][t], wide(_mm256_maskz_loadu_epi16(present, at)));
            _mm256_mask_storeu_epi16(at, present, (__m256i)_mm512_cvtneps_pbh(sum[r][t]));
        }
    }
}

// All rows over one or two tiles. The two tiles behind them (`next`, may be NULL) are fetched in the first pass, or half
// each in the first two: memory is busy while sums are.
static void passes(const bf16 *panel, int64_t apart, const bf16 *next, int tiles, int64_t n_rows, int64_t n_inputs,
                   Rows x, Results y, int64_t first, int64_t n_outputs) {
    int64_t r = 0;
#define CASE(n, f, t) \
    if (fetched == f && tiles == t) pass(panel, apart, next, f, t, n, n_inputs, rows, to, first, n_outputs);
#define PASS(n)                                                                  \
    for (; r + n <= n_rows; r += n) {                                            \
        Rows rows = {x.numbers + r * x.stride, x.stride};                        \
        Results to = {y.numbers + r * y.stride, y.stride, y.adds, y.bias};       \
        int fetched = next == NULL || r > 12 ? 0 : n_rows > 12 ? 1 : 2;          \
        CASE(n, 0, 1) CASE(n, 0, 2) CASE(n, 1, 2) CASE(n, 2, 2)                  \
        if (fetched == 1) next += apart;                                         \
    }
    PASS(12) PASS(8) PASS(4) PASS(3) PASS(2) PASS(1)
#undef PASS
#undef CASE
}

// A thread's part of y = x · Wᵀ; others may still be at theirs when it returns. Products of the same rows and outputs
// are parted alike. `scratch` holds two tiles' pairs, for weights that are not laid out.
static void share(const Weight *w, int64_t n_rows, Rows x, Results y, bf16 *scratch) {
    int64_t together = n_tiles(w) > 4 * omp_get_num_threads() ? TILES : 1;  // few tiles: as many threads as can be
    int64_t groups = (n_tiles(w) + together - 1) / together, blocks = (n_rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
    int64_t apart = n_pairs(w) * 2 * LANES, most = (n_rows + blocks - 1) / (blocks ? blocks : 1);
    most += (12 - most % 12) % 12;
#pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < blocks * groups; i++) {
        int64_t row = i / groups * most, tile = i % groups * together;
        int64_t here = n_rows - row < most ? n_rows - row : most;
        int tiles = tile + together <= n_tiles(w) ? (int)together : 1;
        const bf16 *panel = scratch, *next = NULL;
        if (w->stride) {
            for (int t = 0; t < tiles; t++) lay_out(w, tile + t, scratch + t * apart);
        } else {
            panel = w->numbers + tile * apart;
            next = together == TILES && tile + 2 * TILES <= n_tiles(w) ? panel + TILES * apart : NULL;
        }
        Rows rows = {x.numbers + row * x.stride, x.stride};
        Results to = {y.numbers + row * y.stride, y.stride, y.adds, y.bias};
        passes(panel, apart, next, tiles, here, w->n_inputs, rows, to, tile * LANES, w->n_outputs);
    }
}

static bf16 *scratch_for(const Weight *w) {
    return w->stride ? aligned_alloc(64, n_pairs(w) * TILES * 2 * LANES * sizeof(bf16)) : NULL;
}

// y (T, O) = x (T, I) · Wᵀ, added to y if `adds`, or to the bias if there is one. `turned`: W is given as (I, O).
void panel_product(int64_t n_rows, int64_t n_outputs, int64_t n_inputs, const bf16 *w_OI, int64_t stride_w,
                   const bf16 *x_TI, int64_t stride_x, bf16 *y_TO, int64_t stride_y, int64_t turned, int64_t adds,
                   const float *bias_O) {
    Weight w = {w_OI, n_outputs, n_inputs, stride_w, (int)turned};
    Rows x = {x_TI, stride_x};
    Results y = {y_TO, stride_y, (int)adds, bias_O};
#pragma omp parallel if (n_rows * n_outputs * n_inputs > PARALLEL_WORK)
    {
        bf16 *scratch = scratch_for(&w);
        share(&w, n_rows, x, y, scratch);
        free(scratch);
    }
}

// A step's site: y = x · Wᵀ + bias, then h = (x · Aᵀ) ∘ mask and y += h · Bᵀ, each rounded. All weights laid out; the
// mask (T, R) may be NULL.
void panel_site(int64_t n_rows, int64_t n_outputs, int64_t n_inputs, int64_t n_ranks, const bf16 *w_OI,
                const float *bias_O, const bf16 *a_RI, const bf16 *b_OR, const bf16 *mask_TR, const bf16 *x_TI,
                bf16 *h_TR, bf16 *y_TO) {
    Weight w = {w_OI, n_outputs, n_inputs}, a = {a_RI, n_ranks, n_inputs}, b = {b_OR, n_outputs, n_ranks};
    Rows x = {x_TI, n_inputs}, h = {h_TR, n_ranks};
    Results to_h = {h_TR, n_ranks, 0, NULL}, y = {y_TO, n_outputs, 0, bias_O}, sum = {y_TO, n_outputs, 1, NULL};
#pragma omp parallel if (n_rows * n_outputs * n_inputs > PARALLEL_WORK)
    {
        share(&a, n_rows, x, to_h, NULL);
        share(&w, n_rows, x, y, NULL);
#pragma omp barrier
        if (mask_TR) {
#pragma omp for schedule(static)
            for (int64_t i = 0; i < n_rows * n_ranks; i++) h_TR[i] = mask_TR[i] ? h_TR[i] : 0;
        }
        share(&b, n_rows, h, sum, NULL);  // the outputs that this thread has just computed
    }
}

// W laid out, (O / 16, P, 16, 2).
void panel_lay_out(int64_t n_outputs, int64_t n_inputs, const bf16 *w_OI, int64_t stride, bf16 *panels) {
    Weight w = {w_OI, n_outputs, n_inputs, stride, 0};
#pragma omp parallel for schedule(static) if (n_outputs * n_inputs > PARALLEL_WORK)
    for (int64_t tile = 0; tile < n_tiles(&w); tile++) lay_out(&w, tile, panels + tile * n_pairs(&w) * 2 * LANES);
}

#endif
