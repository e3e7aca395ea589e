// Products of bf16 rows with a weight (O, I): y = x · Wᵀ, fp32 sums, bf16 in and out.
//
// An output's sum runs over its inputs in ascending pairs, in one accumulator, whatever the number of rows, tiles or
// threads: a row's result does not depend on the rows beside it, so sampling one token gives the bits of training on
// thousands.
//
// Weights lie by tiles of 16 outputs, then by pairs of inputs, as the dot product takes them: (O / 16, I / 2, 16, 2),
// zeros behind the last output and input. A weight that changes is laid out tile by tile as it is used.
//
// Legend: T rows, I inputs, O outputs, R ranks, P pairs of inputs.

#include <omp.h>
#include <stdlib.h>

#include "pairs.h"

#ifdef VECTORS

#if WIDTH == 16
#define TILES 2        // that rows pass together: with 12 rows 24 sums, of 32 registers
#define MOST_ROWS 12
#else
#define TILES 1        // of two vectors: with 5 rows 10 sums, and 4 vectors of weights, of 16 registers
#define MOST_ROWS 5
#endif
#define NEAR_ROWS 528           // whose inputs stay in the second cache while the weights pass by
#define NEAR_BYTES (512 * 1024)  // the same of rows that were widened, with long ones as well
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

// A block of rows as they are held, `stride` numbers apart.
typedef struct {
    const Held *numbers;
    int64_t stride;
} HeldRows;

// A thread's own room: two tiles' pairs, for weights that are not laid out, and a block of rows.
typedef struct {
    bf16 *panel;
    Held *rows;
} Scratch;

// Lays out one tile of a weight given by rows of inputs, (P, 16, 2).
static void lay_out_turned(const Weight *w, int64_t tile, bf16 *panel) {
    for (int64_t p = 0; p < n_pairs(w); p++)
        for (int v = 0; v < VECS; v++) {
            int64_t output = tile * LANES + v * WIDTH, left = w->n_outputs - output;
            const bf16 *row = w->numbers + 2 * p * w->stride + output;
            Words first = load_some_halves(row, left), second = splat_word(0);
            if (2 * p + 1 < w->n_inputs) second = load_some_halves(row + w->stride, left);
            store_words(panel + p * 2 * LANES + v * 2 * WIDTH, either(first, up_16(second)));
        }
}

// The same of one given by rows of outputs.
static void lay_out(const Weight *w, int64_t tile, bf16 *panel) {
    if (w->turned) {
        lay_out_turned(w, tile, panel);
        return;
    }
    for (int v = 0; v < VECS; v++)
        for (int64_t p = 0; p < n_pairs(w); p += WIDTH) {
            Words row[WIDTH];
            for (int o = 0; o < WIDTH; o++) {
                int64_t output = tile * LANES + v * WIDTH + o;
                const bf16 *from = w->numbers + output * w->stride + 2 * p;
                row[o] = output < w->n_outputs ? load_some_pairs(from, w->n_inputs - 2 * p) : splat_word(0);
            }
            transpose(row);
            for (int i = 0; i < WIDTH && p + i < n_pairs(w); i++)
                store_words(panel + (p + i) * 2 * LANES + v * 2 * WIDTH, row[i]);
        }
}

