// Attention, with an order of additions of its own: a query's result depends on its keys alone, not on the queries beside
// it nor on the keys behind its own, so that decoding gives the very bits of training.
//
// Keys are taken in blocks of 512, counted from a sequence's first. A score adds up along E. A block's softmax is taken
// against the highest score so far (Milakov and Gimelshein, Online normalizer calculation for softmax, 2018); weights
// are rounded to bf16; values add up along the block's keys, and then to those of earlier blocks.
//
// Legend: B sequences, Q queries of one, K keys, H query heads, G key/value heads, P = H / G, R = Q · P query rows of a
// group, E width of queries and keys, V width of values, S slots of the cache.

#include <omp.h>
#include <stdlib.h>

#include "simd.h"

#ifdef VECTORS

#define BLOCK_KEYS 512
#define MOST_ROWS (WIDTH == 16 ? 12 : 5)  // that read keys and values together: with two vectors 24 sums, or 10
#define MOST_QUERIES 4           // of a newest token, which have four vectors each
#define MOST_WIDTH 512           // E and V
#define NEAR_BYTES (512 * 1024)  // what surely stays in a core's cache until it is read again
#define PARALLEL_WORK 32768

// e^x for x ≤ 0, to 1e-4 or so (Malossi and others, Fast Exponential Computation on SIMD Architectures, 2015): the power of
// two of a cubic, written into a number's bits. Weights are rounded to 8 bits behind it. What is no number stays none.
INLINED Vec rough_exponential(Vec x) {
    const Vec least = as_floats(splat_word(0xc2aeac50));
    Vec y = multiply(x, as_floats(splat_word(0x3fb8aa3b)));
    Vec r = subtract(y, floor_of(y));
    Vec p = fused(r, splat(-0.079204240219773236f), splat(-0.22433838478672356f));
    p = fused(r, p, splat(0.30354260500649682f));
    p = fused(r, p, splat(0.00010703434948458272f));
    y = subtract(y, p);
    Words bits = whole(fused(splat(0x1p23f), y, splat(127 * 0x1p23f)));
    Vec power = as_floats(where_below(x, least, splat_word(0), bits));
    // Bits come of anything. The maximum is the second number where one is none, and 0 times that is none as well; 0 times
    // a finite number changes nothing.
    return fused(higher(least, x), zeros(), power);
}

// Rows of queries on their way through the keys.
typedef struct {
    float query[MOST_ROWS][MOST_WIDTH];
    float sum[MOST_ROWS][MOST_WIDTH];
    float weight[MOST_ROWS][BLOCK_KEYS];  // scores before
    float top[MOST_ROWS], total[MOST_ROWS], kept[MOST_ROWS];
    int64_t first_key[MOST_ROWS], n_keys[MOST_ROWS];  // each sees those from the first up to the number
} State;

// What is not plain: a window of keys (0: none), a cap on scores (0: none), a score for each head that counts in the
// softmax and has no value (NULL: none).
typedef struct {
    int64_t window;
    float cap;
    const float *sinks_H;
} Rules;

static void begin(State *state, int r, const bf16 *query, int64_t head, int64_t n_keys, int64_t width,
                  int64_t value_width, Rules rules) {
    for (int64_t i = 0; i < width; i += WIDTH) store(state->query[r] + i, widen(query + i));
    memset(state->sum[r], 0, value_width * sizeof(float));
    // Not -∞: before its window a row sees no key of a block, and the difference of two infinities is no number.
    state->top[r] = rules.sinks_H ? rules.sinks_H[head] : -1e30f, state->total[r] = rules.sinks_H ? 1 : 0;
    state->n_keys[r] = n_keys;
    state->first_key[r] = rules.window && n_keys > rules.window ? n_keys - rules.window : 0;
}

static void end(const State *state, int r, bf16 *out, int64_t value_width) {
    Vec reciprocal = splat(1.0f / state->total[r]);
    for (int64_t i = 0; i < value_width; i += WIDTH)
        store_narrow(out + i, multiply(load(state->sum[r] + i), reciprocal));
}

