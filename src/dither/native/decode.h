// Packed rows of a weight to int8, for each format whose values are integers.

#pragma once

#include <cstdint>
#include <cstring>

#include "lanes.h"

namespace dither {

enum Kind : int64_t { INTEGERS = 0, WORDS = 1, TRELLIS = 2 };

// A weight (outputs, inputs) as it is stored; see dither.numerics for what each format means.
struct Weight {
    int64_t kind;
    int64_t outputs, inputs;
    const uint8_t* codes;
    int64_t stride;  // bytes of a row of codes
    int64_t bits;    // of a code
    int64_t flip;    // what turns a byte into a signed value: (byte ^ flip) - sub
    int64_t sub;
    int64_t ones, turn;  // of nested codes: what is set, and then turned over
    const int8_t* table; // words, or the values of a trellis's windows
    int64_t dim;         // values of a word, or rows of a tile
    int64_t columns;     // of a tile
    int64_t states;
    int64_t pairs;       // of a trellis: windows of two neighbours name both values, and older bits are the lower ones
};

// Codes of up to 8 bits, one to a byte. Never reads past ``end`` of the stream.
inline void unpack(const uint8_t* in, const uint8_t* end, int64_t bits, int64_t count, uint8_t* out) {
    if (bits == 8) {
        std::memcpy(out, in, static_cast<size_t>(count));
        return;
    }
    const uint64_t mask = (uint64_t{1} << bits) - 1;
    int64_t i = 0;
#if defined(__BMI2__)
    const uint64_t spread = mask * 0x0101010101010101u;
    for (; i + 8 <= count && in + i / 8 * bits + 8 <= end; i += 8) {  // eight codes are ``bits`` bytes
        const uint64_t eight = _pdep_u64(load<uint64_t>(in + i / 8 * bits), spread);
        store(out + i, eight);
    }
#endif
    for (; i < count; ++i) {
        const int64_t at = i * bits;
        unsigned both = in[at / 8];
        if (at % 8 + bits > 8) both |= static_cast<unsigned>(in[at / 8 + 1]) << 8;
        out[i] = static_cast<uint8_t>(both >> at % 8 & mask);
    }
}

// Codes of any width up to 16 bits, one by one.
inline unsigned code_at(const uint8_t* in, int64_t bits, int64_t i) {
    const int64_t at = i * bits;
    unsigned value = 0;
    for (int64_t byte = at / 8, have = -(at % 8); have < bits; ++byte, have += 8)
        value |= have < 0 ? static_cast<unsigned>(in[byte]) >> -have : static_cast<unsigned>(in[byte]) << have;
    return value & ((1u << bits) - 1);
}

inline void integers(const Weight& w, int64_t row, int8_t* out) {
    const uint8_t* in = w.codes + row * w.stride;
    uint8_t* codes = reinterpret_cast<uint8_t*>(out);
    unpack(in, in + w.stride, w.bits, w.inputs, codes);
    const int64_t count = w.inputs;  // bytes that are written may be those of ``w``, for all that a compiler knows
    const uint8_t flip = static_cast<uint8_t>(w.flip), sub = static_cast<uint8_t>(w.sub);
    if (flip | sub)
        for (int64_t i = 0; i < count; ++i) codes[i] = static_cast<uint8_t>((codes[i] ^ flip) - sub);
    if (w.ones) {
        const uint8_t ones = static_cast<uint8_t>(w.ones), turn = static_cast<uint8_t>(w.turn);
        for (int64_t i = 0; i < count; ++i) codes[i] = static_cast<uint8_t>((codes[i] | ones) ^ turn);
    }
}

template <int D>
void words_of(const uint8_t* in, const int8_t* table, int64_t count, int8_t* out) {
    for (int64_t i = 0; i < count; ++i) std::memcpy(out + i * D, table + in[i] * D, D);
}

// ``spare``: room for the indices of a row.
inline void words(const Weight& w, int64_t row, uint8_t* spare, int8_t* out) {
    const uint8_t* in = w.codes + row * w.stride;
    const int64_t count = w.inputs / w.dim;
    if (w.bits > 8) {
        for (int64_t i = 0; i < count; ++i)
            std::memcpy(out + i * w.dim, w.table + code_at(in, w.bits, i) * w.dim, static_cast<size_t>(w.dim));
        return;
    }
    unpack(in, in + w.stride, w.bits, count, spare);
    switch (w.dim) {
        case 1: return words_of<1>(spare, w.table, count, out);
        case 2: return words_of<2>(spare, w.table, count, out);
        case 4: return words_of<4>(spare, w.table, count, out);
        case 8: return words_of<8>(spare, w.table, count, out);
        default:
            for (int64_t i = 0; i < count; ++i)
                std::memcpy(out + i * w.dim, w.table + spare[i] * w.dim, static_cast<size_t>(w.dim));
    }
}

// A tile's window after its last weight is what its first one goes on from: a ring.
inline unsigned before(const uint8_t* bits, int64_t length, int64_t each, int64_t states) {
    unsigned window = 0;
    for (int64_t back = (states + each - 1) / each; back > 0; --back) window = window << each | bits[length - back];
    return window;
}

// A tile of a trellis by pairs of values: what names one is the bits up to it, as they lie in the stream. MANY pairs come from
// one load; a row takes whole loads, and a load whole bytes.
template <int MANY>
void by_pairs(const Weight& w, const uint8_t* in, int64_t bytes, int8_t* out, int64_t pitch) {
    constexpr int64_t AHEAD = 8, MOST = 512;
    uint8_t ring[AHEAD + MOST + AHEAD];
    const int64_t each = w.bits, rows = w.dim, columns = w.columns;
    std::memcpy(ring, in + bytes - AHEAD, AHEAD);
    std::memcpy(ring + AHEAD, in, static_cast<size_t>(bytes));
    std::memset(ring + AHEAD + bytes, 0, AHEAD);
    const int64_t begin = 8 * AHEAD + each - w.states;  // the first bit of the first window
    const uint8_t* at = ring + begin / 8;
    const unsigned mask = (1u << (w.states + each)) - 1;
    const int8_t* table = w.table;
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < columns; c += 2 * MANY, at += 2 * MANY * each / 8) {
            uint64_t bits = load<uint64_t>(at) >> begin % 8;
            int8_t* to = out + r * pitch + c;
            for (int i = 0; i < MANY; ++i, bits >>= 2 * each) std::memcpy(to + 2 * i, table + 2 * (bits & mask), 2);
        }
}

