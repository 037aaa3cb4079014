// Linears of int8: y = s_x s_w [ sum a c  -  z_x sum c  -  z_w sum a  +  K z_x z_w ] + bias, as in dither.kernels.int8.
//
// Three things happen, each shared by all threads:
//
//   1. inputs become codes a, unsigned bytes, row by row; packed weights become int8 values c, once for each call, in panels
//      of 64 outputs whose bytes lie as the instructions want them: [4][K / 4][16][4], four columns of 16 outputs
//   2. integer sums, a panel and a few rows at a time, by tiles (AMX) where the CPU has them, else by vectors
//   3. sums become outputs while they are still in the caches
//
// Along K lie segments that share all scales: one, or as many as there are groups. A segment begins at a multiple of STEP
// bytes; what is between holds 0. Each output is computed by the same operations in the same order whatever the threads.

#include <cmath>
#include <cstdint>
#include <cstring>

#include "decode.h"
#include "inputs.h"
#include "gelu.h"
#include "lanes.h"
#include "parallel.h"

#if defined(__AMX_INT8__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define DITHER_TILES 1
#endif

namespace dither {
namespace {

constexpr int64_t PANEL = 64;   // outputs
constexpr int64_t COLUMN = 16;  // outputs whose values lie together
constexpr int64_t STEP = 64;   // bytes of a row of a tile
constexpr int64_t HALF = 32;   // outputs that tiles take at a time
constexpr int64_t ROWS = 32;   // the same
constexpr int64_t MOST_INPUTS = 65536;  // their sums fit 32 bits

// Where the values of outputs from ``v`` on begin in a panel whose rows had ``pitch`` bytes.
int64_t column(int64_t v, int64_t pitch) { return v / COLUMN * pitch * COLUMN + v % COLUMN * 4; }

int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

}  // namespace

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
};

