// Vectors of fp32 numbers, and of pairs of bf16 ones, as the processor has them that this is compiled for.
//
// WIDTH numbers to a vector: 16 with AVX-512 (F, BW, VL), 8 with AVX2 and FMA; elsewhere VECTORS is not defined. What is
// rounded to bf16 goes to the nearest, ties to even, as `narrow` does. "Some" lanes are the first n; n ≤ 0 means none,
// n ≥ WIDTH all, and what lies behind them in memory is neither read nor written.

#pragma once

#include "numbers.h"

#define INLINED static inline __attribute__((always_inline))

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>
#define VECTORS
#define WIDTH 16

typedef __m512 Vec;
typedef __m512i Words;  // each a pair of bf16 numbers, or a number of 32 bits

INLINED Vec splat(float x) { return _mm512_set1_ps(x); }
INLINED Vec load(const float *x) { return _mm512_loadu_ps(x); }
INLINED void store(float *x, Vec v) { _mm512_storeu_ps(x, v); }
INLINED Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
INLINED Vec subtract(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
INLINED Vec multiply(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
INLINED Vec fused(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }  // a · b + c
INLINED Vec higher(Vec a, Vec b) { return _mm512_max_ps(a, b); }
INLINED Vec floor_of(Vec a) { return _mm512_floor_ps(a); }
INLINED Words whole(Vec a) { return _mm512_cvttps_epi32(a); }
INLINED Vec as_floats(Words w) { return _mm512_castsi512_ps(w); }
INLINED Words as_words(Vec v) { return _mm512_castps_si512(v); }
INLINED Words splat_word(uint32_t x) { return _mm512_set1_epi32((int)x); }
INLINED Words load_words(const void *x) { return _mm512_loadu_si512(x); }
INLINED void store_words(void *x, Words w) { _mm512_storeu_si512(x, w); }
INLINED Words both_of(Words a, Words b) { return _mm512_and_si512(a, b); }
INLINED Words either(Words a, Words b) { return _mm512_or_si512(a, b); }
INLINED Words up_16(Words w) { return _mm512_slli_epi32(w, 16); }

INLINED __mmask16 first_lanes(int64_t n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1); }

// a where x is below the limit, else b.
INLINED Words where_below(Vec x, Vec limit, Words a, Words b) {
    return _mm512_mask_mov_epi32(b, _mm512_cmp_ps_mask(x, limit, _CMP_LT_OS), a);
}

INLINED Vec some_of(int64_t n, Vec x, Vec otherwise) { return _mm512_mask_blend_ps(first_lanes(n), otherwise, x); }
INLINED Vec load_some(const float *x, int64_t n) { return _mm512_maskz_loadu_ps(first_lanes(n), x); }

// Sixteen-bit numbers, one to a word.
INLINED Words load_halves(const void *x) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256(x)); }
INLINED Words load_some_halves(const void *x, int64_t n) {
    return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first_lanes(n), x));
}
INLINED Vec from_ieee_halves(const void *x) { return _mm512_cvtph_ps(_mm256_loadu_si256(x)); }

// Sixteen-bit numbers above, bytes below: one to a word.
INLINED Words load_bytes(const void *x) { return _mm512_cvtepu8_epi32(_mm_loadu_si128(x)); }
INLINED Vec from_signed_bytes(const void *x) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(x)));
}
INLINED Words down_4(Words w) { return _mm512_srli_epi32(w, 4); }

// The lowest four bits of each word, as a number.
INLINED Vec low_four(Words w) {
    const Vec number = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_permutexvar_ps(w, number);
}

// The first and the last half of the lanes, each lane twice in a row.
INLINED void each_twice(Vec x, Vec out[2]) {
    const Words first = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    out[0] = _mm512_permutexvar_ps(first, x);
    out[1] = _mm512_permutexvar_ps(_mm512_add_epi32(first, splat_word(8)), x);
}

// Lanes 2i + (2i + 1) of a, and behind them those of b.
INLINED Vec neighbours_added(Vec a, Vec b) {
    const Words even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    return add(_mm512_permutex2var_ps(a, even, b), _mm512_permutex2var_ps(a, either(even, splat_word(1)), b));
}

// Two numbers in turn.
INLINED Vec splat_two(const float *x) {
    double two;
    memcpy(&two, x, 8);
    return _mm512_castpd_ps(_mm512_set1_pd(two));
}

// n pairs from x on, which holds `left` numbers; zeros behind them.
INLINED Words load_some_pairs(const bf16 *x, int64_t left) {
    __mmask32 present = left >= 32 ? 0xffffffff : left <= 0 ? 0 : (1u << left) - 1;
    return _mm512_maskz_loadu_epi16(present, x);
}