// WIDTH keys from `key` on, `stride` numbers apart, as pairs of numbers by columns: (E / 2, WIDTH). What stands in place of
// keys behind the last one is that once more.
static void lay_out_keys(const bf16 *key, int64_t stride, const int64_t *slots, int64_t n_keys, int64_t width,
                         Words *columns) {
    for (int64_t c = 0; c < width / 2; c += WIDTH) {
        for (int l = 0; l < WIDTH; l++) {
            int64_t at = l < n_keys ? l : n_keys - 1;
            columns[c + l] = load_words(key + (slots ? slots[at] : at) * stride + 2 * c);
        }
        transpose(columns + c);
    }
}

// Scores of `vecs` vectors of keys, not scaled yet: one chain of additions along E for each.
INLINED void score(State *state, const int n_rows, const int vecs, const Words *columns, int64_t width, int j) {
    Vec sum[MOST_ROWS][2];
    for (int r = 0; r < n_rows; r++)
        for (int v = 0; v < vecs; v++) sum[r][v] = zeros();
    for (int64_t c = 0; c < width / 2; c++) {
        Vec first[2], second[2];
        for (int v = 0; v < vecs; v++) {
            Words pairs = columns[v * (width / 2) + c];
            first[v] = lower(pairs), second[v] = upper(pairs);
        }
        for (int r = 0; r < n_rows; r++) {
            Vec with = splat(state->query[r][2 * c]), next = splat(state->query[r][2 * c + 1]);
            for (int v = 0; v < vecs; v++) sum[r][v] = fused(second[v], next, fused(first[v], with, sum[r][v]));
        }
    }
    for (int r = 0; r < n_rows; r++)
        for (int v = 0; v < vecs; v++) store(state->weight[r] + j + v * WIDTH, sum[r][v]);
}

// Scores of n keys become weights, from that of key `skip` on; those that a row does not see 0.
static void weigh(State *state, int r, int64_t first_key, int skip, int n, float scale, float cap) {
    float *weight = state->weight[r];
    Vec highest = splat(state->top[r]), added[2] = {zeros(), zeros()}, never = splat(-INFINITY);
    if (cap > 0) {
        for (int j = skip; j < n; j++) weight[j] = cap * tanhf(weight[j] * scale / cap);
        scale = 1;
    }
    for (int j = skip; j < n; j += WIDTH) {
        Vec scaled = multiply(load(weight + j), splat(scale));
        scaled = some_of(state->n_keys[r] - first_key - j, scaled, never);
        scaled = some_of(state->first_key[r] - first_key - j, never, scaled);
        store(weight + j, scaled);
        highest = higher(scaled, highest);
    }
    float top = lanes_top(highest);
    for (int j = skip; j < n; j += WIDTH) {
        Vec exact = rough_exponential(subtract(load(weight + j), splat(top)));
        added[j / WIDTH % 2] = add(added[j / WIDTH % 2], exact);
        store(weight + j, rounded(exact));
    }
    state->kept[r] = expf(state->top[r] - top);
    state->total[r] = lanes_sum(add(added[0], added[1])) + state->kept[r] * state->total[r];
    state->top[r] = top;
}

static int within(int64_t x, int least, int most) { return x < least ? least : x < most ? (int)x : most; }

// Keys from `start` to `stop`, of which some rows see some: each reads its own keys' values and no others, since a weight of
// 0 does not keep out a value that is infinite.
INLINED void gather_apart(const State *state, const int n_rows, const int vecs, const bf16 *values, int64_t stride,
                          const int64_t *slots, int64_t first_key, int start, int stop, int64_t at,
                          Vec run[MOST_ROWS][4]) {
    for (int j = start; j < stop; j++) {
        const bf16 *from = values + (slots ? slots[j] : j) * stride + at;
        for (int r = 0; r < n_rows; r++) {
            if (first_key + j < state->first_key[r] || first_key + j >= state->n_keys[r]) continue;
            Vec weight = splat(state->weight[r][j]);
            for (int v = 0; v < vecs; v++) run[r][v] = fused(widen(from + v * WIDTH), weight, run[r][v]);
        }
    }
}

