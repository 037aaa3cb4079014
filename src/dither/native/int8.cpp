// Linears of int8: y = s_x s_w [ sum a c  -  z_x sum c  -  z_w sum a  +  K z_x z_w ] + bias, as in dither.kernels.int8.
//
// Three things happen, each shared by all threads:
//
//   1. inputs become codes a, unsigned bytes, row by row; packed weights become int8 values c, once for each call, in panels
//      of 64 outputs whose bytes lie as the instructions want them: [4][K / 4][16][4], four columns of 16 outputs
//   2. integer sums, a panel and a few rows at a time, by tiles (AMX) where the CPU has them, else by vectors
//   3. sums become outputs while they are still in the caches
//
// Each output is computed by the same operations in the same order whatever the threads.

#include <cstdint>
#include <cstring>
#include <new>

#include "gelu.h"
#include "multiply.h"
#include "panels.h"
#include "parallel.h"
#include "plan.h"

namespace dither {
namespace {

constexpr int64_t FEWEST = 8;  // rows that tiles are worth their while for

constexpr int64_t MOST_TOGETHER = 4;

// Linears that read the same inputs, which become codes once.
int64_t run(const Linear* calls, int64_t count) {
    static thread_local Memory memory[MOST_TOGETHER];
    if (count < 1 || count > MOST_TOGETHER) return 1;
    Plan plans[MOST_TOGETHER];
    const Plan& p = plans[0];
    int64_t panels = 0, at[MOST_TOGETHER];
    for (int64_t i = 0; i < count; ++i) {
        if (!fits(calls[i])) return 1;
        plans[i] = sized(calls[i]);
        if (!plans[i].alike(p) && i > 0) return 1;
        memory[i].weight(plans[i]);
        if (i == 0) memory[0].inputs(plans[0]);
        plans[i].read(p);
        at[i] = panels;
        panels += plans[i].panels;
    }
    const int64_t threads = p.call.threads, all_rows = p.call.rows;
    const bool tiles = p.call.tiles && all_rows >= FEWEST && may_use_tiles();
    const auto of = [&](int64_t panel) {
        int64_t i = count - 1;
        while (panel < at[i]) --i;
        return i;
    };
    shared(panels + up(all_rows, ROWS) / ROWS, threads, [&](int64_t i) {
        const int64_t part = i - panels, linear = part < 0 ? of(i) : 0;
        part < 0 ? take_panel(plans[linear], i - at[linear]) : take_rows(p, part * ROWS, (part + 1) * ROWS);
    });
    // Codes of some rows stay in the second cache while panels pass by; enough parts for the threads to end together.
    const int64_t block = tiles ? ROWS : BY_VECTORS;
    int64_t rows = up((256 << 10) / (p.passes * p.pitch) + 1, block);
    while (rows > block && up(all_rows, rows) / rows * panels < 4 * threads) rows = up(rows / 2, block);
    multiplied(up(all_rows, rows) / rows * panels, threads, tiles, [&](int64_t i) {
        const int64_t row = i / panels * rows, left = all_rows - row, linear = of(i % panels);
        multiply(plans[linear], row, left < rows ? left : rows, i % panels - at[linear], tiles);
    });
    return 0;
}

}  // namespace

// Two linears with a GELU between them, as in the feed-forward part of a transformer.
struct FeedForward {
    Linear first, second;  // the first one's outputs and the second one's inputs are found here
    int64_t tanh;          // whether GELU is the approximation by tanh
};

namespace {

// Rows [row, row + rows) of a plan whose weight is there, as a plan of their own.
Plan part_of(const Plan& whole, int64_t row, int64_t rows, Memory& memory) {
    Plan p = whole;
    Linear& call = p.call;
    call.rows = rows;
    call.before += row;
    call.x = static_cast<const char*>(call.x) + row * call.weight.inputs * (call.x_type == F32 ? 4 : 2);
    if (call.act_scale != nullptr) call.act_scale += row * call.act_stride;
    if (call.act_upper != nullptr) call.act_upper += row * call.act_stride;
    if (call.act_zero != nullptr) call.act_zero += row * call.act_stride;
    const int64_t written = row * call.weight.outputs * (call.out_type == F32 ? 4 : 2);
    call.out = static_cast<char*>(call.out) + written;
    if (call.gate.gate != nullptr) call.gate.residual = static_cast<const char*>(call.gate.residual) + written;
    memory.inputs(p);
    return p;
}

void computed(const Plan& p, bool tiles) {
    take_rows(p, 0, up(p.call.rows, ROWS));
    for (int64_t panel = 0; panel < p.panels; ++panel) multiply(p, 0, p.call.rows, panel, tiles);
}

// Some rows at a time go all the way: what is between the linears stays in the second cache.
int64_t run(const FeedForward& call) {
    static thread_local Memory weights[2];
    const int64_t rows = call.first.rows, hidden = call.first.weight.outputs, threads = call.first.threads;
    if (!fits(call.first) || !fits(call.second) || call.second.weight.inputs != hidden || call.second.rows != rows) return 1;
    const bool tiles = call.first.tiles && rows >= FEWEST && may_use_tiles();
    Plan first = sized(call.first), second = sized(call.second);
    const Gelu activation{call.tanh != 0, call.second.narrow != 0};
    first.gelu = &activation;
    weights[0].weight(first);
    weights[1].weight(second);
    shared(first.panels + second.panels, threads, [&](int64_t i) {
        i < first.panels ? take_panel(first, i) : take_panel(second, i - first.panels);
    });
    const int64_t block = tiles ? ROWS : BY_VECTORS;
    int64_t some = up((1024 << 10) / (hidden * 4) + 1, block);
    if (some > 4 * block) some = 4 * block;
    while (some > block && up(rows, some) / some < 2 * threads) some = up(some / 2, block);
    multiplied(up(rows, some) / some, threads, tiles, [&](int64_t i) {
        static thread_local Memory inputs[2];
        static thread_local Scratch middle;
        const int64_t row = i * some, left = rows - row, many = left < some ? left : some;
        float* y = middle.of<float>(many * hidden);
        Plan p = part_of(first, row, many, inputs[0]);
        p.call.out = y;
        p.call.out_type = F32;
        computed(p, tiles);
        Plan q = part_of(second, row, many, inputs[1]);
        q.call.x = y;
        q.call.x_type = F32;
        computed(q, tiles);
    });
    return 0;
}

}  // namespace
}  // namespace dither

