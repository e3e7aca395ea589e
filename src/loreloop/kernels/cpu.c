// The small steps of a layer for a CPU, each one pass over its numbers: what the tensor library does in many.
//
// bf16 in and out, fp32 inside, rounded to nearest even where a sum or a product is stored. Rows are independent of one
// another. Built for the machine it runs on (build.py); called through cpu.py, which checks shapes.
//
// Legend: T rows, D width, F feed-forward width, B sequences, K keys, H query heads, G key/value heads, E head width,
// S slots of the cache, R query rows of a group.

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "numbers.h"

#define PARALLEL_WORK 32768  // numbers; for fewer, waking a second thread takes longer than the work

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

// What add_rms_norm's output hands back to its sum: with s = 1 / sqrt(mean x² + eps) and g = dy · weight,
// dx = s · (g - x · s² · mean(g · x)).
void rms_norm_backward(int64_t n_rows, int64_t width, const float *x_TD, const bf16 *dy_TD, const float *weight_D,
                       float eps, float *dx_TD) {
#pragma omp parallel for if (n_rows > 1 && n_rows * width > PARALLEL_WORK)
    for (int64_t t = 0; t < n_rows; t++) {
        const float *x = x_TD + t * width;
        const bf16 *dy = dy_TD + t * width;
        float *dx = dx_TD + t * width;
        float squares = 0, along = 0;
#pragma omp simd reduction(+ : squares, along)
        for (int64_t i = 0; i < width; i++) {
            squares += x[i] * x[i];
            along += wide(dy[i]) * weight_D[i] * x[i];
        }
        float scale = 1.0f / sqrtf(squares / (float)width + eps);
        float pull = along / (float)width * scale * scale;
#pragma omp simd
        for (int64_t i = 0; i < width; i++) dx[i] = scale * (wide(dy[i]) * weight_D[i] - x[i] * pull);
    }
}

// What gated_silu's output hands back: to up dy · silu(gate), to gate dy · up · (σ + silu · (1 - σ)).
void gated_silu_backward(int64_t n_rows, int64_t width, const bf16 *gate_up_TF2, const bf16 *dy_TF, bf16 *grad_TF2) {
#pragma omp parallel for if (n_rows > 1 && n_rows * width > PARALLEL_WORK)
    for (int64_t t = 0; t < n_rows; t++) {
        const bf16 *gate = gate_up_TF2 + t * 2 * width, *up = gate + width, *dy = dy_TF + t * width;
        bf16 *dgate = grad_TF2 + t * 2 * width, *dup = dgate + width;
#pragma omp simd
        for (int64_t i = 0; i < width; i++) {
            float g = wide(gate[i]), sigmoid = 1.0f / (1.0f + exponential(-g)), silu = g * sigmoid;
            dup[i] = narrow(wide(dy[i]) * silu);
            dgate[i] = narrow(wide(dy[i]) * wide(up[i]) * (sigmoid + silu * (1.0f - sigmoid)));
        }
    }
}

// The keys that row r of a group's scores sees: query t = first_query + r / n_repeats those from from_T[t] (from_T may be
// NULL: from the first) up to t itself. Keys are numbered like queries.
typedef struct {
    int64_t n_keys, n_repeats, first_query, first_key;
    const int64_t *from_T;
} Window;

static inline void seen(const Window *window, int64_t r, int64_t *begin, int64_t *end) {
    int64_t t = window->first_query + r / window->n_repeats;
    int64_t from = window->from_T ? window->from_T[t] - window->first_key : 0;
    int64_t up_to = t + 1 - window->first_key;
    *begin = from > 0 ? from : 0;
    *end = up_to < window->n_keys ? up_to : window->n_keys;
}

// log_sum = log(e^log_sum + Σ e^(scale · score)) over the keys that a row sees. Groups of log_sum_GR stand stride apart.
void add_log_sums(int64_t n_groups, int64_t n_rows, int64_t n_keys, int64_t n_repeats, int64_t first_query,
                  int64_t first_key, const int64_t *from_T, float scale, const bf16 *score_GRK, int64_t stride,
                  float *log_sum_GR) {
    Window window = {n_keys, n_repeats, first_query, first_key, from_T};
#pragma omp parallel for if (n_groups * n_rows * n_keys > PARALLEL_WORK)
    for (int64_t i = 0; i < n_groups * n_rows; i++) {
        int64_t g = i / n_rows, r = i % n_rows, begin, end;
        seen(&window, r, &begin, &end);
        const bf16 *score = score_GRK + i * n_keys;
        float *log_sum = log_sum_GR + g * stride + r, highest = -INFINITY;
#pragma omp simd reduction(max : highest)
        for (int64_t j = begin; j < end; j++) {
            float x = wide(score[j]);
            highest = x > highest ? x : highest;
        }
        float top = scale * highest > *log_sum ? scale * highest : *log_sum;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = begin; j < end; j++) sum += exponential(scale * wide(score[j]) - top);
        *log_sum = top + logf(sum + expf(*log_sum - top));
    }
}

// In place, with weight = e^(scale · score - log_sum): score becomes the weight, and dweight the score's gradient,
// scale · weight · (dweight - along); both 0 where a row does not see a key.
void score_gradients(int64_t n_groups, int64_t n_rows, int64_t n_keys, int64_t n_repeats, int64_t first_query,
                     int64_t first_key, const int64_t *from_T, float scale, bf16 *score_GRK, bf16 *dweight_GRK,
                     int64_t stride_sum, const float *log_sum_GR, int64_t stride_along, const float *along_GR) {
    Window window = {n_keys, n_repeats, first_query, first_key, from_T};
#pragma omp parallel for if (n_groups * n_rows * n_keys > PARALLEL_WORK)
    for (int64_t i = 0; i < n_groups * n_rows; i++) {
        int64_t g = i / n_rows, r = i % n_rows, begin, end;
        seen(&window, r, &begin, &end);
        bf16 *score = score_GRK + i * n_keys, *dweight = dweight_GRK + i * n_keys;
        float log_sum = log_sum_GR[g * stride_sum + r], along = along_GR[g * stride_along + r];
        memset(score, 0, begin * sizeof(bf16));
        memset(dweight, 0, begin * sizeof(bf16));
#pragma omp simd
        for (int64_t j = begin; j < end; j++) {
            float weight = exponential(scale * wide(score[j]) - log_sum);
            score[j] = narrow(weight);
            dweight[j] = narrow(scale * weight * (wide(dweight[j]) - along));
        }
        memset(score + end, 0, (n_keys - end) * sizeof(bf16));
        memset(dweight + end, 0, (n_keys - end) * sizeof(bf16));
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