// Adds n keys' values to the sums: one chain of additions along the keys for each number.
INLINED void gather(State *state, const int n_rows, const int vecs, const bf16 *values, int64_t stride,
                    const int64_t *slots, int64_t first_key, int skip, int n, int64_t at) {
    // Rows stand in the order of their queries: the last one's first key and the first one's last bound what all see.
    int start = within(state->first_key[n_rows - 1] - first_key, skip, n);
    int stop = within(state->n_keys[0] - first_key, start, n);
    Vec run[MOST_ROWS][4];
    for (int r = 0; r < n_rows; r++)
        for (int v = 0; v < vecs; v++) run[r][v] = zeros();
    gather_apart(state, n_rows, vecs, values, stride, slots, first_key, skip, start, at, run);
    for (int j = start; j < stop; j++) {
        const bf16 *from = values + (slots ? slots[j] : j) * stride + at;
        Vec value[4];
        for (int v = 0; v < vecs; v++) value[v] = widen(from + v * WIDTH);
        for (int r = 0; r < n_rows; r++) {
            Vec weight = splat(state->weight[r][j]);
            for (int v = 0; v < vecs; v++) run[r][v] = fused(value[v], weight, run[r][v]);
        }
    }
    gather_apart(state, n_rows, vecs, values, stride, slots, first_key, stop, n, at, run);
    for (int r = 0; r < n_rows; r++)
        for (int v = 0; v < vecs; v++) {
            float *sum = state->sum[r] + at + v * WIDTH;
            store(sum, fused(load(sum), splat(state->kept[r]), run[r][v]));
        }
}

// One sequence's keys and values of one group. Key i begins at key + i · key_stride or, with slots, at that of its slot.
typedef struct {
    const bf16 *key, *value;
    int64_t key_stride, value_stride, width, value_width;
    const int64_t *slots;
    const Words *columns;  // all keys laid out, WIDTH at a time; NULL: lay out what is read
    float scale;
    int is_first_group;  // of those that lie side by side in a slot
    float cap;
} Reading;

// Reads `width` numbers of each of n slots and does nothing with them. A processor sees such a loop coming and keeps many
// reads on their way; those of the sums, with shuffles between, it waits for one after the other.
static void fetch(const bf16 *x_SE, int64_t stride, const int64_t *slots, int n, int64_t width) {
    for (int j = 0; j < n; j++) {
        const bf16 *slot = x_SE + slots[j] * stride;
#pragma GCC unroll 1
        for (int64_t i = 0; i < width; i += 2 * WIDTH) {
            Words line = load_words(slot + i);
            __asm__ volatile("" : : "v"(line));
        }
    }
}

// Fetches n keys and values from `first` on: where all fit, those of all groups at once.
static void fetch_block(const Reading *from, int64_t first, int n, int64_t n_keys) {
    const int64_t *slots = from->slots + first;
    if (n_keys * from->key_stride * (int64_t)sizeof(bf16) <= NEAR_BYTES) {
        if (from->is_first_group) fetch(from->key, from->key_stride, slots, n, from->key_stride);
    } else {
        fetch(from->key, from->key_stride, slots, n, from->width);
        fetch(from->value, from->key_stride, slots, n, from->width);
    }
}

