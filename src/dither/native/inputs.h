// Rows of inputs to codes, with ranges of their own or given ones: what dither.numerics.integer does, to the same codes.

#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "lanes.h"

namespace dither {

enum Type : int64_t { F32 = 0, BF16 = 1 };

// The integers that inputs become. Two regions have steps of their own below 0 and from 0 on, and so take two passes: each
// sees the values of one of them, and 0 in the place of the others.
struct Grid {
    int64_t bits;
    int64_t symmetric;
    int64_t regions;
};

inline int64_t passes(const Grid& grid) { return grid.regions ? 2 : 1; }

// What codes of a pass may be, and what is added to them: they are stored as unsigned bytes.
struct Codes {
    float low, high;
    int32_t zero;
};

inline Codes codes_of(const Grid& grid, int64_t pass) {
    const int32_t half = 1 << (grid.bits - 1);
    const float below = static_cast<float>(128 - half), above = static_cast<float>(half - 1);
    if (grid.regions) return pass == 0 ? Codes{0.0f, above, 0} : Codes{below, 128.0f, 128};
    if (grid.symmetric) return Codes{below, 128.0f + above, 128};
    return Codes{0.0f, static_cast<float>(2 * half - 1), 0};
}

// ``count`` values as float32.
inline void widen(const void* x, int64_t type, int64_t at, int64_t count, float* out) {
    if (type == F32) {
        std::memcpy(out, static_cast<const float*>(x) + at, static_cast<size_t>(count) * sizeof(float));
        return;
    }
    const uint16_t* in = static_cast<const uint16_t*>(x) + at;
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) store(out + i, from_bf16(in + i));
    for (; i < count; ++i) {
        const uint32_t bits = static_cast<uint32_t>(in[i]) << 16;
        std::memcpy(out + i, &bits, sizeof bits);
    }
}

// The first ``left`` of a vector's values from ``at`` on, or all of them.
inline Floats some(const void* p, int64_t type, int64_t at, int64_t left) {
    if (type == F32) return some(static_cast<const float*>(p) + at, left);
    uint16_t in[LANES] = {};
    std::memcpy(in, static_cast<const uint16_t*>(p) + at, static_cast<size_t>(left < LANES ? left : LANES) * sizeof(uint16_t));
    return from_bf16(in);
}

struct Range {
    float low, high;
    bool finite;
};

constexpr int32_t NOT_FINITE = 0x7f800000;  // bits of infinity: those of what is finite, but for the sign, are less

// Least and greatest value, 0 among them; where grids are symmetric, the greatest size on both sides.
inline Range range_of(const float* x, int64_t count, bool symmetric) {
    constexpr int TURNS = 4;  // each waits for the one before
    Ints size[TURNS] = {};
    Floats low[TURNS] = {}, high[TURNS] = {};
    const auto see = [&](Floats v, int t) {
        size[t] = most(size[t], (Ints)v & 0x7fffffff);
        if (symmetric) return;
        low[t] = least(low[t], v);
        high[t] = most(high[t], v);
    };
    int64_t i = 0;
    for (; i + TURNS * LANES <= count; i += TURNS * LANES)
        for (int t = 0; t < TURNS; ++t) see(load<Floats>(x + i + t * LANES), t);
    for (; i + LANES <= count; i += LANES) see(load<Floats>(x + i), 0);
    if (i < count) see(some(x + i, count - i), 1);
    const int32_t bits = most_of(most(most(size[0], size[1]), most(size[2], size[3])));
    float top;
    std::memcpy(&top, &bits, sizeof top);
    if (symmetric) return {-top, top, bits < NOT_FINITE};
    const Floats l = least(least(low[0], low[1]), least(low[2], low[3])), h = most(most(high[0], high[1]), most(high[2], high[3]));
    return {least_of(l), most_of(h), bits < NOT_FINITE};
}

inline float flushed(float scale) { return scale < FLT_MIN ? 0.0f : scale; }

// Scale and zero point of a pass for a range. What is not finite makes the scale NaN, and so all that comes of it.
inline void grid_of(const Range& r, const Grid& grid, int64_t pass, float* scale, int32_t* zero) {
    *zero = codes_of(grid, pass).zero;
    if (grid.regions) {
        const float half = static_cast<float>(1 << (grid.bits - 1));
        *scale = flushed(pass == 0 ? r.high / (half - 1.0f) : -r.low / half);
    } else if (grid.symmetric) {
        const float top = -r.low > r.high ? -r.low : r.high;
        const float steps = static_cast<float>((1 << (grid.bits - 1)) - 1);
        *scale = flushed(top / (steps < 1.0f ? 1.0f : steps));
    } else {
        const float steps = static_cast<float>((1 << grid.bits) - 1), span = r.high - r.low;
        *scale = flushed((span < FLT_MAX ? span : FLT_MAX) / steps);
        const float z = *scale == 0.0f ? 0.0f : nearbyintf(-r.low / *scale);
        *zero = static_cast<int32_t>(z < 0.0f ? 0.0f : z > steps ? steps : z);
    }
    if (!r.finite) *scale = NAN;
}

// clamp(round(x / scale) + zero) of ``LANES`` values, as float32. The quotient is exact where it decides: a product by
// the reciprocal is off by a few units in the last place, which matters next to a tie alone. ``One`` is a number, or a
// vector where each lane has its own.
template <class One>
inline Floats rounded(Floats x, One scale, One inverse, One zero, float low, float high) {
    const Floats t = x * inverse;
    Floats code = nearest_of_any(t);
    if (any_above(size_of(t - code), 0.4999f)) code = nearest_of_any(x / scale);
    return most(least(code + zero, all(high)), all(low));
}

// Codes of ``count`` values; what is left up to ``padded`` bytes becomes 0. The sum of the codes.
inline int32_t encode(const float* x, int64_t count, int64_t padded, const Codes& may, float scale, int32_t zero, uint8_t* out) {
    const bool none = !(scale > 0.0f);  // everything is 0, or nothing is known
    const float inverse = none ? 0.0f : 1.0f / scale;
    const float by = none ? INFINITY : scale;
    const float offset = static_cast<float>(zero);  // that of signed codes is what they move by
    const float low = may.low, high = may.high;  // bytes that are written may be those of ``may``, for all a compiler knows
    Ints sum{};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        const Ints q = __builtin_convertvector(rounded(load<Floats>(x + i), by, inverse, offset, low, high), Ints);
        sum += q;
        to_bytes(out + i, q);
    }
    if (i < count) {
        const Ints q = __builtin_convertvector(rounded(some(x + i, count - i), by, inverse, offset, low, high), Ints);
        sum += some_bytes(out + i, q, count - i);
    }
    std::memset(out + count, 0, static_cast<size_t>(padded - count));
    return sum_of(sum);
}

}  // namespace dither