// The nearest bf16 number in the upper half of each word, and what is left of the sum in the lower one.
INLINED Words rounded_up(Vec v) {
    Words w = as_words(v);
    __mmask16 is_odd = _mm512_test_epi32_mask(w, splat_word(0x10000));
    return _mm512_add_epi32(w, _mm512_mask_blend_epi32(is_odd, splat_word(0x7fff), splat_word(0x8000)));
}

INLINED __m256i narrow_lanes(Vec v) {
#ifdef __AVX512BF16__
    return (__m256i)_mm512_cvtneps_pbh(v);
#else
    __mmask16 is_number = _mm512_cmp_ps_mask(v, v, _CMP_ORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_srli_epi32(splat_word(0x7fc0), is_number, rounded_up(v), 16));
#endif
}

INLINED void store_narrow(bf16 *y, Vec v) { _mm256_storeu_si256((void *)y, narrow_lanes(v)); }
INLINED void store_some_narrow(bf16 *y, int64_t n, Vec v) {
    _mm256_mask_storeu_epi16(y, first_lanes(n), narrow_lanes(v));
}

INLINED float lanes_sum(Vec x) {
    x = add(x, _mm512_shuffle_f32x4(x, x, 0x4e));
    x = add(x, _mm512_shuffle_f32x4(x, x, 0xb1));
    x = add(x, _mm512_shuffle_ps(x, x, 0x4e));
    x = add(x, _mm512_shuffle_ps(x, x, 0xb1));
    return _mm512_cvtss_f32(x);
}
INLINED float lanes_top(Vec x) { return _mm512_reduce_max_ps(x); }

