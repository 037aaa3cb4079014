// Linears of int8: y = s_x s_w [ sum a c  -  z_x sum c  -  z_w sum a  +  K z_x z_w ] + bias, as in dither.kernels.int8.
//
// Three things happen, each shared by all threads:
//
//   1. inputs become codes a, unsigned bytes, row by row; packed weights become int8 values c, once for each call, in panels
//      of 64 outputs whose bytes lie as the instructions want them: [K / 4][64][4]
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
#include "lanes.h"
#include "parallel.h"

#if defined(__AMX_INT8__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define DITHER_TILES 1
#endif

namespace dither {
namespace {

constexpr int64_t PANEL = 64;  // outputs
constexpr int64_t STEP = 64;   // bytes of a row of a tile
constexpr int64_t HALF = 32;   // outputs that tiles take at a time
constexpr int64_t ROWS = 32;   // the same
constexpr int64_t MOST_INPUTS = 65536;  // their sums fit 32 bits

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
    const Linear& call;
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
    int32_t* sumc = nullptr;  // (panels, segments, 64)
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

// 64 rows of int8, ``pitch`` bytes each, to [pitch / 4][64][4]: a matrix of 32-bit words is transposed.
void transpose(const int8_t* rows, int64_t pitch, int8_t* panel) {
    constexpr int64_t BLOCK = 16;
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
            for (int64_t j = 0; j < 16; ++j) _mm512_storeu_si512(panel + ((k + j) * PANEL + n) * 4, r[j]);
#else
            for (int64_t j = 0; j < BLOCK; ++j) {
                int32_t out[BLOCK];
                for (int64_t i = 0; i < BLOCK; ++i) out[i] = load<int32_t>(from + i * pitch + j * 4);
                std::memcpy(panel + ((k + j) * PANEL + n) * 4, out, sizeof out);
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
                sum = dot(sum, 0x01010101, load<Ints>(b + ((s * p.padded + k) / 4 * PANEL + v) * 4));
            store(p.sumc + at + v, sum);
        }
        for (int64_t n = 0; n < PANEL; ++n) {
            const int64_t from = (call.scale_rows == 1 ? 0 : first + n) * call.weight_groups + s / per;
            p.sw[at + n] = n < many ? call.scale[from] : 0.0f;
            if (p.zw != nullptr)
                p.zw[at + n] = n < many ? static_cast<int32_t>(call.zero[from]) - static_cast<int32_t>(call.zero_moved) : 0;
        }
    }
}

// sums (R, 64) of R rows of codes and a panel's segment of ``bytes``.
template <int R>
void by_vectors(const uint8_t* a, int64_t pitch, const int8_t* b, int64_t bytes, int32_t* sums) {
    constexpr int WIDE = LANES == 16 ? 4 : 2;  // vectors at a time, as registers allow
    for (int64_t v = 0; v < PANEL; v += WIDE * LANES) {
        Ints sum[R][WIDE] = {};
        for (int64_t k = 0; k < bytes; k += 4) {
            Ints c[WIDE];
            for (int j = 0; j < WIDE; ++j) c[j] = load<Ints>(b + (k / 4 * PANEL + v + j * LANES) * 4);
#pragma GCC unroll 8
            for (int i = 0; i < R; ++i) {
                const int32_t four = load<int32_t>(a + i * pitch + k);
                for (int j = 0; j < WIDE; ++j) sum[i][j] = dot(sum[i][j], four, c[j]);
            }
        }
        for (int i = 0; i < R; ++i)
            for (int j = 0; j < WIDE; ++j) store(sums + i * PANEL + v + j * LANES, sum[i][j]);
    }
}

constexpr int64_t AT_ONCE = LANES == 16 ? 6 : 4;  // rows by vectors

void by_vectors(const uint8_t* a, int64_t pitch, const int8_t* b, int64_t bytes, int64_t rows, int32_t* sums) {
    for (int64_t r = 0; r < rows; r += AT_ONCE) {
        const uint8_t* at = a + r * pitch;
        int32_t* to = sums + r * PANEL;
        switch (rows - r < AT_ONCE ? rows - r : AT_ONCE) {
            case 1: by_vectors<1>(at, pitch, b, bytes, to); break;
            case 2: by_vectors<2>(at, pitch, b, bytes, to); break;
            case 3: by_vectors<3>(at, pitch, b, bytes, to); break;
            case 4: by_vectors<4>(at, pitch, b, bytes, to); break;
            case 5: by_vectors<5>(at, pitch, b, bytes, to); break;
            default: by_vectors<6>(at, pitch, b, bytes, to);
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

// The same for 32 rows and 32 outputs: four tiles of sums, two of codes, two of the panel.
void by_tiles(const uint8_t* a, int64_t pitch, const int8_t* b, int64_t bytes, int32_t* sums) {
    seen(a);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < bytes; k += STEP, b += STEP * PANEL) {
        _tile_loadd(4, a + k, pitch);
        _tile_loadd(6, b, PANEL * 4);
        _tile_loadd(7, b + 64, PANEL * 4);
        _tile_dpbusd(0, 4, 6);
        _tile_dpbusd(1, 4, 7);
        _tile_loadd(5, a + 16 * pitch + k, pitch);
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
template <int WIDTH, bool ZEROS>
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
            Ints sum = load<Ints>(sums + r * WIDTH + j * LANES) - zx * sumc[j];
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
    p.zw == nullptr ? scaled<WIDTH, false>(p, block, turn, sums, y) : scaled<WIDTH, true>(p, block, turn, sums, y);
}

// Rows [row, row + rows) of a panel's outputs.
void multiply(const Plan& p, int64_t row, int64_t rows, int64_t panel, bool tiles) {
    alignas(64) int32_t sums[ROWS * PANEL];
    alignas(64) float y[ROWS * PANEL];
    const int64_t left = p.call.weight.outputs - panel * PANEL, outputs = left < PANEL ? left : PANEL;
    const int8_t* b = p.b + panel * p.pitch * PANEL;
    const int64_t segments = p.call.segments, turns = p.passes * segments, pitch = p.passes * p.pitch;
#ifdef DITHER_TILES
    if (tiles) {
        for (int64_t v = 0; v < outputs; v += HALF)  // half a panel may stay in the first cache
            for (int64_t r = 0; r < rows; r += ROWS) {
                const int64_t rest = outputs - v;
                const Block block{row + r, rows - r < ROWS ? rows - r : ROWS, panel, v, rest < HALF ? rest : HALF};
                for (int64_t turn = 0; turn < turns; ++turn) {
                    const int8_t* values = b + turn % segments * p.padded * PANEL + v * 4;
                    by_tiles(p.a + (row + r) * pitch + turn * p.padded, pitch, values, p.padded, sums);
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
            const int8_t* values = b + turn % segments * p.padded * PANEL;
            by_vectors(p.a + (row + r) * pitch + turn * p.padded, pitch, values, up(p.size, 4), block.rows, sums);
            scaled<PANEL>(p, block, turn, sums, y);
        }
    }
}

int64_t run(const Linear& call) {
    const Weight& w = call.weight;
    const int64_t most_groups = call.act_groups > call.weight_groups ? call.act_groups : call.weight_groups;
    if (call.rows < 1 || w.outputs < 1 || w.inputs < 1 || w.inputs > MOST_INPUTS || call.segments < most_groups) return 1;
    if (w.inputs % call.segments || call.segments % call.act_groups || call.segments % call.weight_groups) return 1;
    if (w.kind == TRELLIS && (PANEL % w.dim || w.outputs % w.dim)) return 1;

    static thread_local Scratch codes, values, tables;
    const bool tiles = call.tiles && call.rows >= 8 && may_use_tiles();
    Plan p(call);
    p.size = w.inputs / call.segments;
    p.padded = up(p.size, STEP);
    p.pitch = p.padded * call.segments;
    p.passes = passes(call.grid);
    p.panels = up(w.outputs, PANEL) / PANEL;
    const int64_t held = up(call.rows, ROWS), each = call.rows * p.passes * call.segments;
    const int64_t all = p.panels * call.segments * PANEL;
    p.a = codes.of<uint8_t>(held * p.passes * p.pitch);
    p.b = values.of<int8_t>(p.panels * p.pitch * PANEL);
    int32_t* table = tables.of<int32_t>(3 * each + 3 * all);
    p.sx = reinterpret_cast<float*>(table);
    p.zx = table + each;
    p.suma = table + 2 * each;
    p.sumc = table + 3 * each;
    p.sw = reinterpret_cast<float*>(p.sumc + all);
    p.zw = call.zero == nullptr ? nullptr : p.sumc + 2 * all;

    const int64_t parts = held / ROWS;
    shared(p.panels + parts, call.threads, [&](int64_t i) {
        static thread_local Scratch spare, more;
        if (i < p.panels) {
            take_panel(p, i, spare.of<int8_t>(PANEL * p.pitch), more.of<uint8_t>(spare_bytes(w)));
            return;
        }
        float* wide = spare.of<float>(w.inputs);
        for (int64_t row = (i - p.panels) * ROWS; row < (i - p.panels + 1) * ROWS; ++row) {
            if (row < call.rows) take_row(p, row, wide);
            else std::memset(p.a + row * p.passes * p.pitch, 0, static_cast<size_t>(p.passes * p.pitch));  // tiles read them
        }
    });

    // Codes of some rows stay in the second cache while panels pass by; enough parts for the threads to end together.
    int64_t rows = up((256 << 10) / (p.passes * p.pitch) + 1, ROWS);
    while (rows > ROWS && up(call.rows, rows) / rows * p.panels < 4 * call.threads) rows = up(rows / 2, ROWS);
    const int64_t chunks = up(call.rows, rows) / rows;
    const auto work = [&](int64_t i) {
        const int64_t row = i / p.panels * rows, left = call.rows - row;
        multiply(p, row, left < rows ? left : rows, i % p.panels, tiles);
    };
#ifdef DITHER_TILES
    if (tiles) {
        shared(chunks * p.panels, call.threads, work, enter_tiles, [] { _tile_release(); });
        return 0;
    }
#endif
    shared(chunks * p.panels, call.threads, work);
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
