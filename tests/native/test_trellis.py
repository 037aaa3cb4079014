"""The C++ of trellis codes under sanitizers: every size that it takes, and those that it refuses."""

from sanitized import needs_compiler, run

MAIN = """
#include <cstdio>

int main() {
    uint32_t seed = 1;
    auto random = [&] { seed = seed * 1664525u + 1013904223u; return (seed >> 8) / 8388608.0f - 1.0f; };
    for (int64_t bits = 1; bits <= 4; ++bits)
        for (int64_t states = 2 * bits; states <= 12; ++states)
            for (int64_t length : {1, 2, 7, 33}) {
                const int64_t tiles = 3;
                std::vector<float> x(tiles * length), table(int64_t{1} << states);
                std::vector<int32_t> path(tiles * length, -1), ends(tiles, 1);
                for (auto& v : x) v = random();
                for (auto& v : table) v = random();
                auto find = [&](int64_t n, const int32_t* at) {
                    return dither_viterbi(x.data(), n, length, bits, states, table.data(), at, path.data());
                };
                if (find(tiles, nullptr)) return 1;
                for (int32_t p : path) if (p < 0 || p >= int64_t{1} << states) return 2;
                for (int64_t i = 0; i < tiles; ++i)  // windows follow each other
                    for (int64_t t = 1; t < length; ++t) {
                        const int64_t mask = (int64_t{1} << (states - bits)) - 1;
                        if ((path[i * length + t - 1] & mask) != path[i * length + t] >> bits) return 3;
                    }
                if (find(tiles, ends.data())) return 4;
                ends[2] = int32_t{1} << (states - bits);
                if (find(tiles, ends.data()) != 1) return 5;
                if (find(0, nullptr)) return 6;
            }
    float x = 0, table[2] = {0, 0};
    int32_t path;
    const int64_t bad[5][3] = {{1, 0, 4}, {1, 5, 12}, {1, 2, 3}, {1, 2, 17}, {0, 2, 8}};
    for (const auto& b : bad)
        if (dither_viterbi(&x, 1, b[0], b[1], b[2], table, nullptr, &path) != 1) return 7;
    std::puts("done");
}
"""


@needs_compiler
def test_no_sanitizer_finds_anything(tmp_path):
    assert run("trellis", MAIN, tmp_path) == "done\n"