// Rows of x over `tiles` tiles from `panel` on, which stand `apart` numbers apart. Meanwhile `fetched` lines a pair are
// fetched from `soon` on, where later rows or tiles will read.
INLINED void pass(const bf16 *panel, int64_t apart, const bf16 *soon, const int fetched, const int tiles,
                  const int n_rows, int64_t n_pairs, HeldRows x, Results y, int64_t first, int64_t n_outputs) {
    Vec sum[MOST_ROWS][TILES * VECS];
    for (int r = 0; r < n_rows; r++)
        for (int t = 0; t < tiles * VECS; t++) sum[r][t] = zeros();
    for (int64_t p = 0; p < n_pairs; p++) {
        Factor weight[TILES * VECS];
        for (int t = 0; t < tiles * VECS; t++)
            weight[t] = factor(load_words(panel + t / VECS * apart + p * 2 * LANES + t % VECS * 2 * WIDTH));
        for (int f = 0; f < fetched; f++)
            _mm_prefetch((const char *)(soon + (p * fetched + f) * 2 * LANES), _MM_HINT_T1);
        for (int r = 0; r < n_rows; r++) {
            Factor pair = spread(x.numbers + r * x.stride + 2 * p);
            for (int t = 0; t < tiles * VECS; t++) sum[r][t] = add_products(sum[r][t], pair, weight[t]);
        }
    }
    for (int t = 0; t < tiles * VECS; t++) {
        int64_t output = first + t * WIDTH, left = n_outputs - output;
        for (int r = 0; r < n_rows; r++) {
            bf16 *at = y.numbers + r * y.stride + output;
            if (y.bias) sum[r][t] = add(sum[r][t], load_some(y.bias + output, left));
            if (y.adds) sum[r][t] = add(sum[r][t], widen_some(at, left));
            store_some_narrow(at, left, sum[r][t]);
        }
    }
}

// All rows over one or two tiles. The two tiles behind them (`next`, may be NULL) are fetched in the first pass, or half
// each in the first two: memory is busy while sums are.
static void passes(const bf16 *panel, int64_t apart, const bf16 *next, int tiles, int64_t n_rows, int64_t n_pairs,
                   HeldRows x, Results y, int64_t first, int64_t n_outputs) {
    int64_t r = 0;
#define CASE(n, f, t) \
    if (fetched == f && tiles == t) pass(panel, apart, next, f, t, n, n_pairs, rows, to, first, n_outputs);
#if TILES == 1
#define CASES(n) CASE(n, 0, 1) CASE(n, 1, 1)
#else
#define CASES(n) CASE(n, 0, 1) CASE(n, 0, 2) CASE(n, 1, 2) CASE(n, 2, 2)
#endif
#define PASS(n)                                                                             \
    for (; r + n <= n_rows; r += n) {                                                       \
        HeldRows rows = {x.numbers + r * x.stride, x.stride};                               \
        Results to = {y.numbers + r * y.stride, y.stride, y.adds, y.bias};                  \
        int fetched = next == NULL || r > MOST_ROWS ? 0 : n_rows > MOST_ROWS ? 1 : TILES;   \
        CASES(n)                                                                            \
        if (fetched == 1) next += apart;                                                    \
    }
    PASS(MOST_ROWS)
#if MOST_ROWS > 8
    PASS(8)
#endif
    PASS(4) PASS(3) PASS(2) PASS(1)
#undef PASS
#undef CASES
#undef CASE
}

// How many rows a thread takes through the weights together: as many as stay near, in whole passes, all alike. Where
// rows must be widened first and there are enough, each thread has rows of its own, so that none are widened twice.
static int64_t block_rows(const Weight *w, int64_t n_rows) {
#ifdef MULTIPLIES_BF16
    int64_t most = NEAR_ROWS, least_blocks = 1;
#else
    int64_t width = n_pairs(w) > 0 ? n_pairs(w) * 2 : 1;  // of a row as it is held; without inputs there is nothing to hold
    int64_t most = NEAR_BYTES / (width * (int64_t)sizeof(Held)), threads = omp_get_num_threads();
    int64_t enough = threads * (n_tiles(w) > 4 * threads ? 8 : 2) * MOST_ROWS;
    int64_t least_blocks = n_rows >= enough ? threads : 1;
    most = most > 2 * MOST_ROWS ? most : 2 * MOST_ROWS;
#endif
    int64_t blocks = (n_rows + most - 1) / most;
    blocks = blocks > least_blocks ? blocks : least_blocks;
    int64_t passes = (n_rows + blocks * MOST_ROWS - 1) / (blocks * MOST_ROWS);
    return passes > 0 ? passes * MOST_ROWS : MOST_ROWS;
}

// Rows as the product takes them: where they lie, or in `held`.
static HeldRows held_rows(Rows x, int64_t n_rows, int64_t n_inputs, Held *held) {
#ifdef MULTIPLIES_BF16
    if (n_inputs % 2 == 0) return (HeldRows){x.numbers, x.stride};
#endif
    int64_t stride = n_inputs + n_inputs % 2;
    for (int64_t r = 0; r < n_rows; r++) hold(x.numbers + r * x.stride, n_inputs, held + r * stride);
    return (HeldRows){held, stride};
}