// Rows over the keys that the last of them sees.
INLINED void attend_rows(State *state, const int n_rows, const Reading *from) {
    const int value_vecs = n_rows <= MOST_QUERIES && WIDTH == 16 ? 4 : 2;
    int64_t half = from->width / 2, n_keys = state->n_keys[n_rows - 1];
    // Blocks that no row sees add nothing.
    int64_t begin = state->first_key[0] / BLOCK_KEYS * BLOCK_KEYS;
    for (int64_t first = begin; first < n_keys; first += BLOCK_KEYS) {
        int n = n_keys - first < BLOCK_KEYS ? (int)(n_keys - first) : BLOCK_KEYS;
        int unseen = state->first_key[0] > first ? (int)(state->first_key[0] - first) : 0;
        int skip = unseen - unseen % (2 * WIDTH), j = skip;  // two vectors at a time: sums keep their order
        if (from->slots) fetch_block(from, first + skip, n - skip, n_keys);
        if (from->columns) {
            const Words *columns = from->columns + first / WIDTH * half;
            for (; j + WIDTH < n; j += 2 * WIDTH) score(state, n_rows, 2, columns + j / WIDTH * half, from->width, j);
            for (; j < n; j += WIDTH) score(state, n_rows, 1, columns + j / WIDTH * half, from->width, j);
        } else {
            for (; j < n; j += WIDTH) {
                Words columns[MOST_WIDTH / 2];
                const bf16 *key = from->key + (from->slots ? 0 : (first + j) * from->key_stride);
                const int64_t *slots = from->slots ? from->slots + first + j : NULL;
                lay_out_keys(key, from->key_stride, slots, n - j, from->width, columns);
                score(state, n_rows, 1, columns, from->width, j);
            }
        }
        for (int r = 0; r < n_rows; r++) weigh(state, r, first, skip, n, from->scale, from->cap);
        const bf16 *values = from->value + (from->slots ? 0 : first * from->value_stride);
        const int64_t *slots = from->slots ? from->slots + first : NULL;
        int64_t at = 0;
        for (; at + value_vecs * WIDTH <= from->value_width; at += value_vecs * WIDTH)
            gather(state, n_rows, value_vecs, values, from->value_stride, slots, first, skip, n, at);
        for (; at < from->value_width; at += 2 * WIDTH)
            gather(state, n_rows, 2, values, from->value_stride, slots, first, skip, n, at);
    }
}

static void attend_any(State *state, int n_rows, const Reading *from) {
    switch (n_rows) {
        case 1: attend_rows(state, 1, from); break;
        case 2: attend_rows(state, 2, from); break;
        case 3: attend_rows(state, 3, from); break;
        case 4: attend_rows(state, 4, from); break;
        case 5: attend_rows(state, 5, from); break;
#if MOST_ROWS > 5
        case 6: attend_rows(state, 6, from); break;
        case 7: attend_rows(state, 7, from); break;
        case 8: attend_rows(state, 8, from); break;
        case 9: attend_rows(state, 9, from); break;
        case 10: attend_rows(state, 10, from); break;
        case 11: attend_rows(state, 11, from); break;
        case 12: attend_rows(state, 12, from); break;
#endif
    }
}