// WIDTH rows of WIDTH words become as many columns.
INLINED void transpose(Words row[WIDTH]) {
    Words t[WIDTH];
    for (int i = 0; i < WIDTH; i += 2) {
        t[i] = _mm512_unpacklo_epi32(row[i], row[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(row[i], row[i + 1]);
    }
    for (int i = 0; i < WIDTH; i += 4) {
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

#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>
#define VECTORS
#define WIDTH 8

typedef __m256 Vec;
typedef __m256i Words;

INLINED Vec splat(float x) { return _mm256_set1_ps(x); }
INLINED Vec load(const float *x) { return _mm256_loadu_ps(x); }
INLINED void store(float *x, Vec v) { _mm256_storeu_ps(x, v); }
INLINED Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
INLINED Vec subtract(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
INLINED Vec multiply(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
INLINED Vec fused(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
INLINED Vec higher(Vec a, Vec b) { return _mm256_max_ps(a, b); }
INLINED Vec floor_of(Vec a) { return _mm256_floor_ps(a); }
INLINED Words whole(Vec a) { return _mm256_cvttps_epi32(a); }
INLINED Vec as_floats(Words w) { return _mm256_castsi256_ps(w); }
INLINED Words as_words(Vec v) { return _mm256_castps_si256(v); }
INLINED Words splat_word(uint32_t x) { return _mm256_set1_epi32((int)x); }
INLINED Words load_words(const void *x) { return _mm256_loadu_si256(x); }
INLINED void store_words(void *x, Words w) { _mm256_storeu_si256(x, w); }
INLINED Words both_of(Words a, Words b) { return _mm256_and_si256(a, b); }
INLINED Words either(Words a, Words b) { return _mm256_or_si256(a, b); }
INLINED Words up_16(Words w) { return _mm256_slli_epi32(w, 16); }

INLINED Words first_lanes(int64_t n) {
    return _mm256_cmpgt_epi32(splat_word(n > 8 ? 8 : (int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

INLINED Words where_below(Vec x, Vec limit, Words a, Words b) {
    return as_words(_mm256_blendv_ps(as_floats(b), as_floats(a), _mm256_cmp_ps(x, limit, _CMP_LT_OS)));
}

INLINED Vec some_of(int64_t n, Vec x, Vec otherwise) {
    return _mm256_blendv_ps(otherwise, x, as_floats(first_lanes(n)));
}
INLINED Vec load_some(const float *x, int64_t n) { return _mm256_maskload_ps(x, first_lanes(n)); }

INLINED Words load_halves(const void *x) { return _mm256_cvtepu16_epi32(_mm_loadu_si128(x)); }
INLINED Words load_some_halves(const void *x, int64_t n) {
    // There is no masked load of 16 bits.
    uint16_t part[8] = {0};
    if (n > 0) memcpy(part, x, (n > 8 ? 8 : n) * sizeof(uint16_t));
    return load_halves(part);
}
INLINED Vec from_ieee_halves(const void *x) { return _mm256_cvtph_ps(_mm_loadu_si128(x)); }

INLINED Words load_bytes(const void *x) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64(x)); }
INLINED Vec from_signed_bytes(const void *x) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(x))); }
INLINED Words down_4(Words w) { return _mm256_srli_epi32(w, 4); }

INLINED Vec low_four(Words w) { return _mm256_cvtepi32_ps(both_of(w, splat_word(15))); }

INLINED void each_twice(Vec x, Vec out[2]) {
    out[0] = _mm256_permutevar8x32_ps(x, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
    out[1] = _mm256_permutevar8x32_ps(x, _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7));
}

INLINED Vec neighbours_added(Vec a, Vec b) {
    __m256d sums = _mm256_castps_pd(add(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd)));
    return _mm256_castpd_ps(_mm256_permute4x64_pd(sums, 0xd8));
}

INLINED Vec splat_two(const float *x) {
    double two;
    memcpy(&two, x, 8);
    return _mm256_castpd_ps(_mm256_set1_pd(two));
}

INLINED Words load_some_pairs(const bf16 *x, int64_t left) {
    if (left >= 16) return load_words(x);
    bf16 part[16] = {0};
    if (left > 0) memcpy(part, x, left * sizeof(bf16));
    return load_words(part);
}

INLINED Words rounded_up(Vec v) {
    Words w = as_words(v), is_odd = _mm256_and_si256(_mm256_srli_epi32(w, 16), splat_word(1));
    return _mm256_add_epi32(w, _mm256_add_epi32(is_odd, splat_word(0x7fff)));
}
INLINED __m128i narrow_lanes(Vec v) {
    Words w = _mm256_srli_epi32(rounded_up(v), 16), is_number = as_words(_mm256_cmp_ps(v, v, _CMP_ORD_Q));
    w = _mm256_blendv_epi8(splat_word(0x7fc0), w, is_number);
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi32(w, w), 0xd8));
}

INLINED void store_narrow(bf16 *y, Vec v) { _mm_storeu_si128((void *)y, narrow_lanes(v)); }
INLINED void store_some_narrow(bf16 *y, int64_t n, Vec v) {
    bf16 part[8];
    store_narrow(part, v);
    if (n > 0) memcpy(y, part, (n > 8 ? 8 : n) * sizeof(bf16));
}

INLINED float lanes_sum(Vec x) {
    x = add(x, _mm256_permute2f128_ps(x, x, 1));
    x = add(x, _mm256_shuffle_ps(x, x, 0x4e));
    x = add(x, _mm256_shuffle_ps(x, x, 0xb1));
    return _mm256_cvtss_f32(x);
}
INLINED float lanes_top(Vec x) {
    x = higher(x, _mm256_permute2f128_ps(x, x, 1));
    x = higher(x, _mm256_shuffle_ps(x, x, 0x4e));
    return _mm256_cvtss_f32(higher(x, _mm256_shuffle_ps(x, x, 0xb1)));
}

INLINED void transpose(Words row[WIDTH]) {
    Words t[WIDTH];
    for (int i = 0; i < WIDTH; i += 2) {
        t[i] = _mm256_unpacklo_epi32(row[i], row[i + 1]);
        t[i + 1] = _mm256_unpackhi_epi32(row[i], row[i + 1]);
    }
    for (int i = 0; i < WIDTH; i += 4) {
        row[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
        row[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
        row[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
        row[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm256_permute2x128_si256(row[i], row[i + 4], 0x20);
        t[i + 4] = _mm256_permute2x128_si256(row[i], row[i + 4], 0x31);
    }
    for (int i = 0; i < WIDTH; i++) row[i] = t[i];
}
#endif

#ifdef VECTORS
INLINED Vec zeros(void) { return splat(0.0f); }

// The lower and the upper number of each pair.
INLINED Vec lower(Words pairs) { return as_floats(up_16(pairs)); }
INLINED Vec upper(Words pairs) { return as_floats(both_of(pairs, splat_word(0xffff0000))); }

// The nearest bf16 number, as fp32; x is a number.
INLINED Vec rounded(Vec x) { return upper(rounded_up(x)); }

INLINED Vec widen(const bf16 *x) { return as_floats(up_16(load_halves(x))); }
INLINED Vec widen_some(const bf16 *x, int64_t n) { return as_floats(up_16(load_some_halves(x, n))); }
#endif
