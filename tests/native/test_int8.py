"""The C++ of linears under sanitizers, for every set of instructions that this CPU has, beside sums made one by one."""

import platform
import subprocess

import pytest
from sanitized import COMPILER, SOURCES, needs_compiler, run

from dither.native import build

MAIN = """
#include <cstdio>
#include <cstdlib>
#include <vector>

using namespace dither;

static uint32_t seed = 1;
static uint32_t bits32() { return seed = seed * 1664525u + 1013904223u; }
[[maybe_unused]] static float random_float() { return (bits32() >> 8) / 8388608.0f - 1.0f; }

// A weight of exactly as many bytes as it takes, so that a byte too far is found.
struct Made {
    std::vector<uint8_t> codes;
    std::vector<int8_t> table;
    std::vector<float> scale;
    std::vector<uint8_t> zero;
    Weight weight{};
};

[[maybe_unused]] static Made made(int64_t kind, int64_t bits, int64_t n, int64_t k, int64_t groups, bool zeros) {
    Made m;
    const int64_t dim = kind == INTEGERS ? 0 : 4;
    const int64_t lines = kind == TRELLIS ? n / dim : n;
    const int64_t each = kind == TRELLIS ? k * dim : kind == WORDS ? k / dim : k;
    const int64_t stride = (each * bits + 7) / 8;
    m.codes.resize(lines * stride);
    for (auto& c : m.codes) c = bits32() >> 24;
    const int64_t states = 2 * bits + 1;
    if (kind != INTEGERS) m.table.resize(kind == TRELLIS ? int64_t{1} << states : dim << bits);
    for (auto& v : m.table) v = static_cast<int8_t>(bits32() >> 24);
    m.scale.resize(n * groups);
    for (auto& s : m.scale) s = 0.01f;
    if (zeros) m.zero.resize(n * groups);
    for (auto& z : m.zero) z = bits32() >> 28;
    m.weight = Weight{kind, n, k, nullptr, stride, bits, 0, 0, 0, 0, nullptr, dim, 4, states, 0};
    if (kind == INTEGERS && bits == 8) m.weight.flip = 128;
    return m;
}

[[maybe_unused]] static void point(Made& m) {
    m.weight.codes = m.codes.data();
    m.weight.table = m.table.empty() ? nullptr : m.table.data();
}
"""

ASK = """
// A call for a weight, with a range for each row of inputs.
static Linear ask(const Made& m, const std::vector<float>& x, std::vector<float>& out, int64_t rows, int64_t groups) {
    Linear call{};
    call.weight = m.weight;
    call.scale = m.scale.data();
    call.zero = m.zero.empty() ? nullptr : m.zero.data();
    call.scale_rows = m.weight.outputs;
    call.weight_groups = call.segments = groups;
    call.act_groups = 1;
    call.x = x.data();
    call.out = out.data();
    call.rows = rows;
    return call;
}
"""

