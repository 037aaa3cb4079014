// Rows of inputs scaled channel by channel and rotated block by block, as dither.numerics.hadamard does.
//
//     x -> pre x            x -> (signs x) H / sqrt(block),  H = P (order, order) x Sylvester's of a power of two
//
// Sylvester's part are butterflies; P takes sums of whole vectors. Each sum has one order, whatever the vectors.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "lanes.h"

namespace dither {

struct Rotation {
    const float* pre;      // (inputs,), or null
    const int8_t* signs;   // (inputs,), or null: no rotation
    const float* matrix;   // (order, order) of -1 and 1, or null if order is 1
    int64_t block, order;  // block = order 2^k divides the inputs
};

inline bool fits(const Rotation& r, int64_t inputs) {
    if (r.signs == nullptr) return true;
    if (r.block < 1 || r.order < 1 || inputs % r.block || r.block % r.order || (r.order > 1 && r.matrix == nullptr)) return false;
    const int64_t power = r.block / r.order;
    return (power & (power - 1)) == 0 && (r.order == 1 || r.order % 4 == 0);
}

// One step of butterflies between lanes that lie STEP apart.
template <int STEP>
inline Floats butterfly(Floats v) {
    Ints other, turned;
    for (int j = 0; j < LANES; ++j) {
        other[j] = j ^ STEP;
        turned[j] = j & STEP ? static_cast<int32_t>(0x80000000) : 0;
    }
    return __builtin_shuffle(v, other) + (Floats)((Ints)v ^ turned);
}

// Butterflies among ``power`` neighbours, all over ``count`` values.
inline void butterflies(float* x, int64_t count, int64_t power) {
    if (power < LANES) {
        for (int64_t step = 1; step < power; step *= 2)
            for (int64_t i = 0; i < count; i += 2 * step)
                for (int64_t j = i; j < i + step; ++j) {
                    const float a = x[j], b = x[j + step];
                    x[j] = a + b;
                    x[j + step] = a - b;
                }
        return;
    }
    for (int64_t i = 0; i < count; i += LANES) {
        Floats v = butterfly<4>(butterfly<2>(butterfly<1>(load<Floats>(x + i))));
        if (LANES > 8) v = butterfly<8 % LANES>(v);
        store(x + i, v);
    }
    for (int64_t step = LANES; step < power; step *= 2)
        for (int64_t i = 0; i < count; i += 2 * step)
            for (int64_t j = i; j < i + step; j += LANES) {
                const Floats a = load<Floats>(x + j), b = load<Floats>(x + j + step);
                store(x + j, a + b);
                store(x + j + step, a - b);
            }
}

// y[i] = sum over h of matrix[h][i] x[h], of ``order`` vectors that are ``power`` long; products by 1 and -1 are exact.
template <int WIDE>
inline void mixed(const float* x, int64_t order, int64_t power, const float* matrix, float* y) {
    constexpr int ROWS_OF_4 = 4;
    for (int64_t c = 0; c < power; c += WIDE * LANES)
        for (int64_t i = 0; i < order; i += ROWS_OF_4) {
            Floats sum[ROWS_OF_4][WIDE] = {};
            for (int64_t h = 0; h < order; ++h) {
                Floats v[WIDE];
                for (int j = 0; j < WIDE; ++j) v[j] = load<Floats>(x + h * power + c + j * LANES);
                for (int o = 0; o < ROWS_OF_4; ++o) {
                    const Floats sign = all(matrix[h * order + i + o]);
                    for (int j = 0; j < WIDE; ++j) sum[o][j] = fused(sign, v[j], sum[o][j]);
                }
            }
            for (int o = 0; o < ROWS_OF_4; ++o)
                for (int j = 0; j < WIDE; ++j) store(y + (i + o) * power + c + j * LANES, sum[o][j]);
        }
}

inline void mixed(const float* x, int64_t order, int64_t power, const float* matrix, float* y) {
    if (power % (2 * LANES) == 0) return mixed<2>(x, order, power, matrix, y);
    if (power % LANES == 0) return mixed<1>(x, order, power, matrix, y);
    for (int64_t i = 0; i < order; ++i)
        for (int64_t c = 0; c < power; ++c) {
            float sum = 0.0f;
            for (int64_t h = 0; h < order; ++h) sum += matrix[h * order + i] * x[h * power + c];
            y[i * power + c] = sum;
        }
}

// One row in place. ``spare``: room for a block.
inline void rotated(float* x, int64_t count, const Rotation& by, bool narrow, float* spare) {
    if (by.pre != nullptr)
        for (int64_t i = 0; i < count; ++i) x[i] *= by.pre[i];
    if (by.signs == nullptr) return;
    const int64_t power = by.block / by.order;
    for (int64_t i = 0; i < count; ++i) x[i] *= static_cast<float>(by.signs[i]);
    butterflies(x, count, power);
    if (by.order > 1)
        for (int64_t b = 0; b < count; b += by.block) {
            std::memcpy(spare, x + b, static_cast<size_t>(by.block) * sizeof(float));
            mixed(spare, by.order, power, by.matrix, x + b);
        }
    const float scale = 1.0f / std::sqrt(static_cast<float>(by.block));
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        const Floats y = load<Floats>(x + i) * scale;
        store(x + i, narrow ? as_bf16(y) : y);
    }
    for (; i < count; ++i) {
        const Floats y = all(x[i] * scale);
        x[i] = narrow ? as_bf16(y)[0] : y[0];
    }
}

}  // namespace dither
