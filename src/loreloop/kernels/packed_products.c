// Products with weights of 4 or 8 bits that are never unpacked into memory: y = x · Wᵀ, bf16 in and out, fp32 sums.
//
// A weight is value = scale · code + offset, rounded to bf16, with a scale (and offset) for 32 neighbouring inputs of an
// output; both are kept as they came, 16 bits each. An output's sum runs over its inputs in ascending pairs, one
// accumulator, whatever the number of rows: a row's result does not depend on the rows beside it.
//
// Codes lie by tiles of 16 outputs, then by pairs of inputs, in the order in which the processor multiplies them:
//
//   lane i of 16:  output i / 2, input 2p + i % 2  |  output 8 + i / 2, same input     4 bits: low and high half of a byte
//                                                                                      8 bits: byte i and byte 16 + i
// Legend: T rows, I inputs, O outputs.

#if defined(__AVX512BF16__) && defined(__AVX512VL__) && defined(__AVX512BW__)

#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint16_t bf16;

#define GROUP 32       // inputs that share a scale
#define PAIRS 16       // of a group
#define LANES 16       // outputs of a tile
#define MOST_ROWS 12   // that share a pass over the weights: 24 accumulators of 32 registers
#define PARALLEL_WORK 65536

typedef struct {
    const uint8_t *codes;
    const uint16_t *scales, *offsets;  // offsets may be NULL: zero for 8 bits, -8 · scale for 4
    int64_t n_inputs;
    int32_t bits, half;  // half: scales are IEEE halves, else bf16
} weights;

static inline __m512 wide16(__m256i x, int half) {
    return half ? _mm512_cvtph_ps(x) : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

// Each of 16 numbers twice in a row: those of the first 8 outputs, then those of the other 8.
static inline void doubled(__m512 x, __m512 out[2]) {
    const __m512i first = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    out[0] = _mm512_permutexvar_ps(first, x);
    out[1] = _mm512_permutexvar_ps(_mm512_add_epi32(first, _mm512_set1_epi32(8)), x);
}

// One tile's group: its scales and offsets by lanes, and where its codes begin.
typedef struct {
    __m512 scale[2], offset[2];
    const uint8_t *codes;
} group;

static inline group group_at(const weights *w, int64_t tile, int64_t g) {
    int64_t n_groups = w->n_inputs / GROUP, at = (tile * n_groups + g) * LANES;
    group out;
    __m512 scale = wide16(_mm256_loadu_si256((const void *)(w->scales + at)), w->half), offset;
    if (w->offsets)
        offset = wide16(_mm256_loadu_si256((const void *)(w->offsets + at)), w->half);
    else
        offset = w->bits == 4 ? _mm512_mul_ps(scale, _mm512_set1_ps(-8.0f)) : _mm512_setzero_ps();
    doubled(scale, out.scale);
    doubled(offset, out.offset);
    out.codes = w->codes + (tile * n_groups + g) * PAIRS * LANES * (w->bits / 4);
    return out;
}

// The 32 weights of a pair of inputs, as the dot product takes them.
static inline __m512bh pair_at(const group *g, int64_t p, int bits) {
    __m512 low, high;
    if (bits == 4) {
        const __m512 number = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        __m512i codes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(g->codes + p * LANES)));
        low = _mm512_permutexvar_ps(codes, number);  // looks at the low 4 bits only
        high = _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 4), number);
    } else {
        const uint8_t *at = g->codes + p * 2 * LANES;
        low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)at)));
        high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)(at + LANES))));
    }
    low = _mm512_fmadd_ps(low, g->scale[0], g->offset[0]);
    high = _mm512_fmadd_ps(high, g->scale[1], g->offset[1]);
    return _mm512_cvtne2ps_pbh(high, low);
}

static inline __m512bh both(const bf16 *x) {
    int32_t pair;
    memcpy(&pair, x, 4);
    return (__m512bh)_mm512_set1_epi32(pair);
}

static inline void put(bf16 *y, __m512 sum) { _mm256_storeu_si256((void *)y, (__m256i)_mm512_cvtneps_pbh(sum)); }

// Up to 4 rows over two tiles, weights unpacked in registers.
static inline __attribute__((always_inline)) void few_rows(const weights *w, int64_t tile, const int n_tiles,
                                                           const int n_rows, const bf16 *x, bf16 *y, int64_t n_outputs,
                                                           const int bits) {
    __m512 sum[4][2];
    for (int r = 0; r < n_rows; r++)
        for (int t = 0; t < n_tiles; t++) sum[r][t] = _mm512_setzero_ps();
    for (int64_t g = 0; g < w->n_inputs / GROUP; g++) {
        group at[2];
        for (int t = 0; t < n_tiles; t++) at[t] = group_at(w, tile + t, g);
        for (int p = 0; p < PAIRS; p++)
            for (int t = 0; t < n_tiles; t++) {
                __m512bh weight = pair_at(&at[t], p, bits);
                for (int r = 0; r < n_rows; r++)
                    sum[r][t] =
                        _mm512_dpbf16_ps(sum[r][t], both(x + r * w->n_inputs + g * GROUP + 2 * p), weight);
            }
    }
    for (int r = 0; r < n_rows; r++)
        for (int t = 0; t < n_tiles; t++) put(y + r * n_outputs + (tile + t) * LANES, sum[r][t]);
}

