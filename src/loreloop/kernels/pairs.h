// Pairs of bf16 numbers as products take them, and sums of their products.
//
// A processor that multiplies bf16 takes pairs as they are and adds both products in one instruction. Others widen them
// to fp32 and add one product after the other, the first of the pair first. Rows are widened once, in memory ("held"),
// before the weights pass by; weights in registers, each vector for all rows of a pass.

#pragma once

#include "simd.h"

#ifdef VECTORS
#define LANES 16               // outputs of a tile
#define VECS (LANES / WIDTH)   // vectors of a tile's outputs

#if WIDTH == 16 && defined(__AVX512BF16__)
#define MULTIPLIES_BF16
typedef bf16 Held;
typedef __m512bh Factor;  // pairs, ready to be multiplied

INLINED Factor factor(Words pairs) { return (Factor)pairs; }
INLINED Factor spread(const Held *pair) {
    int32_t word;
    memcpy(&word, pair, 4);
    return (Factor)_mm512_set1_epi32(word);
}
INLINED Vec add_products(Vec sum, Factor x, Factor w) { return _mm512_dpbf16_ps(sum, x, w); }

#else
typedef float Held;
typedef struct {
    Vec first, second;
} Factor;

INLINED Factor factor(Words pairs) { return (Factor){lower(pairs), upper(pairs)}; }
INLINED Factor spread(const Held *pair) { return (Factor){splat(pair[0]), splat(pair[1])}; }
INLINED Vec add_products(Vec sum, Factor x, Factor w) {
    return fused(x.second, w.second, fused(x.first, w.first, sum));
}
#endif

// A row of n numbers as it is held, with a zero behind an odd number of them.
INLINED void hold(const bf16 *x, int64_t n, Held *held) {
#ifdef MULTIPLIES_BF16
    memcpy(held, x, n * sizeof(bf16));
#else
    int64_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH) store(held + i, widen(x + i));
    for (; i < n; i++) held[i] = wide(x[i]);
#endif
    if (n % 2) held[n] = 0;
}
#endif