// 0: done; 1: not for these sizes; 2: no memory.
extern "C" int64_t dither_linears(const dither::Linear* calls, int64_t count) try {
    return dither::run(calls, count);
} catch (const std::bad_alloc&) {
    return 2;
}

extern "C" int64_t dither_feed_forward(const dither::FeedForward* call) try {
    return dither::run(*call);
} catch (const std::bad_alloc&) {
    return 2;
}

namespace dither {
namespace {

// ``count`` values, one for each of a row or of some, as outputs are stored.
void narrowed(const float* y, int64_t count, int64_t type, int64_t at, void* out) {
    if (type == F32) {
        std::memcpy(static_cast<float*>(out) + at, y, static_cast<size_t>(count) * sizeof(float));
        return;
    }
    for (int64_t i = 0; i < count; ++i) {  // rounded already
        uint32_t bits;
        std::memcpy(&bits, y + i, sizeof bits);
        static_cast<uint16_t*>(out)[at + i] = static_cast<uint16_t>(bits >> 16);
    }
}

}  // namespace
}  // namespace dither

// GELU of ``count`` values, with the bits that a feed-forward part has.
extern "C" void dither_gelu(const void* x, int64_t type, int64_t count, int64_t tanh, int64_t threads, void* out) {
    constexpr int64_t TOGETHER = 4096;
    const dither::Gelu of{tanh != 0, type == dither::BF16};
    dither::shared((count + TOGETHER - 1) / TOGETHER, threads, [&](int64_t part) {
        float y[TOGETHER];
        const int64_t first = part * TOGETHER, left = count - first, many = left < TOGETHER ? left : TOGETHER;
        dither::widen(x, type, first, many, y);
        dither::gelu(y, many, of);
        dither::narrowed(y, many, type, first, out);
    });
}

// Rows that are modulated, rotated, or gated and added to others, with the bits that linears give them.
struct Around {
    const void* x;
    int64_t type, rows, width, tokens, threads;
    dither::Modulation norm;
    dither::Rotation rotation;
    dither::Gate gate;
    void* out;
};

// 0: done; 1: not for these sizes; 2: no memory.
extern "C" int64_t dither_around(const Around* call) try {
    using namespace dither;
    if (call->rows < 1 || call->width < 1 || call->tokens < 1 || !fits(call->rotation, call->width)) return 1;
    const int64_t together = 1 + (1 << 14) / call->width, width = call->width;
    shared((call->rows + together - 1) / together, call->threads, [&](int64_t part) {
        static thread_local Scratch memory;
        float* y = memory.of<float>(2 * width);
        for (int64_t row = part * together; row < (part + 1) * together && row < call->rows; ++row) {
            const int64_t sample = row / call->tokens, at = row * width;
            widen(call->x, call->type, at, width, y);
            if (call->norm.shift != nullptr) modulated(y, width, call->norm, sample, call->type == BF16, y);
            rotated(y, width, call->rotation, call->type == BF16, y + width);
            if (call->gate.gate != nullptr)
                for (int64_t i = 0; i < width; i += LANES) {
                    const int64_t left = width - i;
                    Floats v = gated(call->gate, sample, i, at + i, call->type, left, some(y + i, left));
                    if (call->type == BF16) v = as_bf16(v);
                    store_some(y + i, v, left);
                }
            narrowed(y, width, call->type, at, call->out);
        }
    });
    return 0;
} catch (const std::bad_alloc&) {
    return 2;
}

// What sums integers here: 3 AMX tiles, 2 AVX-512 VNNI, 1 AVX-VNNI, 0 AVX2; -1: nothing that beats torch.
extern "C" int64_t dither_means(void) {
#if DITHER_WIDE
    return dither::may_use_tiles() ? 3 : 2;
#elif defined(__AVXVNNI__)
    return 1;
#elif defined(__AVX2__)
    return 0;
#else
    return -1;
#endif
}
