// Products with weights of 4 or 8 bits that are never unpacked into memory: y = x · Wᵀ, bf16 in and out, fp32 sums.
//
// A weight is value = scale · code + offset, rounded to bf16, with a scale (and offset) for 32 neighbouring inputs of an
// output; both are kept as they came, 16 bits each. An output's sum runs over its inputs in ascending order, whatever the
// number of rows: a row's result does not depend on the rows beside it. Where bf16 is multiplied it is one sum of pairs;
// elsewhere even and odd inputs have a sum each, added at the end, since that is how neighbouring lanes hold them.
//
// Codes lie by tiles of 16 outputs, then by pairs of inputs, in the order in which the processor multiplies them:
//
//   lane i of 16:  output i / 2, input 2p + i % 2  |  output 8 + i / 2, same input     4 bits: low and high half of a byte
//                                                                                      8 bits: byte i and byte 16 + i
// Legend: T rows, I inputs, O outputs.

#include <stdlib.h>

#include "pairs.h"

#ifdef VECTORS

#define GROUP 32       // inputs that share a scale
#define PAIRS 16       // of a group
#define PARTS (2 * LANES / WIDTH)  // vectors of a tile's weights for a pair of inputs
#define PARALLEL_WORK 65536

#ifdef MULTIPLIES_BF16
typedef __m512bh Part;
#define SUMS 1         // vectors of a tile's sums
#define PANEL_TILES 2  // unpacked together
#define MOST_ROWS 12   // that share a pass over unpacked weights: 24 sums of 32 registers
#else
typedef Vec Part;
#define SUMS PARTS
#define PANEL_TILES 1
#define MOST_ROWS (WIDTH == 16 ? 12 : 3)
#endif
#define FEW_TILES (WIDTH == 16 ? 2 : 1)
#define FEW_ROWS (WIDTH == 16 ? 4 : 2)  // for so many, weights are unpacked in registers
#define BLOCK_ROWS 240                  // whose widened inputs stay near while weights are unpacked once for all of them

typedef struct {
    const uint8_t *codes;
    const uint16_t *scales, *offsets;  // offsets may be NULL: zero for 8 bits, -8 · scale for 4
    int64_t n_inputs;
    int32_t bits, half;  // half: scales are IEEE halves, else bf16
} weights;

// One tile's group: its scales and offsets by lanes, and where its codes begin.
typedef struct {
    Vec scale[PARTS], offset[PARTS];
    const uint8_t *codes;
} group;

// Sixteen scales, each twice in a row.
static inline void doubled(const uint16_t *scales, int half, Vec out[PARTS]) {
    for (int v = 0; v < VECS; v++) {
        const uint16_t *from = scales + v * WIDTH;
        each_twice(half ? from_ieee_halves(from) : widen(from), out + 2 * v);
    }
}

static inline group group_at(const weights *w, int64_t tile, int64_t g) {
    int64_t n_groups = w->n_inputs / GROUP, at = (tile * n_groups + g) * LANES;
    group out;
    doubled(w->scales + at, w->half, out.scale);
    if (w->offsets)
        doubled(w->offsets + at, w->half, out.offset);
    else
        for (int i = 0; i < PARTS; i++) out.offset[i] = multiply(out.scale[i], splat(w->bits == 4 ? -8.0f : 0.0f));
    out.codes = w->codes + (tile * n_groups + g) * PAIRS * LANES * (w->bits / 4);
    return out;
}

// The 32 weights of a pair of inputs, as their products take them.
INLINED void parts_at(const group *g, int64_t p, const int bits, Part out[SUMS]) {
    Vec value[PARTS];
    for (int i = 0; i < VECS; i++) {
        const uint8_t *at = g->codes + p * LANES * (bits / 4) + i * WIDTH;
        if (bits == 4) {
            Words codes = load_bytes(at);
            value[i] = low_four(codes);
            value[VECS + i] = low_four(down_4(codes));
        } else {
            value[i] = from_signed_bytes(at);
            value[VECS + i] = from_signed_bytes(at + LANES);
        }
    }
    for (int i = 0; i < PARTS; i++) value[i] = fused(value[i], g->scale[i], g->offset[i]);
#ifdef MULTIPLIES_BF16
    out[0] = _mm512_cvtne2ps_pbh(value[1], value[0]);
#else
    for (int i = 0; i < PARTS; i++) out[i] = rounded(value[i]);
#endif
}

// A row's pair of inputs, as many times as there are outputs in a part.
INLINED Part pair_of(const Held *pair) {
#ifdef MULTIPLIES_BF16
    return spread(pair);
#else
    return splat_two(pair);
#endif
}

