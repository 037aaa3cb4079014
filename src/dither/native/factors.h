// The factors of an attention, one head at a time: queries as rows of codes, keys and values as panels.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "inputs.h"
#include "panels.h"
#include "plan.h"

namespace dither {

// A factor (samples, heads, tokens, channels) whose channels lie together, and how it becomes codes.
struct Factor {
    const void* at;
    int64_t by_sample, by_head, by_token;  // how far apart, in values
    Grid grid;
    const float* scale;   // of q and k (samples or 1, heads), or null: found here; of v (samples or 1, heads, channels)
    const uint8_t* zero;  // the same, or null
    int64_t stride;       // from one sample's ranges to the next one's

    int64_t place(int64_t sample, int64_t head, int64_t token) const {
        return sample * by_sample + head * by_head + token * by_token;
    }
};

// How the output of the softmax becomes codes. One of two regions begins at 0 and ends at the last code of its steps; what
// is above has steps of its own, and no value below that end.
struct Probabilities {
    Grid grid;
    const float *scale, *upper;  // (samples or 1), or null: found here; upper: of two regions
    const uint8_t* zero;
    int64_t stride;
};

struct Attention {
    Factor q, k, v;
    Probabilities probs;
    int64_t type;                               // of the factors and of the output
    const float* mask;                          // added to scores, or null; its keys lie together
    int64_t by_sample, by_head, by_query;       // of the mask
    int64_t samples, heads, queries, keys, width, v_width;
    double scale;                               // of scores
    void* out;                                  // (samples, queries, heads, v_width)
    int64_t threads, tiles;
};

// What a row of codes says beside them.
struct Coded {
    float scale;
    int32_t zero, sum;
    bool finite;
};

constexpr int64_t AHEAD = 6;  // tokens; those of a head lie far apart, and no CPU guesses where

// The same of values.
inline void fetch(const void* values, int64_t type, int64_t at, int64_t count) {
    const int64_t size = type == F32 ? 4 : 2;
    fetch(static_cast<const char*>(values) + at * size, count * size);
}

// One row of q or k to unsigned bytes.
inline Coded encoded(const Factor& f, int64_t type, int64_t sample, int64_t head, int64_t token, int64_t count, int64_t padded,
                     float* spare, uint8_t* out) {
    const int64_t at = f.place(sample, head, token);
    fetch(f.at, type, at + AHEAD * f.by_token, count);
    const float* x = type == F32 ? static_cast<const float*>(f.at) + at : spare;
    if (type != F32) widen(f.at, type, at, count, spare);
    const Range range = range_of(x, count, f.grid.symmetric);
    Coded row{0.0f, 0, 0, range.finite};
    grid_of(range, f.grid, 0, &row.scale, &row.zero);
    if (f.scale != nullptr) {
        const int64_t range_at = sample * f.stride + head;
        row.scale = f.scale[range_at];
        if (f.zero != nullptr) row.zero = f.zero[range_at];
    }
    row.sum = encode(x, count, padded, codes_of(f.grid, 0), row.scale, row.zero, out);
    return row;
}

// sum a c - z_a sum c - z_c sum a + count z_a z_c, with ``rest`` = sum a - count z_a.
inline Floats centred(const int32_t* sums, int32_t zero_a, const int32_t* sum_c, const int32_t* zero_c, int32_t rest) {
    return to_floats(load<Ints>(sums) - zero_a * load<Ints>(sum_c) - rest * load<Ints>(zero_c));
}

// Unsigned bytes that stand for their value less 128 to signed ones that are it.
inline void signed_bytes(uint8_t* bytes, int64_t count) {
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) store(bytes + i, load<uint64_t>(bytes + i) ^ 0x8080808080808080u);
    for (; i < count; ++i) bytes[i] ^= 128;
}

// What rows are multiplied with: panels of 64 keys, or of 64 channels of v. Of each there are codes, signed, and their scale,
// zero point and sum.
struct Side {
    int64_t padded;  // bytes of each
    int64_t panels;
    int8_t* codes;
    float* scale;
    int32_t *zero, *sum;
    bool finite;
};