// A thread's part of y = x · Wᵀ; others may still be at theirs when it returns. Products of the same rows and outputs
// are parted alike.
static void share(const Weight *w, int64_t n_rows, Rows x, Results y, Scratch scratch) {
    int64_t together = n_tiles(w) > 4 * omp_get_num_threads() ? TILES : 1;  // few tiles: as many threads as can be
    int64_t groups = (n_tiles(w) + together - 1) / together, most = block_rows(w, n_rows);
    int64_t blocks = (n_rows + most - 1) / most, apart = n_pairs(w) * 2 * LANES, held_from = -1;
    HeldRows rows = {NULL, 0};
#pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < blocks * groups; i++) {
        int64_t row = i / groups * most, tile = i % groups * together;
        int64_t here = n_rows - row < most ? n_rows - row : most;
        int tiles = tile + together <= n_tiles(w) ? (int)together : 1;
        const bf16 *panel = scratch.panel, *next = NULL;
        if (w->stride) {
            for (int t = 0; t < tiles; t++) lay_out(w, tile + t, scratch.panel + t * apart);
        } else {
            panel = w->numbers + tile * apart;
            next = together == TILES && tile + 2 * TILES <= n_tiles(w) ? panel + TILES * apart : NULL;
        }
        if (row != held_from) {
            rows = held_rows((Rows){x.numbers + row * x.stride, x.stride}, here, w->n_inputs, scratch.rows);
            held_from = row;
        }
        Results to = {y.numbers + row * y.stride, y.stride, y.adds, y.bias};
        passes(panel, apart, next, tiles, here, n_pairs(w), rows, to, tile * LANES, w->n_outputs);
    }
}

// Room for a product of n rows by any of the weights (the last one is NULL).
static Scratch scratch_for(int64_t n_rows, const Weight *weights[]) {
    int64_t most_panel = 0, most_rows = 0;
    for (int i = 0; weights[i]; i++) {
        const Weight *w = weights[i];
        int64_t width = n_pairs(w) * 2, rows = block_rows(w, n_rows);
        if (w->stride && width > most_panel) most_panel = width;
#ifdef MULTIPLIES_BF16
        if (w->n_inputs % 2 == 0) continue;
#endif
        rows = rows < n_rows ? rows : n_rows;
        if (rows * width > most_rows) most_rows = rows * width;
    }
    return (Scratch){most_panel ? room_for(most_panel * TILES * LANES * sizeof(bf16)) : NULL,
                     most_rows ? room_for(most_rows * sizeof(Held)) : NULL};
}

static void let_go(Scratch scratch) {
    free(scratch.panel);
    free(scratch.rows);
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
        Scratch scratch = scratch_for(n_rows, (const Weight *[]){&w, NULL});
        share(&w, n_rows, x, y, scratch);
        let_go(scratch);
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
        Scratch scratch = scratch_for(n_rows, (const Weight *[]){&a, &w, &b, NULL});
        share(&a, n_rows, x, to_h, scratch);
        share(&w, n_rows, x, y, scratch);
#pragma omp barrier
        if (mask_TR) {
#pragma omp for schedule(static)
            for (int64_t i = 0; i < n_rows * n_ranks; i++) h_TR[i] = mask_TR[i] ? h_TR[i] : 0;
        }
        share(&b, n_rows, h, sum, scratch);  // the outputs that this thread has just computed
        let_go(scratch);
    }
}

// W laid out, (O / 16, P, 16, 2).
void panel_lay_out(int64_t n_outputs, int64_t n_inputs, const bf16 *w_OI, int64_t stride, bf16 *panels) {
    Weight w = {w_OI, n_outputs, n_inputs, stride, 0};
#pragma omp parallel for schedule(static) if (n_outputs * n_inputs > PARALLEL_WORK)
    for (int64_t tile = 0; tile < n_tiles(&w); tile++) lay_out(&w, tile, panels + tile * n_pairs(&w) * 2 * LANES);
}

#endif
