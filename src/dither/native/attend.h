// Some queries of one head: scores, their softmax as codes, and the outputs.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "factors.h"
#include "gelu.h"
#include "multiply.h"

namespace dither {

// Rows of probabilities as codes, of one pass or of one for each region.
struct Rows {
    int64_t padded, passes;
    uint8_t* codes;                   // (ROWS, passes, padded)
    float scale[2][ROWS];
    int32_t zero[ROWS], sum[2][ROWS]; // zero points are those of the one region
};

// Sums of ROWS rows and of ``wanted`` outputs of a panel: (ROWS, PANEL).
inline void panel_sums(const Factors& f, int64_t rows, int64_t bytes, int64_t wanted, bool tiles, int32_t* sums) {
#ifdef DITHER_TILES
    if (tiles)
        for (int64_t v = 0; v < wanted; v += HALF) by_tiles<PANEL>(f, v, sums + v, [] {});
    if (tiles) return;
#endif
    (void)tiles;
    Factors used = f;
    used.bytes = up(bytes, 4);
    by_vectors(used, rows, wanted, sums);
}

constexpr int PARTS = SUMS / LANES;  // vectors of partial sums, as many values on all CPUs

// Scores in powers of two to their exponentials: one over the sum of these.
inline float exponentials(float* scores, int64_t padded, float top) {
    Floats sums[PARTS] = {};
    for (int64_t i = 0; i < padded; i += SUMS)
        for (int j = 0; j < PARTS; ++j) {
            const Floats e = power_of_two(load<Floats>(scores + i + j * LANES) - top);
            store(scores + i + j * LANES, e);
            sums[j] += e;
        }
    for (int many = PARTS / 2; many > 0; many /= 2)
        for (int j = 0; j < many; ++j) sums[j] += sums[j + many];
    return 1.0f / sum_of(sums[0]);  // what is hidden has 2^-126, which no sum from 1 on sees
}

inline float inverse_of(float step) { return step > 0.0f ? 1.0f / step : 0.0f; }

// The codes of a row's softmax. Quotients by steps are not exact, as those of the softmax are not.
inline void uniform(const Attention& c, int64_t sample, int64_t row, const float* e, float share, Rows& to) {
    const Probabilities& by = c.probs;
    const int64_t at = sample * by.stride, padded = to.padded;
    const float high = static_cast<float>((1 << by.grid.bits) - 1);
    const float step = by.scale == nullptr ? flushed(share / high) : by.scale[at];  // the greatest one is 1 / sum
    const float zero = by.zero == nullptr ? 0.0f : static_cast<float>(by.zero[at]);
    const float inverse = inverse_of(step);
    uint8_t* codes = to.codes + row * to.passes * padded;
    Ints sum{};
    for (int64_t i = 0; i < padded; i += LANES) {
        const Floats code = nearest_of_any(load<Floats>(e + i) * share * inverse) + zero;
        const Ints q = __builtin_convertvector(least(code, all(high)), Ints);
        sum += q;
        to_bytes(codes + i, q);
    }
    to.scale[0][row] = step;
    to.zero[row] = static_cast<int32_t>(zero);
    to.sum[0][row] = sum_of(sum);
}

// The same in two regions: codes of one pass are 0 where the other's are not.
inline void in_regions(const Attention& c, int64_t sample, int64_t row, const float* e, float share, Rows& to) {
    const Probabilities& by = c.probs;
    const int64_t at = sample * by.stride, padded = to.padded;
    const float s = by.scale[at], u = by.upper[at], half = static_cast<float>(1 << (by.grid.bits - 1)), high = half - 1.0f;
    const float below = (half - 0.5f) * s;  // rounds to the last code of the lower region
    const Floats low_inverse = all(inverse_of(s)), high_inverse = all(inverse_of(u));
    const Floats first = all(u > 0.0f ? std::fmin(std::ceil(high * s / u), high) : 0.0f);
    uint8_t* codes = to.codes + row * to.passes * padded;
    Ints sums[2] = {};
    for (int64_t i = 0; i < padded; i += LANES) {
        const Floats p = load<Floats>(e + i) * share;
        const auto lower = p < below;
        const Floats code = least(nearest_of_any(p * (lower ? low_inverse : high_inverse)), all(high));
        const Ints a = lower ? __builtin_convertvector(code, Ints) : Ints{};
        const Ints b = lower ? Ints{} : __builtin_convertvector(most(code, first), Ints);
        sums[0] += a;
        sums[1] += b;
        to_bytes(codes + i, a);
        to_bytes(codes + padded + i, b);
    }
    to.zero[row] = 0;
    for (int64_t pass = 0; pass < 2; ++pass) {
        to.scale[pass][row] = pass == 0 ? s : u;
        to.sum[pass][row] = sum_of(sums[pass]);
    }
}

// Queries [from, from + rows) of a head, at most ROWS: their probabilities. ``nan[r]``: what a row's outputs are to be.
inline void probabilities(const Attention& c, int64_t sample, int64_t head, int64_t from, int64_t rows, bool tiles, const Side& keys,
                          Scratch& spare, Rows& to, bool* nan) {
    const int64_t all_keys = keys.panels * PANEL, padded = keys.padded;
    float* scores = spare.of<float>(ROWS * all_keys + c.width + ROWS * padded / 4);
    float* wide = scores + ROWS * all_keys;
    uint8_t* codes = reinterpret_cast<uint8_t*>(wide + c.width);
    Coded coded[ROWS] = {};
    std::memset(codes, 0, static_cast<size_t>(ROWS * padded));
    for (int64_t r = 0; r < rows; ++r) coded[r] = encoded(c.q, c.type, sample, head, from + r, c.width, padded, wide, codes + r * padded);
    const float log2e = 1.44269504f, scale = static_cast<float>(c.scale) * log2e;
    const int32_t *sum = keys.sum, *zeros = keys.zero;
    const float* scales = keys.scale;
    alignas(64) int32_t sums[ROWS * PANEL];
    Floats top[ROWS];
    for (Floats& t : top) t = all(-INFINITY);
    for (int64_t panel = 0; panel < keys.panels; ++panel) {
        const int64_t first = panel * PANEL;
        panel_sums({codes, padded, keys.codes + first * padded, padded, padded, nullptr}, rows, c.width, std::min(c.keys - first, PANEL), tiles, sums);
        for (int64_t r = 0; r < rows; ++r) {
            const Coded& q = coded[r];
            const float by = q.scale * scale;
            const int32_t rest = q.sum - static_cast<int32_t>(c.width) * q.zero;
            const float* mask = c.mask == nullptr ? nullptr : c.mask + sample * c.by_sample + head * c.by_head + (from + r) * c.by_query;
            for (int64_t j = first; j < first + PANEL; j += LANES) {
                const int64_t left = c.keys - j;
                Floats y = all(-INFINITY);
                if (left > 0) {
                    y = centred(sums + r * PANEL + j - first, q.zero, sum + j, zeros + j, rest) * (load<Floats>(scales + j) * by);
                    if (mask != nullptr) y = fused(some(mask + j, left), all(log2e), y);
                }
                float* at = scores + r * all_keys + j;
                store(at, y);
                if (left < LANES && left > 0) {
                    for (int64_t i = left; i < LANES; ++i) at[i] = -INFINITY;
                    y = load<Floats>(at);
                }
                top[r] = most(top[r], y);
            }
        }
    }
    for (int64_t r = 0; r < rows; ++r) {
        const float most_score = most_of(top[r]);
        nan[r] = !coded[r].finite || !(most_score > -INFINITY && most_score < INFINITY);
        float* e = scores + r * all_keys;
        const float share = exponentials(e, all_keys, nan[r] ? 0.0f : most_score);
        c.probs.grid.regions ? in_regions(c, sample, r, e, share, to) : uniform(c, sample, r, e, share, to);
    }
}

// Outputs of rows whose probabilities are there.
template <int PASSES>
inline void weighed(const Attention& c, int64_t sample, int64_t head, int64_t from, int64_t rows, bool tiles, const Side& values,
                    const Rows& probs, const bool* nan) {
    alignas(64) int32_t sums[PASSES][ROWS * PANEL];
    const int64_t pitch = PASSES * probs.padded, type = c.type;
    for (int64_t first = 0; first < c.v_width; first += PANEL) {
        const int64_t many = std::min(c.v_width - first, PANEL);
        for (int64_t pass = 0; pass < PASSES; ++pass) {
            const uint8_t* codes = probs.codes + pass * probs.padded;
            const int8_t* panel = values.codes + first * values.padded;
            panel_sums({codes, pitch, panel, values.padded, values.padded, nullptr}, rows, c.keys, many, tiles, sums[pass]);
        }
        const float* scales = values.scale + first;
        const int32_t *sum = values.sum + first, *zeros = values.zero + first;
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t at = (((sample * c.queries + from + r) * c.heads) + head) * c.v_width + first;
            const int32_t zero = probs.zero[r];
            float scale[PASSES];
            int32_t rest[PASSES];
            for (int pass = 0; pass < PASSES; ++pass) {
                scale[pass] = nan[r] ? NAN : probs.scale[pass][r];
                rest[pass] = probs.sum[pass][r] - static_cast<int32_t>(probs.padded) * zero;
            }
            for (int64_t j = 0; j < many; j += LANES) {
                Floats y{};
                for (int pass = 0; pass < PASSES; ++pass)
                    y = fused(centred(sums[pass] + r * PANEL + j, zero, sum + j, zeros + j, rest[pass]), all(scale[pass]), y);
                put(y * load<Floats>(scales + j), type, at + j, many - j, c.out);
            }
        }
    }
}

// Queries [from, to) of a head.
inline void attend(const Attention& c, int64_t sample, int64_t head, int64_t from, int64_t to, bool tiles) {
    static thread_local Scratch memory[6];
    const Side keys = keys_of(c, sample, head, memory[0], memory[1], memory[5]);
    const Side values = values_of(c, sample, head, memory[2], memory[3]);
    Rows probs{};
    probs.padded = values.padded;
    probs.passes = c.probs.grid.regions ? 2 : 1;
    probs.codes = memory[4].of<uint8_t>(ROWS * probs.passes * probs.padded);
    std::memset(probs.codes, 0, static_cast<size_t>(ROWS * probs.passes * probs.padded));
    const int64_t some = tiles ? ROWS : BY_VECTORS;
    for (int64_t first = from; first < to; first += some) {
        const int64_t rows = std::min(to - first, some);
        bool nan[ROWS];
        probabilities(c, sample, head, first, rows, tiles, keys, memory[5], probs, nan);
        for (int64_t r = 0; r < rows; ++r) nan[r] = nan[r] || !keys.finite || !values.finite;
        const auto run = probs.passes == 2 ? weighed<2> : weighed<1>;
        run(c, sample, head, first, rows, tiles, values, probs, nan);
    }
}

}  // namespace dither
