// What lies around a linear of a transformer: inputs are normalized and modulated, outputs gated and added to what was there.
//
//     x -> (x - mean) / sqrt(variance + eps) (1 + scale) + shift            y -> residual + gate y
//
// shift, scale and gate are those of a sample: of as many rows as it has tokens.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "lanes.h"

namespace dither {

struct Modulation {
    const float *shift, *scale;  // (samples, inputs), or null: inputs stay as they are
    int64_t stride;              // of both
    double eps;
};

struct Gate {
    const float* gate;     // (samples, outputs), or null: outputs stay as they are
    int64_t stride;
    const void* residual;  // (rows, outputs), of the outputs' type
};

constexpr int SUMS = 32;  // partial sums, as many on all CPUs, so that all have the same bits

// The sum of ``of(value)`` over ``count`` values; in the last vector ``none`` stands for what is not there.
template <class Of>
inline float summed(const float* x, int64_t count, float none, const Of& of) {
    constexpr int MANY = SUMS / LANES;
    Floats sum[MANY] = {};
    int64_t i = 0;
    for (; i + SUMS <= count; i += SUMS)
        for (int j = 0; j < MANY; ++j) sum[j] = of(load<Floats>(x + i + j * LANES), sum[j]);
    if (i < count) {
        float rest[SUMS];
        for (int j = 0; j < SUMS; ++j) rest[j] = i + j < count ? x[i + j] : none;
        for (int j = 0; j < MANY; ++j) sum[j] = of(load<Floats>(rest + j * LANES), sum[j]);
    }
    float lanes[SUMS];
    std::memcpy(lanes, sum, sizeof lanes);
    for (int many = SUMS / 2; many > 0; many /= 2)
        for (int j = 0; j < many; ++j) lanes[j] += lanes[j + many];
    return lanes[0];
}

// One row, in place or not; ``narrow``: rounded to bfloat16 in the end.
inline void modulated(const float* x, int64_t count, const Modulation& by, int64_t sample, bool narrow, float* out) {
    const float n = static_cast<float>(count);
    const float mean = summed(x, count, 0.0f, [](Floats v, Floats sum) { return sum + v; }) / n;
    const float square = summed(x, count, mean, [mean](Floats v, Floats sum) { return fused(v - mean, v - mean, sum); });
    const float inverse = 1.0f / std::sqrt(square / n + static_cast<float>(by.eps));
    const float *shift = by.shift + sample * by.stride, *scale = by.scale + sample * by.stride;
    const auto of = [=](Floats v, Floats a, Floats b) {
        const Floats y = fused((v - mean) * inverse, a + 1.0f, b);
        return narrow ? as_bf16(y) : y;
    };
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) store(out + i, of(load<Floats>(x + i), load<Floats>(scale + i), load<Floats>(shift + i)));
    for (; i < count; ++i) out[i] = of(all(x[i]), all(scale[i]), all(shift[i]))[0];
}

}  // namespace dither