INLINED Vec add_part(Vec sum, Part x, Part w) {
#ifdef MULTIPLIES_BF16
    return add_products(sum, x, w);
#else
    return fused(x, w, sum);
#endif
}

INLINED void put(bf16 *y, const Vec sum[SUMS]) {
#ifdef MULTIPLIES_BF16
    store_narrow(y, sum[0]);
#else
    for (int v = 0; v < VECS; v++) store_narrow(y + v * WIDTH, neighbours_added(sum[2 * v], sum[2 * v + 1]));
#endif
}

// A few rows over a tile or two, weights unpacked in registers.
INLINED void few_rows(const weights *w, int64_t tile, const int n_tiles, const int n_rows, const Held *x, bf16 *y,
                      int64_t n_outputs, const int bits) {
    Vec sum[FEW_ROWS][FEW_TILES][SUMS];
    for (int r = 0; r < n_rows; r++)
        for (int t = 0; t < n_tiles; t++)
            for (int i = 0; i < SUMS; i++) sum[r][t][i] = zeros();
    for (int64_t g = 0; g < w->n_inputs / GROUP; g++) {
        group at[FEW_TILES];
        for (int t = 0; t < n_tiles; t++) at[t] = group_at(w, tile + t, g);
        for (int p = 0; p < PAIRS; p++)
            for (int t = 0; t < n_tiles; t++) {
                Part weight[SUMS];
                parts_at(&at[t], p, bits, weight);
                for (int r = 0; r < n_rows; r++) {
                    Part pair = pair_of(x + r * w->n_inputs + g * GROUP + 2 * p);
                    for (int i = 0; i < SUMS; i++) sum[r][t][i] = add_part(sum[r][t][i], pair, weight[i]);
                }
            }
    }
    for (int r = 0; r < n_rows; r++)
        for (int t = 0; t < n_tiles; t++) put(y + r * n_outputs + (tile + t) * LANES, sum[r][t]);
}

// Unpacked weights of some tiles, (I / 2, tiles, parts).
static void unpack(const weights *w, int64_t tile, int n_tiles, Part *panel) {
    for (int64_t g = 0; g < w->n_inputs / GROUP; g++)
        for (int t = 0; t < n_tiles; t++) {
            group at = group_at(w, tile + t, g);
            for (int p = 0; p < PAIRS; p++) {
                Part *to = panel + ((g * PAIRS + p) * PANEL_TILES + t) * SUMS;
                if (w->bits == 4)
                    parts_at(&at, p, 4, to);
                else
                    parts_at(&at, p, 8, to);
            }
        }
}

INLINED void rows_of_panel(const Part *panel, int64_t n_inputs, const int n_tiles, const int n_rows, const Held *x,
                           bf16 *y, int64_t n_outputs) {
    Vec sum[MOST_ROWS][PANEL_TILES * SUMS];
    for (int r = 0; r < n_rows; r++)
        for (int i = 0; i < n_tiles * SUMS; i++) sum[r][i] = zeros();
    for (int64_t p = 0; p < n_inputs / 2; p++) {
        Part weight[PANEL_TILES * SUMS];
        for (int i = 0; i < n_tiles * SUMS; i++) weight[i] = panel[p * PANEL_TILES * SUMS + i];
        for (int r = 0; r < n_rows; r++) {
            Part pair = pair_of(x + r * n_inputs + 2 * p);
            for (int i = 0; i < n_tiles * SUMS; i++) sum[r][i] = add_part(sum[r][i], pair, weight[i]);
        }
    }
    for (int r = 0; r < n_rows; r++)
        for (int t = 0; t < n_tiles; t++) put(y + r * n_outputs + t * LANES, sum[r] + t * SUMS);
}

static void any_rows_of_panel(const Part *panel, int64_t n_inputs, const int n_tiles, int64_t n_rows, const Held *x,
                              bf16 *y, int64_t n_outputs) {
    int64_t r = 0;
#define ROWS(n)                                                                                               \
    for (; n <= MOST_ROWS && r + n <= n_rows; r += n)                                                         \
        if (n_tiles == PANEL_TILES)                                                                           \
            rows_of_panel(panel, n_inputs, PANEL_TILES, n, x + r * n_inputs, y + r * n_outputs, n_outputs);   \
        else                                                                                                  \
            rows_of_panel(panel, n_inputs, 1, n, x + r * n_inputs, y + r * n_outputs, n_outputs);
#if WIDTH == 16
    ROWS(12) ROWS(8) ROWS(4)
#else
    ROWS(3)
#endif
    ROWS(2) ROWS(1)
#undef ROWS
}

