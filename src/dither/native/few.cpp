// Linears of a few rows of float32 with packed weights: y = sum over groups of s (sum x c  -  z sum x) + bias.
//
// Reading the weight is what takes the time: it is read once, as packed as it is, and becomes float32 in the registers alone.
// Each output is one thread's, and its sum has one order.

#include <cstdint>
#include <cstring>

#include "decode.h"
#include "lanes.h"
#include "parallel.h"

namespace dither {
namespace {

constexpr int64_t TOGETHER = 64;  // outputs of a thread's turn; whole strips of a trellis
constexpr int AT_ONCE = DITHER_WIDE ? 2 : 1;  // outputs that share what is read of x, as far as their sums are registers
constexpr int64_t MOST_ROWS = 32;
constexpr int64_t AHEAD = 16384;  // bytes of a weight, which comes from memory: a CPU by itself does not look far enough

}  // namespace

struct Few {
    Weight weight;
    const float* scale;   // (outputs or 1, groups)
    const uint8_t* zero;  // the same, or null
    int64_t scale_rows, groups, zero_moved;
    const float* x;       // (rows, inputs)
    int64_t rows;
    const float* bias;    // (outputs,) or null
    float* out;           // (rows, outputs)
    int64_t threads;
};

namespace {

// Values of a row, from its bytes as they are.
struct Bytes8 {
    const int8_t* c;
    float zero;

    Floats operator()(int64_t k, int64_t left) const {
        if (left >= LANES) return to_floats(from_bytes(c + k)) - zero;
        int8_t rest[LANES] = {};
        std::memcpy(rest, c + k, static_cast<size_t>(left));
        return to_floats(from_bytes(rest)) - zero;
    }
};

#if DITHER_WIDE
// The same from packed codes of four bits: sixteen are looked up at a time, in one register.
struct Packed4 {
    const uint8_t* c;
    Floats table;

    Floats operator()(int64_t k, int64_t) const {
        const Ints places = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};
        const Ints shifts = {0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28};
        const __m512i both = _mm512_castsi128_si512(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(c + k / 2)));
        const __m512i each = _mm512_srlv_epi32(_mm512_permutexvar_epi32((__m512i)places, both), (__m512i)shifts);
        return (Floats)_mm512_permutexvar_ps(each, (__m512)table);  // by the lowest four bits
    }
};
#endif

// Whether ``Packed4`` can read the weight.
bool is_packed4(const Few& call) {
    const Weight& w = call.weight;
    return DITHER_WIDE && w.kind == INTEGERS && w.bits == 4 && w.ones == 0 && w.inputs / call.groups % LANES == 0;
}

// y[o][r] += a scale of each of O outputs times the products of a group of inputs, for R rows; each lane has a sum of its own.
template <int O, int R, class Values>
void add(const float* x, int64_t pitch, const Values* values, int64_t count, const float* scale, Floats (*y)[R]) {
    constexpr int TURNS = 2;  // a sum waits for its last product, so there are several
    Floats sum[TURNS][O][R] = {};
    int64_t k = 0;
    for (; k + TURNS * LANES <= count; k += TURNS * LANES)
        for (int t = 0; t < TURNS; ++t) {
            Floats v[O];
            for (int o = 0; o < O; ++o) v[o] = values[o](k + t * LANES, LANES);
            for (int r = 0; r < R; ++r) {
                const Floats some_x = load<Floats>(x + r * pitch + k + t * LANES);
                for (int o = 0; o < O; ++o) sum[t][o][r] = fused(some_x, v[o], sum[t][o][r]);
            }
        }
    for (; k < count; k += LANES)
        for (int o = 0; o < O; ++o) {
            const Floats v = values[o](k, count - k);
            for (int r = 0; r < R; ++r) sum[0][o][r] = fused(some(x + r * pitch + k, count - k), v, sum[0][o][r]);
        }
    for (int o = 0; o < O; ++o)
        for (int r = 0; r < R; ++r) y[o][r] = fused(sum[0][o][r] + sum[1][o][r], all(scale[o]), y[o][r]);
}