INT8 = (
    ASK
    + """
// The same by decoding rows, and sums in 64 bits.
static int compare(const Linear& call, const std::vector<float>& out) {
    const Weight& w = call.weight;
    const int64_t size = w.inputs / call.segments;
    std::vector<int8_t> values(w.outputs * w.inputs);
    std::vector<uint8_t> spare(spare_bytes(w) + 1);
    decode(w, 0, w.outputs, spare.data(), values.data(), w.inputs);
    const float* x = static_cast<const float*>(call.x);
    for (int64_t m = 0; m < call.rows; ++m)
        for (int64_t n = 0; n < w.outputs; ++n) {
            double want = call.bias == nullptr ? 0.0 : call.bias[n];
            double most = 1e-3 + std::abs(want);
            for (int64_t s = 0; s < call.segments; ++s) {
                const int64_t g = s / (call.segments / call.act_groups), h = s / (call.segments / call.weight_groups);
                const int64_t share = w.inputs / call.act_groups;
                const Range range = range_of(x + m * w.inputs + g * share, share, call.grid.symmetric && !call.grid.regions);
                for (int64_t pass = 0; pass < passes(call.grid); ++pass) {
                    const Codes may = codes_of(call.grid, pass);
                    float scale;
                    int32_t zero;
                    grid_of(range, call.grid, pass, &scale, &zero);
                    std::vector<uint8_t> a(size);
                    encode(x + m * w.inputs + s * size, size, size, may, scale, zero, a.data());
                    int64_t sum = 0;
                    const int64_t zw = call.zero == nullptr ? 0 : call.zero[n * call.weight_groups + h] - call.zero_moved;
                    for (int64_t k = 0; k < size; ++k) sum += (a[k] - zero) * (values[n * w.inputs + s * size + k] - zw);
                    want += double(sum) * scale * call.scale[n * call.weight_groups + h];
                    most += std::abs(double(sum) * scale * call.scale[n * call.weight_groups + h]);
                }
            }
            if (std::abs(want - out[m * w.outputs + n]) > 1e-5 * most) return 1;
        }
    return 0;
}

int main() {
    for (int64_t kind : {INTEGERS, WORDS, TRELLIS})
        for (int64_t bits : {1, 2, 3, 4, 5, 8})
            for (int64_t rows : {1, 7, 33})
                for (int64_t outputs : {4, 68})
                    for (int64_t groups : {1, 3})
                        for (int way = 0; way < 5; ++way) {
                            const int64_t inputs = 36, act_groups = way == 3 ? 6 : 1;
                            if (kind == TRELLIS && bits > 4) continue;
                            Made m = made(kind, bits, outputs, inputs, groups, way == 2);
                            point(m);
                            std::vector<float> x(rows * inputs), bias(outputs), out(rows * outputs, NAN);
                            for (auto& v : x) v = random_float();
                            for (auto& v : bias) v = random_float();
                            Linear call = ask(m, x, out, rows, groups);
                            call.grid = Grid{way == 1 ? 4 : 8, way != 2, way == 4};
                            call.act_groups = act_groups;
                            call.segments = act_groups > groups ? act_groups : groups;
                            call.bias = way == 1 ? nullptr : bias.data();
                            for (int64_t threads : {1, 3})
                                for (int64_t tiles : {0, 1}) {
                                    call.threads = threads;
                                    call.tiles = tiles;
                                    const std::vector<float> last = out;
                                    if (dither_linears(&call, 1)) return 1;
                                    if (last[0] == last[0] && last != out) return 2;  // the same bits each time
                                    if (compare(call, out)) return 3;
                                }
                            std::vector<uint16_t> narrow(rows * inputs, 0x3f80), half(rows * outputs);
                            call.x = narrow.data();
                            call.x_type = call.out_type = BF16;
                            call.out = half.data();
                            if (dither_linears(&call, 1)) return 4;
                            call.segments = 5;
                            if (dither_linears(&call, 1) != 1) return 5;
                        }
    std::puts("done");
}
"""
)

FEED_FORWARD = (
    ASK
    + """
int main() {
    for (int64_t kind : {INTEGERS, WORDS, TRELLIS})
        for (int64_t rows : {1, 9, 70})
            for (int way = 0; way < 4; ++way) {
                const int64_t inputs = 36, hidden = 84, groups = way == 1 ? 3 : 1;
                Made one = made(kind, 4, hidden, inputs, 1, way == 2), two = made(kind, 3, inputs, hidden, groups, false);
                point(one);
                point(two);
                std::vector<float> x(rows * inputs), y(rows * inputs, NAN), by(hidden, 0.5f), matrix(12 * 12, 1.0f);
                std::vector<int8_t> signs(hidden, -1);
                for (auto& v : x) v = random_float();
                FeedForward call{};
                call.tanh = way != 1;
                call.first = ask(one, x, y, rows, 1);
                call.second = ask(two, x, y, rows, groups);
                call.first.grid = call.second.grid = Grid{8, way != 2, way == 3};
                call.first.narrow = call.second.narrow = way == 2;
                const int64_t order = way == 2 ? 1 : 12;
                const Rotation by_blocks{by.data(), signs.data(), matrix.data(), 4 * (way == 2 ? 1 : 3), order};
                if (way > 1) call.second.rotation = by_blocks;
                for (int64_t threads : {1, 3})
                    for (int64_t tiles : {0, 1}) {
                        const std::vector<float> last = y;
                        call.first.threads = threads;
                        call.first.tiles = tiles;
                        if (dither_feed_forward(&call)) return 1;
                        if (last[0] == last[0] && last != y) return 2;  // the same bits each time
                        for (float v : y) if (v != v) return 3;
                    }
                call.second.weight.inputs = inputs;
                if (dither_feed_forward(&call) != 1) return 4;
            }
    for (float x = -12.0f; x < 12.0f; x += 0.01f) {
        const double by_tanh = 0.5 * x * (1 + std::tanh(0.7978845608 * (x + 0.044715 * x * x * x)));
        const double by_erf = 0.5 * x * (1 + std::erf(x * 0.70710678118));
        if (std::abs(gelu(all(x), true)[0] - by_tanh) > 1e-6 + 1e-6 * std::abs(by_tanh)) return 5;
        if (std::abs(gelu(all(x), false)[0] - by_erf) > 1e-6 + 1e-6 * std::abs(by_erf)) return 6;
    }
    std::puts("done");
}
"""
)