// softmax(q · k / √E) · v. Query i of sequence b sees its keys 0 … first_B[b] + i. Heads of a row lie side by side; E and V
// are multiples of 32.
void attend_queries(int64_t n_sequences, int64_t n_queries, int64_t n_heads, int64_t n_groups, int64_t n_keys,
                    int64_t width, int64_t value_width, const int64_t *first_B, const bf16 *q_BQHE,
                    int64_t q_sequence, int64_t q_row, const bf16 *k_BKGE, int64_t k_sequence, int64_t k_row,
                    const bf16 *v_BKGV, int64_t v_sequence, int64_t v_row, bf16 *out_BQHV, int64_t window, float cap,
                    const float *sinks_H) {
    Rules rules = {window, cap, sinks_H};
    int64_t n_repeats = n_heads / n_groups, n_rows = n_queries * n_repeats, half = width / 2;
    int64_t tiles = (n_keys + WIDTH - 1) / WIDTH, blocks = (n_rows + MOST_ROWS - 1) / MOST_ROWS;
    int64_t n_groups_all = n_sequences * n_groups;
    Words *columns = room_for(n_groups_all * tiles * half * sizeof(Words));
#pragma omp parallel if (n_groups_all * n_rows * n_keys * width > PARALLEL_WORK)
    {
        State *state = room_for(sizeof(State));
#pragma omp for schedule(static)
        for (int64_t i = 0; i < n_groups_all * tiles; i++) {
            int64_t b = i / tiles / n_groups, g = i / tiles % n_groups, first = i % tiles * WIDTH;
            const bf16 *key = k_BKGE + b * k_sequence + first * k_row + g * width;
            lay_out_keys(key, k_row, NULL, n_keys - first, width, columns + i * half);
        }
        // The last queries see the most keys. They go first, so that no thread begins a long one at the end.
#pragma omp for schedule(dynamic)
        for (int64_t i = n_groups_all * blocks - 1; i >= 0; i--) {
            int64_t bg = i % n_groups_all, b = bg / n_groups, g = bg % n_groups, r = i / n_groups_all * MOST_ROWS;
            int here = n_rows - r < MOST_ROWS ? (int)(n_rows - r) : MOST_ROWS;
            Reading from = {k_BKGE + b * k_sequence + g * width, v_BKGV + b * v_sequence + g * value_width,
                            k_row, v_row, width, value_width, NULL, columns + bg * tiles * half,
                            1.0f / sqrtf((float)width), 0, cap};
            for (int j = 0; j < here; j++) {
                int64_t query = (r + j) / n_repeats, head = g * n_repeats + (r + j) % n_repeats;
                int64_t sees = first_B[b] + query + 1;
                const bf16 *q = q_BQHE + b * q_sequence + query * q_row + head * width;
                begin(state, j, q, head, sees < n_keys ? sees : n_keys, width, value_width, rules);
            }
            attend_any(state, here, &from);
            for (int j = 0; j < here; j++) {
                int64_t query = (r + j) / n_repeats, head = g * n_repeats + (r + j) % n_repeats;
                end(state, j, out_BQHV + ((b * n_queries + query) * n_heads + head) * value_width, value_width);
            }
        }
        free(state);
    }
    free(columns);
}

// Each sequence's newest token, row row_B[b] of q, over all its keys, read from the cache where they lie. E is a multiple
// of 32.
void attend_newest(int64_t n_sequences, int64_t n_heads, int64_t n_groups, int64_t width, int64_t most_keys,
                   const bf16 *q_THE, const bf16 *cache_S2GE, const int64_t *row_B, const int64_t *n_keys_B,
                   const int64_t *slots_BK, bf16 *out_THE, int64_t window, float cap, const float *sinks_H) {
    Rules rules = {window, cap, sinks_H};
    int64_t n_kv = n_groups * width, n_repeats = n_heads / n_groups;
#pragma omp parallel if (n_sequences * most_keys * n_kv > PARALLEL_WORK)
    {
        State *state = room_for(sizeof(State));
#pragma omp for schedule(static)
        for (int64_t task = 0; task < n_sequences * n_groups; task++) {
            int64_t b = task / n_groups, g = task % n_groups, n_keys = n_keys_B[b];
            int64_t at = (row_B[b] * n_heads + g * n_repeats) * width;
            const bf16 *key = cache_S2GE + g * width;
            Reading from = {key, key + n_kv, 2 * n_kv, 2 * n_kv, width, width, slots_BK + b * most_keys, NULL,
                            1.0f / sqrtf((float)width), g == 0, cap};
            for (int64_t p = 0; p < n_repeats; p += MOST_QUERIES) {
                int here = n_repeats - p < MOST_QUERIES ? (int)(n_repeats - p) : MOST_QUERIES;
                for (int j = 0; j < here; j++) {
                    const bf16 *q = q_THE + at + (p + j) * width;
                    begin(state, j, q, g * n_repeats + p + j, n_keys, width, width, rules);
                }
                attend_any(state, here, &from);
                for (int j = 0; j < here; j++) end(state, j, out_THE + at + (p + j) * width, width);
            }
        }
        free(state);
    }
}
#endif
