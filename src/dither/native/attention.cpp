// Attention on quantized factors: A = p(softmax(q(Q) k(K)^T scale + mask)), Y = A v(V), as in dither.nn.attention.
//
// Both products are sums of integers. A head's keys and values become panels, as weights of linears do: of keys for the
// scores, of channels of v for the outputs. Then some queries at a time go all the way, and no whole A is anywhere.
//
// What is not finite in a query makes its outputs NaN; in a key or a value, those of its whole head.

#include <cstdint>
#include <new>

#include "attend.h"
#include "parallel.h"

namespace dither {
namespace {

bool fits(const Attention& c) {
    if (c.samples < 1 || c.heads < 1 || c.queries < 1 || c.keys < 1 || c.width < 1 || c.v_width < 1) return false;
    if (c.keys > MOST_INPUTS || c.width > MOST_INPUTS) return false;  // sums fit 32 bits
    for (const Grid* grid : {&c.q.grid, &c.k.grid, &c.v.grid})
        if (grid->bits < 2 || grid->bits > 8 || grid->regions) return false;
    const Probabilities& p = c.probs;
    if (p.grid.regions && (p.scale == nullptr || p.upper == nullptr)) return false;
    return c.v.scale != nullptr && p.grid.bits >= 2 && p.grid.bits <= 8;
}

int64_t run(const Attention& call) {
    if (!fits(call)) return 1;
    const bool tiles = call.tiles && call.queries >= ROWS / 2 && may_use_tiles();
    // A head's keys are read again by each part of its queries, which should not be few.
    const int64_t together = call.samples * call.heads;
    int64_t each = up(call.queries, ROWS);
    while (each > 4 * ROWS && up(call.queries, each) / each * together < 4 * call.threads) each = up(each / 2, ROWS);
    const int64_t parts = up(call.queries, each) / each;
    multiplied(together * parts, call.threads, tiles, [&](int64_t i) {
        const int64_t head = i / parts, from = i % parts * each, to = from + each;
        attend(call, head / call.heads, head % call.heads, from, to < call.queries ? to : call.queries, tiles);
    });
    return 0;
}

}  // namespace
}  // namespace dither

// 0: done; 1: not for these sizes; 2: no memory.
extern "C" int64_t dither_attention(const dither::Attention* call) try {
    return dither::run(*call);
} catch (const std::bad_alloc&) {
    return 2;
}