// Unpacked weights of two tiles, (I / 2, 2, 32) bf16.
static void unpack(const weights *w, int64_t tile, int n_tiles, bf16 *panel) {
    for (int64_t g = 0; g < w->n_inputs / GROUP; g++)
        for (int t = 0; t < n_tiles; t++) {
            group at = group_at(w, tile + t, g);
            for (int p = 0; p < PAIRS; p++)
                _mm512_storeu_si512(panel + ((g * PAIRS + p) * 2 + t) * 32,
                                    (__m512i)(w->bits == 4 ? pair_at(&at, p, 4) : pair_at(&at, p, 8)));
        }
}

static inline __attribute__((always_inline)) void rows_of_panel(const bf16 *panel, int64_t n_inputs, const int n_tiles,
                                                                const int n_rows, const bf16 *x, bf16 *y,
                                                                int64_t n_outputs) {
    __m512 sum[MOST_ROWS][2];
    for (int r = 0; r < n_rows; r++)
        for (int t = 0; t < n_tiles; t++) sum[r][t] = _mm512_setzero_ps();
    for (int64_t p = 0; p < n_inputs / 2; p++) {
        __m512bh weight[2];
        for (int t = 0; t < n_tiles; t++) weight[t] = (__m512bh)_mm512_loadu_si512(panel + (p * 2 + t) * 32);
        for (int r = 0; r < n_rows; r++)
            for (int t = 0; t < n_tiles; t++)
                sum[r][t] = _mm512_dpbf16_ps(sum[r][t], both(x + r * n_inputs + 2 * p), weight[t]);
    }
    for (int r = 0; r < n_rows; r++)
        for (int t = 0; t < n_tiles; t++) put(y + r * n_outputs + t * LANES, sum[r][t]);
}

static void any_rows_of_panel(const bf16 *panel, int64_t n_inputs, const int n_tiles, int64_t n_rows, const bf16 *x,
                              bf16 *y, int64_t n_outputs) {
    int64_t r = 0;
#define ROWS(n)                                                                                                  \
    for (; r + n <= n_rows; r += n)                                                                              \
        if (n_tiles == 2)                                                                                        \
            rows_of_panel(panel, n_inputs, 2, n, x + r * n_inputs, y + r * n_outputs, n_outputs);                \
        else                                                                                                     \
            rows_of_panel(panel, n_inputs, 1, n, x + r * n_inputs, y + r * n_outputs, n_outputs);
    ROWS(12) ROWS(8) ROWS(4) ROWS(2) ROWS(1)
#undef ROWS
}

static void any_few_rows(const weights *w, int64_t tile, int n_tiles, int64_t n_rows, const bf16 *x, bf16 *y,
                         int64_t n_outputs) {
#define CASE(n, tiles, b) \
    if (n_rows == n && n_tiles == tiles && w->bits == b) few_rows(w, tile, tiles, n, x, y, n_outputs, b);
#define CASES(n) CASE(n, 1, 4) CASE(n, 2, 4) CASE(n, 1, 8) CASE(n, 2, 8)
    CASES(1) CASES(2) CASES(3) CASES(4)
#undef CASES
#undef CASE
}

// y (T, O) = x (T, I) · Wᵀ; I a multiple of 32, O of 16.
void packed_product(int64_t n_rows, int64_t n_outputs, int64_t n_inputs, int64_t bits, int64_t half,
                    const uint8_t *codes, const uint16_t *scales, const uint16_t *offsets, const bf16 *x, bf16 *y) {
    const weights w = {codes, scales, offsets, n_inputs, (int32_t)bits, (int32_t)half};
    int64_t n_tiles = n_outputs / LANES;
#pragma omp parallel if (n_outputs * n_inputs > PARALLEL_WORK)
    {
        bf16 *panel = n_rows > 4 ? aligned_alloc(64, n_inputs * 2 * LANES * sizeof(bf16)) : NULL;
#pragma omp for schedule(static)
        for (int64_t tile = 0; tile < n_tiles; tile += 2) {
            int here = tile + 1 < n_tiles ? 2 : 1;
            if (panel) {
                unpack(&w, tile, here, panel);
                any_rows_of_panel(panel, n_inputs, here, n_rows, x, y + tile * LANES, n_outputs);
            } else {  // few rows, or no memory for a panel
                for (int64_t r = 0; r < n_rows; r += 4)
                    any_few_rows(&w, tile, here, n_rows - r < 4 ? n_rows - r : 4, x + r * n_inputs, y + r * n_outputs,
                                 n_outputs);
            }
        }
        free(panel);
    }
}

// The weights themselves, (O, I) bf16.
void unpacked(int64_t n_outputs, int64_t n_inputs, int64_t bits, int64_t half, const uint8_t *codes,
              const uint16_t *scales, const uint16_t *offsets, bf16 *w_OI) {
    const weights w = {codes, scales, offsets, n_inputs, (int32_t)bits, (int32_t)half};
#pragma omp parallel for schedule(static) if (n_outputs * n_inputs > PARALLEL_WORK)
    for (int64_t tile = 0; tile < n_outputs / LANES; tile++)
        for (int64_t g = 0; g < n_inputs / GROUP; g++) {
            group at = group_at(&w, tile, g);
            uint32_t pair[LANES];
            for (int p = 0; p < PAIRS; p++) {
                _mm512_storeu_si512(pair, (__m512i)(bits == 4 ? pair_at(&at, p, 4) : pair_at(&at, p, 8)));
                for (int o = 0; o < LANES; o++)
                    memcpy(w_OI + (tile * LANES + o) * n_inputs + g * GROUP + 2 * p, &pair[o], 4);
            }
        }
}

#endif
