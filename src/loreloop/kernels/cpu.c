// The small steps of a layer for a CPU, each one pass over its numbers: what the tensor library does in many.
//
// bf16 in and out, fp32 inside, rounded to nearest even where a sum or a product is stored. Rows are independent of one
// another. Built for the machine it runs on (build.py); called through cpu.py, which checks shapes.
//
// Legend: T rows, D width, F feed-forward width, H query heads, G key/value heads, E head width, S slots of the cache.

#include <math.h>
#include <stdint.h>
#include <string.h>

typedef uint16_t bf16;

#define PARALLEL_WORK 32768  // numbers; for fewer, waking a second thread takes longer than the work

static inline float wide(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}

static inline bf16 narrow(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return x != x ? 0x7fc0 : (bf16)rounded;
}

// e^x by 2^n · p(r), |r| ≤ ln 2 / 2, with Cephes' coefficients: a relative error of about 2e-7, and 0 from -88 down.
static inline float exponential(float x) {
    x = x > 88.0f ? 88.0f : x < -88.0f ? -88.0f : x;
    float n = rintf(x * 1.44269504088896341f);
    float r = fmaf(n, -0.693359375f, x);
    r = fmaf(n, 2.12194440e-4f, r);
    float p = 1.9875691500e-4f;
    p = fmaf(p, r, 1.3981999507e-3f);
    p = fmaf(p, r, 8.3334519073e-3f);
    p = fmaf(p, r, 4.1665795894e-2f);
    p = fmaf(p, r, 1.6666665459e-1f);
    p = fmaf(p, r, 5.0000001201e-1f);
    p = fmaf(p, r * r, r + 1.0f);
    int32_t bits = ((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return p * power;
}

// sum = x + delta (delta may be NULL), out = sum / sqrt(mean sum² + eps) · weight.
void add_rms_norm(int64_t n_rows, int64_t width, const float *x_TD, const bf16 *delta_TD, const float *weight_D,
                  float eps, float *sum_TD, bf16 *out_TD) {
#pragma omp parallel for if (n_rows > 1 && n_rows * width > PARALLEL_WORK)
    for (int64_t t = 0; t < n_rows; t++) {
        const float *x = x_TD + t * width;
        bf16 *out = out_TD + t * width;
        if (delta_TD) {
            const bf16 *delta = delta_TD + t * width;
            float *sum = sum_TD + t * width;
#pragma omp simd
            for (int64_t i = 0; i < width; i++) sum[i] = x[i] + wide(delta[i]);
            x = sum;
        }
        float squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < width; i++) squares += x[i] * x[i];
        float scale = 1.0f / sqrtf(squares / (float)width + eps);
#pragma omp simd
        for (int64_t i = 0; i < width; i++) out[i] = narrow(x[i] * scale * weight_D[i]);
    }
}

// silu(gate) · up, rounded after each, where gate and up are the halves of a row.
void gated_silu(int64_t n_rows, int64_t width, const bf16 *gate_up_TF2, bf16 *out_TF) {
#pragma omp parallel for if (n_rows > 1 && n_rows * width > PARALLEL_WORK)
    for (int64_t t = 0; t < n_rows; t++) {
        const bf16 *gate = gate_up_TF2 + t * 2 * width, *up = gate + width;
        bf16 *out = out_TF + t * width;
#pragma omp simd
        for (int64_t i = 0; i < width; i++) {
            float g = wide(gate[i]);
            out[i] = narrow(wide(narrow(g / (1.0f + exponential(-g)))) * wide(up[i]));
        }
    }
}

// Turns n heads of one token by its angles; sin holds the sign of each half.
static inline void turn(int64_t n_heads, int64_t d_head, const bf16 *x, const float *cos, const float *sin, bf16 *out) {
    int64_t half = d_head / 2;
    for (int64_t h = 0; h < n_heads; h++, x += d_head, out += d_head) {
#pragma omp simd
        for (int64_t i = 0; i < half; i++) {
            float low = wide(x[i]), high = wide(x[i + half]);
            float turned_low = low * cos[i], turned_high = high * cos[i + half];
            out[i] = narrow(turned_low + high * sin[i]);
            out[i + half] = narrow(turned_high + low * sin[i + half]);
        }
    }
}

// Queries and keys turned; keys and values stored, one behind the other, in their slots of the cache. Rows of q, k and
// v stand row_q, row_k and row_v numbers apart.
void turn_and_store(int64_t n_rows, int64_t n_heads, int64_t n_groups, int64_t d_head, int64_t row_q, int64_t row_k,
                    int64_t row_v, const bf16 *q_THE, const bf16 *k_TGE, const bf16 *v_TGE, const float *cos_TE,
                    const float *sin_TE, const int64_t *slot_T, bf16 *out_THE, bf16 *cache_S2GE) {
    int64_t n_kv = n_groups * d_head;
#pragma omp parallel for if (n_rows > 1 && n_rows * (n_heads * d_head + 2 * n_kv) > PARALLEL_WORK)
    for (int64_t t = 0; t < n_rows; t++) {
        const float *cos = cos_TE + t * d_head, *sin = sin_TE + t * d_head;
        bf16 *slot = cache_S2GE + slot_T[t] * 2 * n_kv;
        turn(n_heads, d_head, q_THE + t * row_q, cos, sin, out_THE + t * n_heads * d_head);
        turn(n_groups, d_head, k_TGE + t * row_k, cos, sin, slot);
        memcpy(slot + n_kv, v_TGE + t * row_v, n_kv * sizeof(bf16));
    }
}
