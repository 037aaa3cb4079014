// A linear of int8 as it is asked for, the sizes that follow, and the memory that it takes.
//
// Along K lie segments that share all scales: one, or as many as there are groups. A segment begins at a multiple of STEP
// bytes; what is between holds 0.

#pragma once

#include <cstdint>

#include "decode.h"
#include "gelu.h"
#include "inputs.h"
#include "norm.h"
#include "parallel.h"
#include "rotate.h"

namespace dither {

constexpr int64_t PANEL = 64;   // outputs
constexpr int64_t COLUMN = 16;  // outputs whose values lie together
constexpr int64_t STEP = 64;    // bytes of a row of a tile
constexpr int64_t HALF = 32;    // outputs that tiles take at a time
constexpr int64_t ROWS = 32;    // rows that they take
constexpr int64_t MOST_INPUTS = 65536;  // their sums fit 32 bits

// Where the values of outputs from ``v`` on begin in a panel whose rows had ``pitch`` bytes.
inline int64_t column(int64_t v, int64_t pitch) { return v / COLUMN * pitch * COLUMN + v % COLUMN * 4; }

inline int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// What is asked for.
struct Linear {
    Weight weight;
    const float* scale;     // (outputs or 1, weight_groups)
    const uint8_t* zero;    // the same, or null
    int64_t scale_rows, weight_groups;
    int64_t zero_moved;     // how far codes and zero points moved together
    const void* x;          // (rows, inputs)
    int64_t x_type, rows;
    Grid grid;
    const float* act_scale;  // (rows or 1, act_groups), or null: found here
    const float* act_upper;  // of two regions, the step from 0 on
    const uint8_t* act_zero;
    int64_t act_stride, act_groups;
    int64_t segments;
    const float* bias;      // (outputs,) or null
    void* out;              // (rows, outputs)
    int64_t out_type;
    int64_t threads;
    int64_t tiles;          // whether AMX may be used
    int64_t tokens;         // rows of a sample
    int64_t before;         // rows that others take before these
    int64_t narrow;         // whether each step before inputs are rounded ends in bfloat16, as if it were an operator
    Modulation norm;        // of inputs, the first step
    Rotation rotation;      // the second one
    Gate gate;              // of outputs
};

// How it is done, and where.
struct Plan {
    // All zero points of inputs are 128: what they subtract is known beforehand, and sums start there.
    bool even() const { return call.grid.symmetric && !call.grid.regions; }
    // The sample that a row is of.
    int64_t sample(int64_t row) const { return static_cast<int64_t>(static_cast<uint32_t>(call.before + row) / static_cast<uint32_t>(call.tokens)); }
    // Whether another linear of the same inputs rounds them alike.
    bool alike(const Plan& other) const {
        const Linear &a = call, &b = other.call;
        const bool same_x = a.x == b.x && a.x_type == b.x_type && a.rows == b.rows;
        const bool same_grid = a.grid.bits == b.grid.bits && a.grid.symmetric == b.grid.symmetric && a.grid.regions == b.grid.regions;
        const bool same_ranges = a.act_scale == b.act_scale && a.act_upper == b.act_upper && a.act_zero == b.act_zero;
        const bool same_parts = a.act_groups == b.act_groups && a.segments == b.segments && size == other.size;
        return same_x && same_grid && same_ranges && same_parts && a.act_stride == b.act_stride;
    }
    // Take over the other's codes.
    void read(const Plan& other) {
        a = other.a;
        sx = other.sx;
        zx = other.zx;
        suma = other.suma;
    }
    Linear call{};
    const Gelu* gelu = nullptr;  // of outputs, or null
    int64_t size = 0;    // inputs of a segment
    int64_t padded = 0;  // bytes of a segment
    int64_t pitch = 0;   // bytes of a row of the weight's values
    int64_t passes = 0;  // over the weight; inputs have as many rows of codes, side by side
    int64_t panels = 0;
    uint8_t* a = nullptr;     // (rows, passes, pitch)
    float* sx = nullptr;      // (rows, passes, segments)
    int32_t* zx = nullptr;    // the same
    int32_t* suma = nullptr;  // the same
    int8_t* b = nullptr;      // (panels, 4, pitch / 4, 16, 4)
    int32_t* sumc = nullptr;  // (panels, segments, 64): sums of values, times -128 if zero points are even
    float* sw = nullptr;      // the same
    int32_t* zw = nullptr;    // the same, if weights have zero points
};

inline bool fits(const Linear& call) {
    const Weight& w = call.weight;
    const int64_t most_groups = call.act_groups > call.weight_groups ? call.act_groups : call.weight_groups;
    if (call.rows < 1 || w.outputs < 1 || w.inputs < 1 || w.inputs > MOST_INPUTS || call.segments < most_groups) return false;
    if (!fits(call.rotation, w.inputs)) return false;
    if ((call.norm.shift != nullptr || call.gate.gate != nullptr) && call.tokens < 1) return false;
    if (w.inputs % call.segments || call.segments % call.act_groups || call.segments % call.weight_groups) return false;
    return w.kind != TRELLIS || (PANEL % w.dim == 0 && w.outputs % w.dim == 0);
}

inline Plan sized(const Linear& call) {
    Plan p;
    p.call = call;
    p.size = call.weight.inputs / call.segments;
    p.padded = up(p.size, STEP);
    p.pitch = p.padded * call.segments;
    p.passes = passes(call.grid);
    p.panels = up(call.weight.outputs, PANEL) / PANEL;
    return p;
}

// Memory that a thread holds on to, for the weight and for the inputs of a linear.
struct Memory {
    Scratch values, tables, codes, ranges;

    void weight(Plan& p) {
        const int64_t all = p.panels * p.call.segments * PANEL;
        p.b = values.of<int8_t>(p.panels * p.pitch * PANEL);
        p.sumc = tables.of<int32_t>(3 * all);
        p.sw = reinterpret_cast<float*>(p.sumc + all);
        p.zw = p.call.zero == nullptr ? nullptr : p.sumc + 2 * all;
    }

    void inputs(Plan& p) {
        const int64_t each = p.call.rows * p.passes * p.call.segments;
        p.a = codes.of<uint8_t>(up(p.call.rows, ROWS) * p.passes * p.pitch);
        p.sx = reinterpret_cast<float*>(ranges.of<int32_t>(3 * each));
        p.zx = reinterpret_cast<int32_t*>(p.sx + each);
        p.suma = p.zx + each;
    }
};

}  // namespace dither
