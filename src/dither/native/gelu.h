// GELU, by tanh or by the error function, to a few units in the last place of float32.

#pragma once

#include <cstdint>

#include "lanes.h"

namespace dither {

// 2^x of x from -126 to 100, which others become: 2^n times a polynomial on [-1/2, 1/2], off by 2e-9 before it is rounded.
inline Floats power_of_two(Floats x) {
    x = most(least(x, all(100.0f)), all(-126.0f));
    const Floats n = nearest(x), r = x - n;
    Floats p = all(1.535334274e-4f);
    p = fused(p, r, all(1.339887634e-3f));
    p = fused(p, r, all(9.618437450e-3f));
    p = fused(p, r, all(5.550332465e-2f));
    p = fused(p, r, all(2.402264791e-1f));
    p = fused(p, r, all(6.931472029e-1f));
    p = fused(p, r, all(1.0f));
    return times_two_to(p, n);
}

// 1 / x of x from 1 to 2^101: Newton's steps, which are the same on all CPUs, from a guess at the exponent, off by an eighth.
inline Floats reciprocal(Floats x) {
    Floats y = bits_to_floats(0x7ef311c7 - (Ints)x);
    for (int step = 0; step < 3; ++step) y = fused(y, fused(-x, y, all(1.0f)), y);
    return y;
}

// x (1 + tanh u) / 2 = x / (1 + e^(-2 u)),  u = sqrt(2 / pi) (x + 0.044715 x^3)
inline Floats gelu_by_tanh(Floats x) {
    const Floats e = power_of_two(x * fused(x * x, all(-0.102943240f), all(-2.30220820f)));
    return x * reciprocal(e + 1.0f);
}

// x (1 + erf(x / sqrt 2)) / 2,  erf by Abramowitz and Stegun, 7.1.26: off by 1.5e-7 at most
inline Floats gelu_by_erf(Floats x) {
    const Floats z = size_of(x) * 0.70710678f;
    const Floats t = reciprocal(fused(z, all(0.3275911f), all(1.0f)));
    Floats p = all(1.061405429f);
    p = fused(p, t, all(-1.453152027f));
    p = fused(p, t, all(1.421413741f));
    p = fused(p, t, all(-0.284496736f));
    p = fused(p, t, all(0.254829592f));
    const Floats rest = p * t * power_of_two(z * z * -1.44269504f);  // 1 - erf
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

// In place.
inline void gelu(float* y, int64_t count, const Gelu& of) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) store(y + i, of(load<Floats>(y + i)));
    for (; i < count; ++i) y[i] = of(all(y[i]))[0];
}

}  // namespace dither
