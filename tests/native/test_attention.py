"""The C++ of attention under sanitizers, for every set of instructions that this CPU has, beside sums made one by one."""

import pytest
from sanitized import needs_compiler, run

from .test_int8 import SETS, has

MAIN = r"""
#include <cstdio>
#include <vector>

using namespace dither;

static uint32_t seed = 1;
static uint32_t bits32() { return seed = seed * 1664525u + 1013904223u; }
static float random_float() { return (bits32() >> 8) / 8388608.0f - 1.0f; }

// What a value becomes, as a grid has it: the quotient is one of float32.
static double value_of(float x, const Grid& grid, float scale, int zero) {
    const int half = 1 << (grid.bits - 1);
    const double q = std::nearbyint(x / scale);
    if (grid.symmetric) return scale * std::fmin(std::fmax(q, -half), half - 1);
    return scale * (std::fmin(std::fmax(q + zero, 0), 2 * half - 1) - zero);
}

static double share_of(double p, const Probabilities& by) {
    const double s = *by.scale;
    if (!by.grid.regions) return value_of(static_cast<float>(p), by.grid, *by.scale, by.zero == nullptr ? 0 : *by.zero);
    const double u = *by.upper, half = 1 << (by.grid.bits - 1), r = std::nearbyint(p / s);
    if (r <= half - 1) return s * r;
    const double first = std::ceil((half - 1) * s / u);
    return u * std::fmin(std::fmax(std::nearbyint(p / u), first), half - 1);
}

// Every tensor has exactly as many bytes as it takes, so that a byte too far is found.
static int compare(int64_t n, int64_t m, int64_t d, int64_t e, bool regions, bool masked, bool symmetric) {
    const int64_t b = 2, h = 2;
    std::vector<float> q(b * n * h * d), k(b * m * h * d), v(b * m * h * e), out(b * n * h * e), mask(b * m);
    for (auto* t : {&q, &k, &v}) for (auto& x : *t) x = 2 * random_float();
    for (auto& x : mask) x = random_float();
    std::vector<float> scales(h, 2.0f / 127), channels(h * e, 2.0f / 100);
    std::vector<uint8_t> zeros(h, 125), moved(h * e, 60);
    const float step = regions ? 0.05f / 127 : 1.0f / 255, upper = 1.0f / 127;
    const Grid grid{8, symmetric, 0};
    Attention call{};
    call.q = {q.data(), n * h * d, d, h * d, grid, scales.data(), symmetric ? nullptr : zeros.data(), 0};
    call.k = {k.data(), m * h * d, d, h * d, grid, scales.data(), symmetric ? nullptr : zeros.data(), 0};
    call.v = {v.data(), m * h * e, e, h * e, {7, 0, 0}, channels.data(), moved.data(), 0};
    call.probs = {{8, 0, regions}, &step, regions ? &upper : nullptr, nullptr, 0};
    if (masked) { call.mask = mask.data(); call.by_sample = m; }
    call.samples = b; call.heads = h; call.queries = n; call.keys = m; call.width = d; call.v_width = e;
    call.scale = 0.5; call.out = out.data(); call.threads = 3; call.tiles = 1;
    if (dither_attention(&call)) return 1;
    int64_t away = 0;
    for (int64_t i = 0; i < b; ++i)
        for (int64_t j = 0; j < h; ++j)
            for (int64_t t = 0; t < n; ++t) {
                std::vector<double> score(m);
                double top = -1e30, all = 0;
                for (int64_t u = 0; u < m; ++u) {
                    double sum = 0;
                    for (int64_t c = 0; c < d; ++c)
                        sum += value_of(q[((i * n + t) * h + j) * d + c], grid, scales[j], zeros[j]) *
                               value_of(k[((i * m + u) * h + j) * d + c], grid, scales[j], zeros[j]);
                    score[u] = 0.5 * sum + (masked ? mask[i * m + u] : 0);
                    top = std::fmax(top, score[u]);
                }
                for (auto& s : score) all += s = std::exp(s - top);
                for (int64_t c = 0; c < e; ++c) {
                    const int64_t channel = j * e + c;
                    double want = 0;
                    for (int64_t u = 0; u < m; ++u)
                        want += share_of(score[u] / all, call.probs) *
                                value_of(v[(i * m + u) * h * e + channel], call.v.grid, channels[channel], moved[channel]);
                    const double off = std::fabs(want - out[((i * n + t) * h + j) * e + c]);
                    if (off > 2 * (regions ? upper : step)) return 2;  // codes next to a tie
                    away += off > 1e-4;
                }
            }
    return away * 50 > b * h * n * e ? 3 : 0;  // which are few
}

int main() {
    for (int64_t n : {1, 33, 40})
        for (int64_t m : {1, 64, 77})
            for (int64_t width : {20, 64, 72})
                for (int mode = 0; mode < 8; ++mode)
                    if (const int wrong = compare(n, m, width, width == 64 ? 24 : width, mode & 1, mode & 2, mode & 4)) {
                        std::printf("%d at %d %d %d %d\n", wrong, int(n), int(m), int(width), mode);
                        return 1;
                    }
    Attention call{};
    if (dither_attention(&call) != 1) return 4;
    std::puts("done");
}
"""


@needs_compiler
@pytest.mark.parametrize("flags", SETS)
def test_no_sanitizer_finds_anything_and_outputs_are_right(flags, tmp_path):
    if not has(flags):
        pytest.skip("this CPU has no such instructions")
    assert run("attention", MAIN, tmp_path, flags) == "done\n"
