// GELU, by tanh or by the error function, to a few units in the last place of float32.

#pragma once

#include <cstdint>

#include "lanes.h"

namespace dither {

// e^x: 2^n times a polynomial of degree 7 on [-ln 2 / 2, ln 2 / 2].
inline Floats exponential(Floats x) {
    x = most(least(x, all(88.0f)), all(-87.0f));
    const Floats n = nearest(x * 1.44269504f);
    const Floats r = fused(n, all(2.12194440e-4f), fused(n, all(-0.693359375f), x));  // ln 2 in two parts
    Floats p = all(1.9875691500e-4f);
    p = fused(p, r, all(1.3981999507e-3f));
    p = fused(p, r, all(8.3334519073e-3f));
    p = fused(p, r, all(4.1665795894e-2f));
    p = fused(p, r, all(1.6666665459e-1f));
    p = fused(p, r, all(5.0000001201e-1f));
    p = fused(p * r, r, r) + 1.0f;
    return p * bits_to_floats((__builtin_convertvector(n, Ints) + 127) << 23);
}

// x (1 + tanh u) / 2 = x / (1 + e^(-2 u)),  u = sqrt(2 / pi) (x + 0.044715 x^3)
inline Floats gelu_by_tanh(Floats x) {
    const Floats u = x * fused(x * x, all(0.07135481f), all(1.59576912f));
    return x / (exponential(-u) + 1.0f);
}

// x (1 + erf(x / sqrt 2)) / 2,  erf by Abramowitz and Stegun, 7.1.26: off by 1.5e-7 at most
inline Floats gelu_by_erf(Floats x) {
    const Floats z = size_of(x) * 0.70710678f;
    const Floats t = 1.0f / fused(z, all(0.3275911f), all(1.0f));
    Floats p = all(1.061405429f);
    p = fused(p, t, all(-1.453152027f));
    p = fused(p, t, all(1.421413741f));
    p = fused(p, t, all(-0.284496736f));
    p = fused(p, t, all(0.254829592f));
    const Floats rest = p * t * exponential(-z * z);  // 1 - erf
    return x * 0.5f * (x < 0.0f ? rest : 2.0f - rest);
}

inline Floats gelu(Floats x, bool tanh) { return tanh ? gelu_by_tanh(x) : gelu_by_erf(x); }

// What GELU is to do: ``narrow`` values are rounded to bfloat16 before and after it, as where each step is an operator.
struct Gelu {
    bool tanh, narrow;

    Floats operator()(Floats x) const {
        return narrow ? as_bf16(gelu(as_bf16(x), tanh)) : gelu(x, tanh);
    }
};

// In place, and times ``by`` (columns) if there is one.
inline void gelu(float* y, int64_t rows, int64_t columns, const float* by, const Gelu& of) {
    for (int64_t r = 0; r < rows; ++r, y += columns) {
        int64_t i = 0;
        for (; i + LANES <= columns; i += LANES) {
            const Floats x = of(load<Floats>(y + i));
            store(y + i, by == nullptr ? x : x * load<Floats>(by + i));
        }
        for (; i < columns; ++i) {
            const float x = of(all(y[i]))[0];
            y[i] = by == nullptr ? x : x * by[i];
        }
    }
}

}  // namespace dither