AROUND = (
    ASK
    + """
// q, k and v behind a norm, and a linear before a gate: the bits that they have one by one.
int main() {
    for (int64_t rows : {1, 9, 70})
        for (int64_t type : {F32, BF16})
            for (int64_t inputs : {5, 64, 100}) {
                const int64_t tokens = rows == 1 ? 1 : rows == 9 ? 3 : 35, samples = rows / tokens, outputs = 68;
                const size_t bytes = type == F32 ? 4 : 2;
                std::vector<Made> weights;
                for (int i = 0; i < 3; ++i) weights.push_back(made(INTEGERS, 4, outputs, inputs, 1, i == 1));
                for (auto& m : weights) point(m);
                std::vector<float> wide(rows * inputs), shift(samples * inputs), scale(shift), gate(samples * outputs);
                for (auto* v : {&wide, &shift, &scale, &gate}) for (auto& e : *v) e = random_float();
                std::vector<char> x(rows * inputs * bytes), z(rows * inputs * bytes), there(rows * outputs * bytes);
                narrowed(wide.data(), rows * inputs, type, 0, x.data());
                for (int64_t i = 0; i < rows * outputs; ++i) {
                    const float one = as_bf16(all(random_float()))[0];
                    narrowed(&one, 1, type, i, there.data());
                }
                std::vector<int8_t> signs(inputs);
                std::vector<float> matrix(20 * 20, -1.0f), by(inputs, 0.5f);
                for (auto& e : signs) e = bits32() >> 31 ? 1 : -1;
                const int64_t block = inputs == 5 ? 1 : inputs == 64 ? 32 : 20, order = block == 20 ? 20 : 1;
                const Rotation turn{type == F32 ? by.data() : nullptr, signs.data(), matrix.data(), block, order};
                const Modulation norm{shift.data(), scale.data(), inputs, 1e-6};
                Around before{x.data(), type, rows, inputs, tokens, 2, norm, turn, Gate{}, z.data()};
                if (dither_around(&before)) return 1;
                Linear apart[3], together[3];
                std::vector<char> one[3], all_at_once[3];
                std::vector<float> none(1), out(1);
                for (int i = 0; i < 3; ++i) {
                    one[i].resize(rows * outputs * bytes);
                    all_at_once[i].resize(rows * outputs * bytes);
                    Linear call = ask(weights[i], none, out, rows, 1);
                    call.grid = Grid{8, 1, 0};
                    call.x_type = call.out_type = type;
                    call.tokens = tokens;
                    call.threads = 3;
                    call.tiles = 1;
                    apart[i] = together[i] = call;
                    apart[i].x = z.data();
                    apart[i].out = one[i].data();
                    together[i].x = x.data();
                    together[i].norm = norm;
                    together[i].narrow = type == BF16;
                    if (i == 0) together[i].rotation = turn;
                    together[i].out = all_at_once[i].data();
                    if (dither_linears(&apart[i], 1)) return 2;
                }
                if (dither_linears(together, 3)) return 3;
                for (int i = 0; i < 3; ++i) if (one[i] != all_at_once[i]) return 4;
                together[2].grid.bits = 7;
                if (dither_linears(together, 3) != 1 || dither_linears(together, 5) != 1) return 5;
                std::vector<char> sum(rows * outputs * bytes);
                const Gate add{gate.data(), outputs, there.data()};
                Around after{one[0].data(), type, rows, outputs, tokens, 2, Modulation{}, Rotation{}, add, sum.data()};
                if (dither_around(&after)) return 6;
                together[0].gate = add;
                if (dither_linears(together, 1)) return 7;
                if (sum != all_at_once[0]) return 8;
                double total = 0, square = 0;
                std::vector<float> y(inputs), zeros(inputs);
                modulated(wide.data(), inputs, Modulation{zeros.data(), zeros.data(), 0, 0.0}, 0, false, y.data());
                for (float v : y) total += v, square += double(v) * v;
                if (std::abs(total) > 1e-4 * inputs || std::abs(square / inputs - 1) > 1e-5) return 9;
                together[0].rotation.block = 3;
                if (dither_linears(together, 1) != 1) return 11;
                together[0].rotation = turn;
                together[0].tokens = 0;
                if (dither_linears(together, 1) != 1) return 10;
            }
    std::puts("done");
}
"""
)