namespace {

bool may_use_tiles() {
#ifdef DITHER_TILES
    static const bool granted = syscall(SYS_arch_prctl, 0x1023, 18) == 0;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
    return granted;
#else
    return false;
#endif
}

// What phases share.
struct Plan {
    explicit Plan(const Linear& linear) : call(linear) {}
    // All zero points of inputs are 128: what they subtract is known beforehand, and sums start there.
    bool even() const { return call.grid.symmetric && !call.grid.regions; }
    Linear call;
    int64_t size = 0;    // inputs of a segment
    int64_t padded = 0;  // bytes of a segment
    int64_t pitch = 0;   // bytes of a row of the weight's values
    int64_t passes = 0;  // over the weight; inputs have as many rows of codes, side by side
    int64_t panels = 0;
    uint8_t* a = nullptr;     // (rows, passes, pitch)
    float* sx = nullptr;      // (rows, passes, segments)
    int32_t* zx = nullptr;    // the same
    int32_t* suma = nullptr;  // the same
    int8_t* b = nullptr;      // (panels, pitch / 4, 64, 4)
    int32_t* sumc = nullptr;  // (panels, segments, 64): sums of values, times -128 if zero points are even
    float* sw = nullptr;      // the same
    int32_t* zw = nullptr;    // the same, if weights have zero points
};

// One row of inputs.
void take_row(const Plan& p, int64_t row, float* spare) {
    const Linear& call = p.call;
    const int64_t k = call.weight.inputs;
    const float* x = spare;
    if (call.x_type == F32) x = static_cast<const float*>(call.x) + row * k;
    else widen(call.x, call.x_type, row * k, k, spare);
    const int64_t per = call.segments / call.act_groups;  // segments that share a range
    for (int64_t g = 0; g < call.act_groups; ++g) {
        const Range range = call.act_scale == nullptr ? range_of(x + g * per * p.size, per * p.size) : Range{};
        for (int64_t pass = 0; pass < p.passes; ++pass) {
            const Codes may = codes_of(call.grid, pass);
            float scale;
            int32_t zero = may.zero;
            if (call.act_scale == nullptr) {
                grid_of(range, call.grid, pass, &scale, &zero);
            } else {
                const float* given = call.grid.regions && pass == 0 ? call.act_upper : call.act_scale;
                scale = given[row * call.act_stride + g];
                if (call.act_zero != nullptr) zero = call.act_zero[row * call.act_stride + g];
            }
            for (int64_t s = g * per; s < (g + 1) * per; ++s) {
                const int64_t at = (row * p.passes + pass) * call.segments + s;
                uint8_t* out = p.a + at * p.padded;
                p.sx[at] = scale;
                p.zx[at] = zero;
                p.suma[at] = encode(x + s * p.size, p.size, p.padded, may, scale, zero, out);
            }
        }
    }
}

// 64 rows of int8, ``pitch`` bytes each, to [4][pitch / 4][16][4]: matrices of 32-bit words are transposed.
void transpose(const int8_t* rows, int64_t pitch, int8_t* panel) {
    constexpr int64_t BLOCK = COLUMN;
    for (int64_t k = 0; k < pitch / 4; k += BLOCK)
        for (int64_t n = 0; n < PANEL; n += BLOCK) {
            const int8_t* from = rows + n * pitch + k * 4;
#if defined(__AVX512F__)
            __m512i r[16], t[16];
            for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(from + i * pitch);
            for (int i = 0; i < 16; i += 2) {
                t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
                t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
            }
            for (int i = 0; i < 16; i += 4) {
                r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
                r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
                r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
                r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
            }
            for (int i = 0; i < 4; ++i) {
                t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
                t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
                t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
                t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
            }
            for (int i = 0; i < 4; ++i) {
                r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
                r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
                r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
                r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
            }
            for (int64_t j = 0; j < 16; ++j) _mm512_storeu_si512(panel + column(n, pitch) + (k + j) * BLOCK * 4, r[j]);
#else
            for (int64_t j = 0; j < BLOCK; ++j) {
                int32_t out[BLOCK];
                for (int64_t i = 0; i < BLOCK; ++i) out[i] = load<int32_t>(from + i * pitch + j * 4);
                std::memcpy(panel + column(n, pitch) + (k + j) * BLOCK * 4, out, sizeof out);
            }
#endif
        }
}

// One panel of the weight, with the sums of its values and its scales.
void take_panel(const Plan& p, int64_t panel, int8_t* rows, uint8_t* spare) {
    const Linear& call = p.call;
    const Weight& w = call.weight;
    const int64_t first = panel * PANEL, many = w.outputs - first < PANEL ? w.outputs - first : PANEL;
    decode(w, first, many, spare, rows, p.pitch);
    std::memset(rows + many * p.pitch, 0, static_cast<size_t>((PANEL - many) * p.pitch));
    for (int64_t n = 0; n < many; ++n) {  // segments apart, from the last one on
        int8_t* row = rows + n * p.pitch;
        if (call.segments == 1) {
            std::memset(row + p.size, 0, static_cast<size_t>(p.padded - p.size));
            continue;
        }
        if (p.padded == p.size) continue;
        for (int64_t s = call.segments - 1; s >= 0; --s) {
            std::memmove(row + s * p.padded, row + s * p.size, static_cast<size_t>(p.size));
            std::memset(row + s * p.padded + p.size, 0, static_cast<size_t>(p.padded - p.size));
        }
    }
    int8_t* b = p.b + panel * p.pitch * PANEL;
    transpose(rows, p.pitch, b);
    const int64_t per = call.segments / call.weight_groups;
    for (int64_t s = 0; s < call.segments; ++s) {
        const int64_t at = (panel * call.segments + s) * PANEL;
        for (int64_t v = 0; v < PANEL; v += LANES) {
            Ints sum{};
            for (int64_t k = 0; k < p.padded; k += 4)
                sum = dot(sum, 0x01010101, load<Ints>(b + column(v, p.pitch) + (s * p.padded + k) * COLUMN));
            store(p.sumc + at + v, p.even() ? sum * -128 : sum);
        }
        for (int64_t n = 0; n < PANEL; ++n) {
            const int64_t from = (call.scale_rows == 1 ? 0 : first + n) * call.weight_groups + s / per;
            p.sw[at + n] = n < many ? call.scale[from] : 0.0f;
            if (p.zw != nullptr)
                p.zw[at + n] = n < many ? static_cast<int32_t>(call.zero[from]) - static_cast<int32_t>(call.zero_moved) : 0;
        }
    }
}

// Rows of codes, and a segment of a panel, that are to be multiplied.
struct Factors {
    const uint8_t* a;
    int64_t pitch_a;
    const int8_t* b;
    int64_t pitch_b;
    int64_t bytes;
    const int32_t* start;  // (64,) what sums begin with, or null
};

// sums (R, 64) of R rows.
template <int R>
void by_vectors(const Factors& f, int32_t* sums) {
    constexpr int WIDE = LANES == 16 ? 4 : 2;  // vectors at a time, as registers allow
    for (int64_t v = 0; v < PANEL; v += WIDE * LANES) {
        Ints sum[R][WIDE] = {};
        if (f.start != nullptr)
            for (int i = 0; i < R; ++i)
                for (int j = 0; j < WIDE; ++j) sum[i][j] = load<Ints>(f.start + v + j * LANES);
        const int8_t* from[WIDE];
        for (int j = 0; j < WIDE; ++j) from[j] = f.b + column(v + j * LANES, f.pitch_b);
        for (int64_t k = 0; k < f.bytes; k += 4) {
            Ints c[WIDE];
            for (int j = 0; j < WIDE; ++j) c[j] = load<Ints>(from[j] + k * COLUMN);
#pragma GCC unroll 8
            for (int i = 0; i < R; ++i) {
                const int32_t four = load<int32_t>(f.a + i * f.pitch_a + k);
                for (int j = 0; j < WIDE; ++j) sum[i][j] = dot(sum[i][j], four, c[j]);
            }
        }
        for (int i = 0; i < R; ++i)
            for (int j = 0; j < WIDE; ++j) store(sums + i * PANEL + v + j * LANES, sum[i][j]);
    }
}

constexpr int64_t AT_ONCE = LANES == 16 ? 6 : 4;  // rows by vectors

void by_vectors(Factors f, int64_t rows, int32_t* sums) {
    for (int64_t r = 0; r < rows; r += AT_ONCE, f.a += AT_ONCE * f.pitch_a) {
        int32_t* to = sums + r * PANEL;
        switch (rows - r < AT_ONCE ? rows - r : AT_ONCE) {
            case 1: by_vectors<1>(f, to); break;
            case 2: by_vectors<2>(f, to); break;
            case 3: by_vectors<3>(f, to); break;
            case 4: by_vectors<4>(f, to); break;
            case 5: by_vectors<5>(f, to); break;
            default: by_vectors<6>(f, to);
        }
    }
}

#ifdef DITHER_TILES
// What has been written is in memory: compilers' headers do not say that the instructions on tiles read it.
inline void seen(const void* at) { asm volatile("" : : "r"(at) : "memory"); }

void enter_tiles() {
    alignas(64) struct {
        uint8_t palette = 1, start = 0, reserved[14] = {};
        uint16_t bytes[16] = {};
        uint8_t rows[16] = {};
    } config;
    for (int t = 0; t < 8; ++t) {
        config.bytes[t] = 64;
        config.rows[t] = 16;
    }
    seen(&config);
    _tile_loadconfig(&config);
}

// The same for 32 rows and 32 outputs from ``v`` on: four tiles of sums, two of codes, two of the panel.
void by_tiles(const Factors& f, int64_t v, int32_t* sums) {
    const int8_t *b = f.b + column(v, f.pitch_b), *c = f.b + column(v + COLUMN, f.pitch_b);
    const int32_t* start = f.start + v;
    seen(f.a);
    if (f.start == nullptr) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {  // all rows are the same
        _tile_loadd(0, start, 0);
        _tile_loadd(1, start + 16, 0);
        _tile_loadd(2, start, 0);
        _tile_loadd(3, start + 16, 0);
    }
    for (int64_t k = 0; k < f.bytes; k += STEP) {
        _tile_loadd(4, f.a + k, f.pitch_a);
        _tile_loadd(6, b + k * COLUMN, COLUMN * 4);
        _tile_loadd(7, c + k * COLUMN, COLUMN * 4);
        _tile_dpbusd(0, 4, 6);
        _tile_dpbusd(1, 4, 7);
        _tile_loadd(5, f.a + 16 * f.pitch_a + k, f.pitch_a);
        _tile_dpbusd(2, 5, 6);
        _tile_dpbusd(3, 5, 7);
    }
    _tile_stored(0, sums, HALF * 4);
    _tile_stored(1, sums + 16, HALF * 4);
    _tile_stored(2, sums + 16 * HALF, HALF * 4);
    _tile_stored(3, sums + 16 * HALF + 16, HALF * 4);
}
#endif

// ``many`` outputs of a row, from their values.
void put(const Linear& call, int64_t to, int64_t many, const Floats* f) {
    for (int64_t v = 0; v * LANES < many; ++v, to += LANES) {
        const int64_t left = many - v * LANES;
        if (call.out_type == F32) {
            float* out = static_cast<float*>(call.out) + to;
            if (left >= LANES) store(out, f[v]);
            else std::memcpy(out, &f[v], static_cast<size_t>(left) * sizeof(float));
        } else {
            uint16_t* out = static_cast<uint16_t*>(call.out) + to;
            uint16_t whole[LANES];
            if (left >= LANES) {
                to_bf16(out, f[v]);
            } else {
                to_bf16(whole, f[v]);
                std::memcpy(out, whole, static_cast<size_t>(left) * sizeof(uint16_t));
            }
        }
    }
}

// A block of outputs: some rows, and WIDTH outputs from ``first`` on, which are [v, v + WIDTH) of the panel.
struct Block {
    int64_t row, rows, panel, v, many;
};

// What sums (rows, WIDTH) say of the outputs, onto ``y`` (rows, WIDTH) if others were before; the last one writes them.
// ``turn``: segments of a pass, pass by pass.
template <int WIDTH, bool EVEN, bool ZEROS>
void scaled(const Plan& p, const Block& block, int64_t turn, const int32_t* sums, float* y) {
    constexpr int MANY = WIDTH / LANES;
    const Linear& call = p.call;
    const int64_t s = turn % call.segments, turns = p.passes * call.segments;
    const int64_t at = (block.panel * call.segments + s) * PANEL + block.v, first = block.panel * PANEL + block.v;
    const bool last = turn == turns - 1;
    const int32_t size = static_cast<int32_t>(p.size);
    Floats sw[MANY], bias[MANY] = {};
    Ints sumc[MANY], zw[MANY] = {};
    for (int j = 0; j < MANY; ++j) {
        sw[j] = load<Floats>(p.sw + at + j * LANES);
        sumc[j] = load<Ints>(p.sumc + at + j * LANES);
        if (ZEROS) zw[j] = load<Ints>(p.zw + at + j * LANES);
        const int64_t left = block.many - j * LANES;
        if (call.bias != nullptr && left > 0)
            std::memcpy(&bias[j], call.bias + first + j * LANES, static_cast<size_t>(left < LANES ? left : LANES) * 4);
    }
    for (int64_t r = 0; r < block.rows; ++r) {
        const int64_t from = (block.row + r) * turns + turn;
        const float sx = p.sx[from];
        const int32_t zx = p.zx[from], rest = ZEROS ? p.suma[from] - size * zx : 0;
        Floats f[MANY];
        for (int j = 0; j < MANY; ++j) {
            Ints sum = load<Ints>(sums + r * WIDTH + j * LANES);
            if (!EVEN) sum -= zx * sumc[j];
            if (ZEROS) sum -= rest * zw[j];
            f[j] = to_floats(sum) * sx * sw[j];
            if (turn > 0) f[j] += load<Floats>(y + r * WIDTH + j * LANES);
            if (!last) store(y + r * WIDTH + j * LANES, f[j]);
            else if (call.bias != nullptr) f[j] += bias[j];
        }
        if (last) put(call, (block.row + r) * call.weight.outputs + first, block.many, f);
    }
}

template <int WIDTH>
void scaled(const Plan& p, const Block& block, int64_t turn, const int32_t* sums, float* y) {
    const bool zeros = p.zw != nullptr;
    if (p.even()) zeros ? scaled<WIDTH, true, true>(p, block, turn, sums, y) : scaled<WIDTH, true, false>(p, block, turn, sums, y);
    else zeros ? scaled<WIDTH, false, true>(p, block, turn, sums, y) : scaled<WIDTH, false, false>(p, block, turn, sums, y);
}

// Rows [row, row + rows) of a panel's outputs.
void multiply(const Plan& p, int64_t row, int64_t rows, int64_t panel, bool tiles) {
    alignas(64) int32_t sums[ROWS * PANEL];
    alignas(64) float y[ROWS * PANEL];
    const int64_t left = p.call.weight.outputs - panel * PANEL, outputs = left < PANEL ? left : PANEL;
    const int8_t* b = p.b + panel * p.pitch * PANEL;
    const int64_t segments = p.call.segments, turns = p.passes * segments, pitch = p.passes * p.pitch;
    const int32_t* starts = p.even() ? p.sumc + panel * segments * PANEL : nullptr;
    const auto factors = [&](int64_t at, int64_t turn, int64_t bytes) {
        const int64_t s = turn % segments;
        const uint8_t* a = p.a + at * pitch + turn * p.padded;
        return Factors{a, pitch, b + s * p.padded * COLUMN, p.pitch, bytes, starts == nullptr ? nullptr : starts + s * PANEL};
    };
#ifdef DITHER_TILES
    if (tiles) {
        for (int64_t v = 0; v < outputs; v += HALF)  // half a panel may stay in the first cache
            for (int64_t r = 0; r < rows; r += ROWS) {
                const int64_t rest = outputs - v;
                const Block block{row + r, rows - r < ROWS ? rows - r : ROWS, panel, v, rest < HALF ? rest : HALF};
                for (int64_t turn = 0; turn < turns; ++turn) {
                    by_tiles(factors(row + r, turn, p.padded), v, sums);
                    scaled<HALF>(p, block, turn, sums, y);
                }
            }
        return;
    }
#endif
    (void)tiles;
    for (int64_t r = 0; r < rows; r += ROWS) {
        const Block block{row + r, rows - r < ROWS ? rows - r : ROWS, panel, 0, outputs};
        for (int64_t turn = 0; turn < turns; ++turn) {
            by_vectors(factors(row + r, turn, up(p.size, 4)), block.rows, sums);
            scaled<PANEL>(p, block, turn, sums, y);
        }
    }
}

bool fits(const Linear& call) {
    const Weight& w = call.weight;
    const int64_t most_groups = call.act_groups > call.weight_groups ? call.act_groups : call.weight_groups;
    if (call.rows < 1 || w.outputs < 1 || w.inputs < 1 || w.inputs > MOST_INPUTS || call.segments < most_groups) return false;
    if (w.inputs % call.segments || call.segments % call.act_groups || call.segments % call.weight_groups) return false;
    return w.kind != TRELLIS || (PANEL % w.dim == 0 && w.outputs % w.dim == 0);
}

Plan sized(const Linear& call) {
    Plan p(call);
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

void take_panel(const Plan& p, int64_t panel) {
    static thread_local Scratch rows, spare;
    take_panel(p, panel, rows.of<int8_t>(PANEL * p.pitch), spare.of<uint8_t>(spare_bytes(p.call.weight)));
}

// Rows [first, last); those that are not there become 0, as tiles read them.
void take_rows(const Plan& p, int64_t first, int64_t last) {
    static thread_local Scratch spare;
    float* wide = spare.of<float>(p.call.weight.inputs);
    for (int64_t row = first; row < last; ++row) {
        if (row < p.call.rows) take_row(p, row, wide);
        else std::memset(p.a + row * p.passes * p.pitch, 0, static_cast<size_t>(p.passes * p.pitch));
    }
}

template <class Work>
void multiplied(int64_t count, int64_t threads, bool tiles, const Work& work) {
#ifdef DITHER_TILES
    if (tiles) return shared(count, threads, work, enter_tiles, [] { _tile_release(); });
#endif
    (void)tiles;
    shared(count, threads, work);
}

constexpr int64_t FEWEST = 8;  // rows that tiles are worth their while for

int64_t run(const Linear& call) {
    static thread_local Memory memory;
    if (!fits(call)) return 1;
    const bool tiles = call.tiles && call.rows >= FEWEST && may_use_tiles();
    Plan p = sized(call);
    memory.weight(p);
    memory.inputs(p);
    shared(p.panels + up(call.rows, ROWS) / ROWS, call.threads, [&](int64_t i) {
        const int64_t part = i - p.panels;
        part < 0 ? take_panel(p, i) : take_rows(p, part * ROWS, (part + 1) * ROWS);
    });
    // Codes of some rows stay in the second cache while panels pass by; enough parts for the threads to end together.
    int64_t rows = up((256 << 10) / (p.passes * p.pitch) + 1, ROWS);
    while (rows > ROWS && up(call.rows, rows) / rows * p.panels < 4 * call.threads) rows = up(rows / 2, ROWS);
    multiplied(up(call.rows, rows) / rows * p.panels, call.threads, tiles, [&](int64_t i) {
        const int64_t row = i / p.panels * rows, left = call.rows - row;
        multiply(p, row, left < rows ? left : rows, i % p.panels, tiles);
    });
    return 0;
}

}  // namespace

// Two linears with a GELU between them, as in the feed-forward part of a transformer.
struct FeedForward {
    Linear first, second;  // the first one's outputs and the second one's inputs are found here
    const float* between;  // (hidden,) what activations are multiplied by, or null
    int64_t tanh;          // whether GELU is the approximation by tanh
};

namespace {

// Rows [row, row + rows) of a plan whose weight is there, as a plan of their own.
Plan part_of(const Plan& whole, int64_t row, int64_t rows, Memory& memory) {
    Plan p = whole;
    Linear& call = p.call;
    call.rows = rows;
    call.x = static_cast<const char*>(call.x) + row * call.weight.inputs * (call.x_type == F32 ? 4 : 2);
    if (call.act_scale != nullptr) call.act_scale += row * call.act_stride;
    if (call.act_upper != nullptr) call.act_upper += row * call.act_stride;
    if (call.act_zero != nullptr) call.act_zero += row * call.act_stride;
    call.out = static_cast<char*>(call.out) + row * call.weight.outputs * (call.out_type == F32 ? 4 : 2);
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
    weights[0].weight(first);
    weights[1].weight(second);
    shared(first.panels + second.panels, threads, [&](int64_t i) {
        i < first.panels ? take_panel(first, i) : take_panel(second, i - first.panels);
    });
    int64_t some = up((1024 << 10) / (hidden * 4) + 1, ROWS);
    if (some > 4 * ROWS) some = 4 * ROWS;
    while (some > ROWS && up(rows, some) / some < 2 * threads) some = up(some / 2, ROWS);
    multiplied(up(rows, some) / some, threads, tiles, [&](int64_t i) {
        static thread_local Memory inputs[2];
        static thread_local Scratch middle;
        const int64_t row = i * some, left = rows - row, many = left < some ? left : some;
        float* y = middle.of<float>(many * hidden);
        Plan p = part_of(first, row, many, inputs[0]);
        p.call.out = y;
        p.call.out_type = F32;
        computed(p, tiles);
        gelu(y, many, hidden, call.between, call.tanh != 0);
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
extern "C" int64_t dither_linear(const dither::Linear* call) try {
    return dither::run(*call);
} catch (const std::bad_alloc&) {
    return 2;
}

extern "C" int64_t dither_feed_forward(const dither::FeedForward* call) try {
    return dither::run(*call);
} catch (const std::bad_alloc&) {
    return 2;
}

// What sums integers here: 3 AMX tiles, 2 AVX-512 VNNI, 1 AVX-VNNI, 0 AVX2; -1: nothing that beats torch.
extern "C" int64_t dither_means(void) {
#if defined(__AVX512F__) && defined(__AVX512VNNI__) && defined(__AVX512BW__)
    return dither::may_use_tiles() ? 3 : 2;
#elif defined(__AVXVNNI__)
    return 1;
#elif defined(__AVX2__)
    return 0;
#else
    return -1;
#endif
}