// Room for ``count`` of ``size`` codes.
inline Side side_of(int64_t count, int64_t size, Scratch& bytes, Scratch& tables) {
    const int64_t padded = up(size, STEP), panels = up(count, PANEL) / PANEL, all = panels * PANEL;
    float* scale = tables.of<float>(3 * all);
    int32_t* zero = reinterpret_cast<int32_t*>(scale + all);
    return {padded, panels, bytes.of<int8_t>(all * padded), scale, zero, zero + all, true};
}

// Keys of a head.
inline Side keys_of(const Attention& c, int64_t sample, int64_t head, Scratch& bytes, Scratch& tables, Scratch& spare) {
    Side side = side_of(c.keys, c.width, bytes, tables);
    float* wide = spare.of<float>(c.width + PANEL * side.padded / 4);
    int8_t* rows = reinterpret_cast<int8_t*>(wide + c.width);
    for (int64_t panel = 0; panel < side.panels; ++panel) {
        std::memset(rows, 0, static_cast<size_t>(PANEL * side.padded));
        for (int64_t i = 0; i < PANEL; ++i) {
            const int64_t key = panel * PANEL + i;
            side.scale[key] = 0.0f;
            side.zero[key] = side.sum[key] = 0;
            if (key >= c.keys) continue;
            uint8_t* row = reinterpret_cast<uint8_t*>(rows + i * side.padded);
            const Coded coded = encoded(c.k, c.type, sample, head, key, c.width, side.padded, wide, row);
            signed_bytes(row, c.width);
            side.finite = side.finite && coded.finite;
            side.scale[key] = coded.scale;
            side.zero[key] = coded.zero - 128;
            side.sum[key] = coded.sum - 128 * static_cast<int32_t>(c.width);
        }
        transpose(rows, side.padded, side.codes + panel * PANEL * side.padded);
    }
    return side;
}

// Channels [first, first + LANES) of v, whose values begin at ``at``: four tokens of a channel are a word.
inline void take_channels(const Attention& c, int64_t at, int64_t first, const Codes& may, Side& side, Ints& largest) {
    const Floats s = load<Floats>(side.scale + first), one = all(1.0f);
    const Floats by = s > 0.0f ? s : all(INFINITY), inverse = s > 0.0f ? one / s : Floats{};
    const Floats offset = to_floats(load<Ints>(side.zero + first)) + 128.0f;
    const int64_t left = c.v_width - first;
    int8_t* to = side.codes + first / PANEL * PANEL * side.padded + column(first % PANEL, side.padded);
    Ints total{};
    for (int64_t token = 0; token < side.padded; token += 4) {
        Ints word{};
        for (int64_t j = 0; j < 4 && left > 0; ++j) fetch(c.v.at, c.type, at + (token + 4 + j) * c.v.by_token, 1);
        for (int64_t j = 0; j < 4 && token + j < c.keys && left > 0; ++j) {
            const Floats x = some(c.v.at, c.type, at + (token + j) * c.v.by_token, left);
            largest = most(largest, (Ints)x & 0x7fffffff);
            const Ints code = __builtin_convertvector(rounded(x, by, inverse, offset, may.low, may.high), Ints) - 128;
            total += code;
            word |= (code & 255) << static_cast<int32_t>(8 * j);
        }
        store(to + token * COLUMN, word);
    }
    store(side.sum + first, total);
}

// Channels of v of a head, whose codes of all tokens follow each other.
inline Side values_of(const Attention& c, int64_t sample, int64_t head, Scratch& bytes, Scratch& tables) {
    Side side = side_of(c.v_width, c.keys, bytes, tables);
    const Codes may = codes_of(c.v.grid, 0);
    const int64_t ranges = sample * c.v.stride + head * c.v_width, all_channels = side.panels * PANEL;
    for (int64_t i = 0; i < all_channels; ++i) {
        const bool there = i < c.v_width;
        side.scale[i] = there ? c.v.scale[ranges + i] : 0.0f;
        side.zero[i] = (there && c.v.zero != nullptr ? c.v.zero[ranges + i] : may.zero) - 128;
    }
    Ints largest{};
    for (int64_t i = 0; i < all_channels; i += LANES) take_channels(c, c.v.place(sample, head, 0) + i, i, may, side, largest);
    side.finite = most_of(largest) < NOT_FINITE;
    return side;
}

}  // namespace dither
