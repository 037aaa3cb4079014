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
constexpr int64_t MOST_ROWS = 16;

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

// sums[r] = sum of x[r] (c - z) over ``count`` inputs, for R rows that lie ``pitch`` apart.
template <int R>
void dots(const float* x, int64_t pitch, const int8_t* c, float z, int64_t count, float* sums) {
    constexpr int TURNS = 4;  // a sum waits for its last product, so there are several
    Floats sum[R][TURNS] = {};
    int64_t k = 0;
    for (; k + TURNS * LANES <= count; k += TURNS * LANES)
        for (int t = 0; t < TURNS; ++t) {
            const Floats v = to_floats(from_bytes(c + k + t * LANES)) - z;
            for (int r = 0; r < R; ++r) sum[r][t] = fused(load<Floats>(x + r * pitch + k + t * LANES), v, sum[r][t]);
        }
    for (; k + LANES <= count; k += LANES) {
        const Floats v = to_floats(from_bytes(c + k)) - z;
        for (int r = 0; r < R; ++r) sum[r][0] = fused(load<Floats>(x + r * pitch + k), v, sum[r][0]);
    }
    for (int r = 0; r < R; ++r) sums[r] = sum_of((sum[r][0] + sum[r][1]) + (sum[r][2] + sum[r][3]));
    for (; k < count; ++k)
        for (int r = 0; r < R; ++r) sums[r] += x[r * pitch + k] * (static_cast<float>(c[k]) - z);
}

void dots(int64_t rows, const float* x, int64_t pitch, const int8_t* c, float z, int64_t count, float* sums) {
    for (; rows >= 4; rows -= 4, x += 4 * pitch, sums += 4) dots<4>(x, pitch, c, z, count, sums);
    if (rows == 3) dots<3>(x, pitch, c, z, count, sums);
    if (rows == 2) dots<2>(x, pitch, c, z, count, sums);
    if (rows == 1) dots<1>(x, pitch, c, z, count, sums);
}

int64_t run(const Few& call) {
    const Weight& w = call.weight;
    if (call.rows < 1 || call.rows > MOST_ROWS || w.outputs < 1 || call.groups < 1 || w.inputs % call.groups) return 1;
    if (w.kind == TRELLIS && (TOGETHER % w.dim || w.outputs % w.dim)) return 1;
    const int64_t size = w.inputs / call.groups;
    shared((w.outputs + TOGETHER - 1) / TOGETHER, call.threads, [&](int64_t part) {
        static thread_local Scratch values_of, spare;
        const int64_t first = part * TOGETHER, left = w.outputs - first, many = left < TOGETHER ? left : TOGETHER;
        int8_t* c = values_of.of<int8_t>(TOGETHER * w.inputs);
        const bool strips = w.kind == TRELLIS;
        if (strips) decode(w, first, many, spare.of<uint8_t>(spare_bytes(w)), c, w.inputs);
        for (int64_t n = first; n < first + many; ++n) {
            int8_t* row = strips ? c + (n - first) * w.inputs : c;
            if (!strips) decode(w, n, 1, spare.of<uint8_t>(spare_bytes(w)), row, w.inputs);
            float y[MOST_ROWS] = {}, sums[MOST_ROWS];
            for (int64_t g = 0; g < call.groups; ++g) {
                const int64_t at = (call.scale_rows == 1 ? 0 : n) * call.groups + g;
                const float z = call.zero == nullptr ? 0.0f : static_cast<float>(call.zero[at]) - static_cast<float>(call.zero_moved);
                dots(call.rows, call.x + g * size, w.inputs, row + g * size, z, size, sums);
                for (int64_t r = 0; r < call.rows; ++r) y[r] += sums[r] * call.scale[at];
            }
            for (int64_t r = 0; r < call.rows; ++r)
                call.out[r * w.outputs + n] = call.bias == nullptr ? y[r] : y[r] + call.bias[n];
        }
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