// Outputs from ``n`` on, O of them, of R rows from ``first`` on; ``row``: values of these outputs, if they are not packed.
template <int O, int R>
void output(const Few& call, int64_t first, int64_t n, const int8_t* row, int64_t pitch) {
    const Weight& w = call.weight;
    const int64_t size = w.inputs / call.groups;
    Floats y[O][R] = {};
    for (int64_t g = 0; g < call.groups; ++g) {
        const float* x = call.x + first * w.inputs + g * size;
        float scale[O], z[O];
        for (int64_t o = 0; o < O; ++o) {
            const int64_t at = (call.scale_rows == 1 ? 0 : n + o) * call.groups + g;
            scale[o] = call.scale[at];
            z[o] = call.zero == nullptr ? 0.0f : static_cast<float>(call.zero[at]) - static_cast<float>(call.zero_moved);
        }
#if DITHER_WIDE
        if (row == nullptr) {
            Ints codes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
            codes = (codes ^ static_cast<int32_t>(w.flip)) - static_cast<int32_t>(w.sub);
            Packed4 values[O];
            for (int64_t o = 0; o < O; ++o) values[o] = {w.codes + (n + o) * w.stride + g * size / 2, to_floats(codes) - z[o]};
            add<O, R>(x, w.inputs, values, size, scale, y);
            continue;
        }
#endif
        Bytes8 values[O];
        for (int64_t o = 0; o < O; ++o) values[o] = {row + o * pitch + g * size, z[o]};
        add<O, R>(x, w.inputs, values, size, scale, y);
    }
    for (int64_t o = 0; o < O; ++o)
        for (int64_t r = 0; r < R; ++r) {
            const float sum = sum_of(y[o][r]);
            call.out[(first + r) * w.outputs + n + o] = call.bias == nullptr ? sum : sum + call.bias[n + o];
        }
}

template <int O>
void output(const Few& call, int64_t n, const int8_t* row, int64_t pitch) {
    int64_t r = 0;
    for (; r + 4 <= call.rows; r += 4) output<O, 4>(call, r, n, row, pitch);
    if (call.rows - r == 3) output<O, 3>(call, r, n, row, pitch);
    if (call.rows - r == 2) output<O, 2>(call, r, n, row, pitch);
    if (call.rows - r == 1) output<O, 1>(call, r, n, row, pitch);
}

int64_t run(const Few& call) {
    const Weight& w = call.weight;
    if (call.rows < 1 || call.rows > MOST_ROWS || w.outputs < 1 || call.groups < 1 || w.inputs % call.groups) return 1;
    if (w.kind == TRELLIS && (TOGETHER % w.dim || w.outputs % w.dim)) return 1;
    const bool packed = is_packed4(call), strips = w.kind == TRELLIS;
    const bool plain = w.kind == INTEGERS && w.bits == 8 && !(w.flip | w.sub | w.ones);  // values as they are stored
    shared((w.outputs + TOGETHER - 1) / TOGETHER, call.threads, [&](int64_t part) {
        static thread_local Scratch values_of, spare_of;
        const int64_t first = part * TOGETHER, left = w.outputs - first, many = left < TOGETHER ? left : TOGETHER;
        int8_t* c = packed || plain ? nullptr : values_of.of<int8_t>(TOGETHER * w.inputs);
        uint8_t* spare = spare_of.of<uint8_t>(spare_bytes(w));
        if (strips) decode(w, first, many, spare, c, w.inputs);
        const int64_t pitch = plain ? w.stride : w.inputs;
        int64_t n = 0;
        const auto row = [&](int64_t count) -> const int8_t* {
            if (plain) return reinterpret_cast<const int8_t*>(w.codes) + (first + n) * w.stride;
            if (packed) return nullptr;
            if (strips) return c + n * w.inputs;
            decode(w, first + n, count, spare, c, w.inputs);
            return c;
        };
        for (; n + AT_ONCE <= many; n += AT_ONCE) {
            if (!strips) fetch(w.codes + (first + n) * w.stride + AHEAD, AT_ONCE * w.stride);
            output<AT_ONCE>(call, first + n, row(AT_ONCE), pitch);
        }
        for (; n < many; ++n) output<1>(call, first + n, row(1), pitch);
    });
    return 0;
}

}  // namespace
}  // namespace dither

// 0: done; 1: not for these sizes; 2: no memory.
extern "C" int64_t dither_few(const dither::Few* call) try {
    return dither::run(*call);
} catch (const std::bad_alloc&) {
    return 2;
}