PAIRS = """
// Two values of a trellis at a time are the values one by one.
int main() {
    for (int64_t bits : {1, 2, 3, 4})
        for (int64_t rows : {4, 16})
            for (int64_t columns : {16, 32}) {
                const int64_t states = 12, inputs = 3 * columns, length = rows * columns;
                std::vector<uint8_t> codes(2 * 3 * length * bits / 8);
                for (auto& c : codes) c = bits32() >> 24;
                std::vector<int8_t> one(int64_t{1} << states), two(int64_t{2} << (states + bits));
                for (auto& v : one) v = static_cast<int8_t>(bits32() >> 24);
                for (int64_t i = 0; i < int64_t{1} << (states + bits); ++i)
                    for (int64_t j = 0; j < 2; ++j) {
                        int64_t window = 0;  // the oldest code is in its highest place, and in the lowest one of i
                        for (int64_t c = 0; c < states / bits; ++c)
                            window = window << bits | (i >> bits * (c + j) & ((1 << bits) - 1));
                        two[2 * i + j] = one[window];
                    }
                Weight w{TRELLIS, 2 * rows, inputs, codes.data(), static_cast<int64_t>(codes.size()) / 2, bits, 0, 0, 0, 0,
                         one.data(), rows, columns, states, 0};
                std::vector<int8_t> want(2 * rows * inputs), got(2 * rows * inputs);
                std::vector<uint8_t> spare(spare_bytes(w));
                decode(w, 0, 2 * rows, spare.data(), want.data(), inputs);
                w.pairs = 1;
                w.table = two.data();
                decode(w, 0, 2 * rows, spare.data(), got.data(), inputs);
                if (want != got) return 1;
            }
    std::puts("done");
}
"""

FEW = """
int main() {
    for (int64_t kind : {INTEGERS, WORDS, TRELLIS})
        for (int64_t bits : {1, 3, 4, 8})
            for (int64_t rows : {1, 2, 3, 7, 32})
                for (int64_t groups : {1, 3}) {
                    const int64_t outputs = 68, inputs = 36, size = inputs / groups;
                    if (kind == TRELLIS && bits > 4) continue;
                    Made m = made(kind, bits, outputs, inputs, groups, groups == 3);
                    point(m);
                    std::vector<float> x(rows * inputs), out(rows * outputs);
                    for (auto& v : x) v = random_float();
                    Few call{};
                    call.weight = m.weight;
                    call.scale = m.scale.data();
                    call.zero = m.zero.empty() ? nullptr : m.zero.data();
                    call.scale_rows = outputs;
                    call.groups = groups;
                    call.x = x.data();
                    call.rows = rows;
                    call.out = out.data();
                    call.threads = 3;
                    if (dither_few(&call)) return 1;
                    std::vector<int8_t> values(outputs * inputs);
                    std::vector<uint8_t> spare(spare_bytes(m.weight) + 1);
                    decode(m.weight, 0, outputs, spare.data(), values.data(), inputs);
                    for (int64_t r = 0; r < rows; ++r)
                        for (int64_t n = 0; n < outputs; ++n) {
                            double want = 0, most = 1e-3;
                            for (int64_t k = 0; k < inputs; ++k) {
                                const int64_t at = n * groups + k / size;
                                const double z = m.zero.empty() ? 0 : m.zero[at];
                                const double part = double(x[r * inputs + k]) * (values[n * inputs + k] - z) * m.scale[at];
                                want += part;
                                most += part < 0 ? -part : part;
                            }
                            const double off = want - out[r * outputs + n];
                            if ((off < 0 ? -off : off) > 1e-5 * most) return 2;
                        }
                    call.rows = 33;
                    if (dither_few(&call) != 1) return 3;
                }
    std::puts("done");
}
"""
SETS = [pytest.param(flags, id=name or "native") for name, (_, flags) in build.INSTRUCTIONS.items()]


def has(flags: tuple[str, ...]) -> bool:
    needs = next(needs for needs, own in build.INSTRUCTIONS.values() if own == flags)
    return not needs or needs in build._cpu().split()


@needs_compiler
@pytest.mark.parametrize("flags", SETS)
@pytest.mark.parametrize(
    ("name", "main"), [("int8", INT8), ("int8", FEED_FORWARD), ("int8", AROUND), ("int8", PAIRS), ("few", FEW)]
)
def test_no_sanitizer_finds_anything_and_sums_are_right(name, main, flags, tmp_path):
    if not has(flags):
        pytest.skip("this CPU has no such instructions")
    assert run(name, MAIN + main, tmp_path, flags) == "done\n"


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="flags of x86-64")
@pytest.mark.parametrize("cpu", ["x86-64", "haswell", "skylake-avx512", "icelake-server", "sapphirerapids"])
@pytest.mark.parametrize("name", ["int8", "few", "attention"])
def test_it_compiles_for_cpus_that_are_not_here(name, cpu):
    """Wide vectors without VNNI too, and no vectors of ours at all."""
    command = [COMPILER, "-std=c++17", f"-march={cpu}", "-fsyntax-only", str(SOURCES / f"{name}.cpp")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
