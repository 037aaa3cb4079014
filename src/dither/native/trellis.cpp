// The best path of tiles of weights through a trellis; see dither.numerics.trellis for what it means.
//
//     cost of window (j, b) at t  =  v^2 - 2 x_t v + cost of ending in j      v: its value; j: bits that were there; b: that come
//
// Sums are taken in the order in which torch takes them, without fused multiply-adds, so that both find the same path.
// One tile at a time: its costs of one step stay in the first cache, those of all steps in the second.

#include <cstdint>
#include <limits>
#include <new>
#include <vector>

namespace {

// One step. Costs of the next endings, interleaved: ending (low, b) is at low * E + b.
template <int K>
void step(const float* square, const float* slope, const float* cost, float x, int64_t kept, float* found, float* next) {
    constexpr int E = 1 << K;
    const int64_t lows = kept >> K;
    for (int b = 0; b < E; ++b) {
        float* best = found + b * lows;
        for (int top = 0; top < E; ++top) {
            const float* q = square + b * kept + top * lows;
            const float* s = slope + b * kept + top * lows;
            const float* c = cost + top * lows;
            if (top == 0) {
                for (int64_t i = 0; i < lows; ++i) best[i] = (q[i] + x * s[i]) + c[i];
            } else {
                for (int64_t i = 0; i < lows; ++i) {
                    const float e = (q[i] + x * s[i]) + c[i];
                    best[i] = e < best[i] ? e : best[i];
                }
            }
        }
    }
    for (int64_t i = 0; i < lows; ++i)
        for (int b = 0; b < E; ++b) next[i * E + b] = found[b * lows + i];
}

template <int K>
void path_of(const float* x, int64_t length, int64_t states, const float* table, const float* square, const float* slope,
             int64_t overlap, float* costs, float* found, int32_t* path) {
    constexpr int E = 1 << K;
    const int64_t kept = int64_t{1} << (states - K);
    for (int64_t j = 0; j < kept; ++j) costs[j] = overlap < 0 ? 0.0f : std::numeric_limits<float>::infinity();
    if (overlap >= 0) costs[overlap] = 0.0f;
    for (int64_t t = 0; t < length; ++t)
        step<K>(square, slope, costs + t * kept, x[t], kept, found, costs + (t + 1) * kept);
    int64_t ending = overlap;
    if (ending < 0) {
        ending = 0;
        const float* last = costs + length * kept;
        for (int64_t j = 1; j < kept; ++j)
            if (last[j] < last[ending]) ending = j;
    }
    for (int64_t t = length - 1; t >= 0; --t) {
        int64_t chosen = ending;
        float least = std::numeric_limits<float>::infinity();
        for (int e = 0; e < E; ++e) {
            const int64_t window = e * kept + ending;
            const float v = table[window];
            const float cost = (v * v + x[t] * (v * -2.0f)) + costs[t * kept + (window >> K)];
            if (cost < least) {
                least = cost;
                chosen = window;
            }
        }
        path[t] = static_cast<int32_t>(chosen);
        ending = chosen >> K;
    }
}

}  // namespace

// Windows (tiles, length) int32 of the best paths.
//
//   x        (tiles, length)
//   table    (2^states,) value of each window
//   overlap  (tiles,) what the last states - bits bits are to be, at both ends; null leaves them free
//
// 0: done; 1: not for these sizes; 2: no memory.
extern "C" int dither_viterbi(const float* x, int64_t tiles, int64_t length, int64_t bits, int64_t states,
                              const float* table, const int32_t* overlap, int32_t* path) try {
    if (tiles < 0 || length < 1 || bits < 1 || bits > 4 || states < 2 * bits || states > 16) return 1;
    const int64_t edges = int64_t{1} << bits, kept = int64_t{1} << (states - bits);
    std::vector<float> square(edges * kept), slope(edges * kept), costs((length + 1) * kept), found(kept);
    for (int64_t j = 0; j < kept; ++j)
        for (int64_t b = 0; b < edges; ++b) {
            const float v = table[j * edges + b];
            square[b * kept + j] = v * v;
            slope[b * kept + j] = v * -2.0f;
        }
    for (int64_t i = 0; i < tiles; ++i) {
        const int64_t ends = overlap == nullptr ? -1 : overlap[i];
        if (ends >= kept) return 1;
        const auto run = bits == 1 ? path_of<1> : bits == 2 ? path_of<2> : bits == 3 ? path_of<3> : path_of<4>;
        run(x + i * length, length, states, table, square.data(), slope.data(), ends, costs.data(), found.data(),
            path + i * length);
    }
    return 0;
} catch (const std::bad_alloc&) {
    return 2;
}