static void any_few_rows(const weights *w, int64_t tile, int n_tiles, int64_t n_rows, const Held *x, bf16 *y,
                         int64_t n_outputs) {
#define CASE(n, tiles, b) \
    if (n_rows == n && n_tiles == tiles && w->bits == b) few_rows(w, tile, tiles, n, x, y, n_outputs, b);
#if WIDTH == 16
#define CASES(n) CASE(n, 1, 4) CASE(n, 2, 4) CASE(n, 1, 8) CASE(n, 2, 8)
    CASES(1) CASES(2) CASES(3) CASES(4)
#else
#define CASES(n) CASE(n, 1, 4) CASE(n, 1, 8)
    CASES(1) CASES(2)
#endif
#undef CASES
#undef CASE
}

// The rows of a block over all tiles; called by every thread of a team.
static void block(const weights *w, int64_t n_tiles, int64_t n_rows, const bf16 *x, Held *held, bf16 *y) {
    int64_t together = n_rows > FEW_ROWS ? PANEL_TILES : FEW_TILES, n_outputs = n_tiles * LANES;
    Part *panel = n_rows > FEW_ROWS ? room_for(w->n_inputs / 2 * PANEL_TILES * SUMS * sizeof(Part)) : NULL;
    const Held *rows = (const Held *)x;
    if (held) {
#pragma omp for schedule(static)
        for (int64_t r = 0; r < n_rows; r++) hold(x + r * w->n_inputs, w->n_inputs, held + r * w->n_inputs);
        rows = held;
    }
#pragma omp for schedule(static)
    for (int64_t tile = 0; tile < n_tiles; tile += together) {
        int here = tile + together <= n_tiles ? (int)together : 1;
        if (panel) {
            unpack(w, tile, here, panel);
            any_rows_of_panel(panel, w->n_inputs, here, n_rows, rows, y + tile * LANES, n_outputs);
        } else {
            any_few_rows(w, tile, here, n_rows, rows, y, n_outputs);
        }
    }
    free(panel);
}

// y (T, O) = x (T, I) · Wᵀ; I a multiple of 32, O of 16.
void packed_product(int64_t n_rows, int64_t n_outputs, int64_t n_inputs, int64_t bits, int64_t half,
                    const uint8_t *codes, const uint16_t *scales, const uint16_t *offsets, const bf16 *x, bf16 *y) {
    const weights w = {codes, scales, offsets, n_inputs, (int32_t)bits, (int32_t)half};
#ifdef MULTIPLIES_BF16
    int64_t most = n_rows;
    Held *held = NULL;  // rows are read where they lie
#else
    int64_t most = n_rows < BLOCK_ROWS ? n_rows : BLOCK_ROWS;
    Held *held = room_for(most * n_inputs * sizeof(Held));
#endif
#pragma omp parallel if (n_outputs * n_inputs > PARALLEL_WORK)
    for (int64_t r = 0; r < n_rows; r += most)
        block(&w, n_outputs / LANES, n_rows - r < most ? n_rows - r : most, x + r * n_inputs, held, y + r * n_outputs);
    free(held);
}

// The weights themselves, (O, I) bf16.
void unpacked(int64_t n_outputs, int64_t n_inputs, int64_t bits, int64_t half, const uint8_t *codes,
              const uint16_t *scales, const uint16_t *offsets, bf16 *w_OI) {
    const weights w = {codes, scales, offsets, n_inputs, (int32_t)bits, (int32_t)half};
#pragma omp parallel for schedule(static) if (n_outputs * n_inputs > PARALLEL_WORK)
    for (int64_t tile = 0; tile < n_outputs / LANES; tile++)
        for (int64_t g = 0; g < n_inputs / GROUP; g++) {
            group at = group_at(&w, tile, g);
            bf16 pair[LANES][2];
            for (int p = 0; p < PAIRS; p++) {
                Part part[SUMS];
                if (bits == 4)
                    parts_at(&at, p, 4, part);
                else
                    parts_at(&at, p, 8, part);
#ifdef MULTIPLIES_BF16
                memcpy(pair, part, sizeof(pair));
#else
                for (int i = 0; i < PARTS; i++) store_narrow(pair[0] + i * WIDTH, part[i]);
#endif
                for (int o = 0; o < LANES; o++)
                    memcpy(w_OI + (tile * LANES + o) * n_inputs + g * GROUP + 2 * p, pair[o], sizeof(pair[o]));
            }
        }
}

#endif
