// bf16 numbers, e^x, and memory, for all kernels.

#pragma once

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint16_t bf16;

// Memory in whole lines of the cache; to be freed. Callers have no results without it, and so the process ends where there
// is none, with a word about why.
static inline void *room_for(size_t n_bytes) {
    void *room = aligned_alloc(64, (n_bytes + 63) / 64 * 64 + (n_bytes ? 0 : 64));
    if (!room) {
        fprintf(stderr, "A CPU kernel found no memory for %zu bytes.\n", n_bytes);
        abort();
    }
    return room;
}

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