// A strip of ``w.dim`` rows, ``pitch`` apart. ``spare``: room for the codes of the strip.
inline void strip(const Weight& w, int64_t index, uint8_t* spare, int8_t* out, int64_t pitch) {
    constexpr int64_t AT_ONCE = 4;  // tiles: each weight waits for the one before
    const uint8_t* in = w.codes + index * w.stride;
    const int8_t* table = w.table;
    const int64_t rows = w.dim, columns = w.columns, each = w.bits;
    const int64_t length = rows * columns, tiles = w.inputs / columns;
    if (w.pairs) {
        const int64_t bytes = length * each / 8;
        for (int64_t tile = 0; tile < tiles; ++tile) {
            if (each > 3) by_pairs<4>(w, in + tile * bytes, bytes, out + tile * columns, pitch);
            else by_pairs<8>(w, in + tile * bytes, bytes, out + tile * columns, pitch);
        }
        return;
    }
    unpack(in, in + w.stride, w.bits, tiles * length, spare);
    const unsigned mask = (1u << w.states) - 1;
    for (int64_t tile = 0; tile < tiles; tile += AT_ONCE) {
        const int64_t many = tiles - tile < AT_ONCE ? tiles - tile : AT_ONCE;
        unsigned window[AT_ONCE];
        const uint8_t* bits[AT_ONCE];
        for (int64_t j = 0; j < AT_ONCE; ++j) {  // the last ones again where there are fewer
            bits[j] = spare + (tile + (j < many ? j : many - 1)) * length;
            window[j] = before(bits[j], length, each, w.states);
        }
        int8_t* to[AT_ONCE];
        for (int64_t j = 0; j < AT_ONCE; ++j) to[j] = out + (tile + (j < many ? j : many - 1)) * columns;
        for (int64_t r = 0, t = 0; r < rows; ++r)
            for (int64_t c = 0; c < columns; ++c, ++t)
                for (int64_t j = 0; j < AT_ONCE; ++j) {
                    window[j] = (window[j] << each | bits[j][t]) & mask;
                    to[j][r * pitch + c] = table[window[j]];
                }
    }
}

// Rows [first, first + count) as int8, ``pitch`` apart, into ``out``. Of a trellis, whole strips.
inline void decode(const Weight& w, int64_t first, int64_t count, uint8_t* spare, int8_t* out, int64_t pitch) {
    if (w.kind == TRELLIS) {
        for (int64_t r = 0; r < count; r += w.dim) strip(w, (first + r) / w.dim, spare, out + r * pitch, pitch);
        return;
    }
    for (int64_t r = 0; r < count; ++r)
        w.kind == INTEGERS ? integers(w, first + r, out + r * pitch) : words(w, first + r, spare, out + r * pitch);
}

// Bytes that ``decode`` wants to spare.
inline int64_t spare_bytes(const Weight& w) {
    return w.kind == TRELLIS ? w.inputs * w.dim : w.kind == WORDS ? w.inputs / w.dim : 0;
}

}  // namespace dither
