// Sums of products of codes and values, by tiles (AMX) or by vectors, and what they say of the outputs.

#pragma once

#include <cstdint>
#include <cstring>

#include "lanes.h"
#include "plan.h"

#if defined(__AMX_INT8__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define DITHER_TILES 1
#endif

namespace dither {

inline bool may_use_tiles() {
#ifdef DITHER_TILES
    static const bool granted = syscall(SYS_arch_prctl, 0x1023, 18) == 0;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
    return granted;
#else
    return false;
#endif
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

constexpr int WIDEST = LANES == 16 ? 4 : 2;  // vectors at a time, as registers allow

// sums (R, 64) of R rows, of ``wanted`` outputs at least.
template <int R, int WIDE>
inline void by_vectors(const Factors& f, int64_t wanted, int32_t* sums) {
    for (int64_t v = 0; v < wanted; v += WIDE * LANES) {
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
constexpr int64_t BY_VECTORS = ROWS / AT_ONCE * AT_ONCE;  // rows of a block by vectors: none are left over within it

template <int R>
inline void by_vectors(const Factors& f, int64_t wanted, int32_t* sums) {
    wanted <= LANES ? by_vectors<R, 1>(f, wanted, sums) : by_vectors<R, WIDEST>(f, wanted, sums);
}

inline void by_vectors(Factors f, int64_t rows, int64_t wanted, int32_t* sums) {
    for (int64_t r = 0; r < rows; r += AT_ONCE, f.a += AT_ONCE * f.pitch_a) {
        int32_t* to = sums + r * PANEL;
        switch (rows - r < AT_ONCE ? rows - r : AT_ONCE) {
            case 1: by_vectors<1>(f, wanted, to); break;
            case 2: by_vectors<2>(f, wanted, to); break;
            case 3: by_vectors<3>(f, wanted, to); break;
            case 4: by_vectors<4>(f, wanted, to); break;
            case 5: by_vectors<5>(f, wanted, to); break;
            default: by_vectors<6>(f, wanted, to);
        }
    }
}

#ifdef DITHER_TILES
// What has been written is in memory: compilers' headers do not say that the instructions on tiles read it.
inline void seen(const void* at) { asm volatile("" : : "r"(at) : "memory"); }

inline void enter_tiles() {
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

// The same for 32 rows and 32 outputs from ``v`` on: four tiles of sums, two of codes, two of the panel. ``work`` is done
// between steps, while tiles are multiplied. Rows of sums are ``WIDTH`` apart.
template <int64_t WIDTH = HALF, class Work>
inline void by_tiles(const Factors& f, int64_t v, int32_t* sums, const Work& work) {
    const int8_t *b = f.b + column(v, f.pitch_b), *c = f.b + column(v + COLUMN, f.pitch_b);
    seen(f.a);
    if (f.start == nullptr) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {  // all rows are the same
        const int32_t* start = f.start + v;
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
        work();
    }
    _tile_stored(0, sums, WIDTH * 4);
    _tile_stored(1, sums + 16, WIDTH * 4);
    _tile_stored(2, sums + 16 * WIDTH, WIDTH * 4);
    _tile_stored(3, sums + 16 * WIDTH + 16, WIDTH * 4);
    seen(sums);
}
#endif

// ``work(i)`` for i in [0, count), by threads that may use tiles.
template <class Work>
void multiplied(int64_t count, int64_t threads, bool tiles, const Work& work) {
#ifdef DITHER_TILES
    if (tiles) return shared(count, threads, work, enter_tiles, [] { _tile_release(); });
#endif
    (void)tiles;
    shared(count, threads, work);
}

// residual + gate y, of outputs from ``column`` of a sample's gate and from ``at`` of the residual on.
inline Floats gated(const Gate& by, int64_t sample, int64_t column, int64_t at, int64_t type, int64_t left, Floats y) {
    return fused(some(by.gate + sample * by.stride + column, left), y, some(by.residual, type, at, left));
}

// The first ``left`` of a vector's values, or all of them, to ``at`` of outputs of a type.
inline void put(Floats f, int64_t type, int64_t at, int64_t left, void* outputs) {
    if (type == F32) {
        store_some(static_cast<float*>(outputs) + at, f, left);
        return;
    }
    uint16_t* out = static_cast<uint16_t*>(outputs) + at;
    uint16_t whole[LANES];
    if (left >= LANES) {
        to_bf16(out, f);
    } else {
        to_bf16(whole, f);
        std::memcpy(out, whole, static_cast<size_t>(left) * sizeof(uint16_t));
    }
}

// Outputs [column, column + many) of a row, from their values. WHOLE: as many as there are vectors for.
template <int MANY, bool WHOLE>
inline void put(const Plan& p, int64_t row, int64_t column, int64_t many, Floats (&f)[MANY]) {
    const Linear& call = p.call;
    const int64_t to = row * call.weight.outputs + column;
    const auto left = [many](int j) { return WHOLE ? LANES : many - j * LANES; };
    if (call.gate.gate != nullptr) {
        const int64_t sample = p.sample(row);
        for (int j = 0; j < MANY; ++j) {
            if (left(j) <= 0) break;
            const Floats y = call.out_type == F32 ? f[j] : as_bf16(f[j]);  // as if the gate were an operator of its own
            f[j] = gated(call.gate, sample, column + j * LANES, to + j * LANES, call.out_type, left(j), y);
        }
    }
    for (int j = 0; j < MANY; ++j)
        if (left(j) > 0) put(f[j], call.out_type, to + j * LANES, left(j), call.out);
}

// A block of outputs: some rows, and WIDTH outputs from ``first`` on, which are [v, v + WIDTH) of the panel.
struct Block {
    int64_t row, rows, panel, v, many;
};

constexpr int64_t TURNS = 16;  // segments of passes whose sums are kept, before they are scaled all at once

// What sums (turns, rows, WIDTH) of the turns [from, to) say of the outputs, onto ``y`` (rows, WIDTH) if others were before;
// the last ones write them. A turn is a segment of a pass; they go pass by pass.
template <int WIDTH, bool EVEN, bool ZEROS, bool WHOLE>
void scaled(const Plan& p, const Block& block, int64_t from, int64_t to, const int32_t* sums, float* y) {
    constexpr int MANY = WIDTH / LANES;
    const Linear& call = p.call;
    const int64_t segments = call.segments, turns = p.passes * segments, first = block.panel * PANEL + block.v;
    const int32_t size = static_cast<int32_t>(p.size);
    Floats bias[MANY] = {};
    for (int j = 0; j < MANY; ++j) {
        const int64_t left = WHOLE ? LANES : block.many - j * LANES;
        if (call.bias != nullptr && left > 0) bias[j] = some(call.bias + first + j * LANES, left);
    }
    const int64_t begin = from % segments;
    for (int64_t r = 0; r < block.rows; ++r) {
        Floats f[MANY] = {};
        if (from > 0) {
            for (int j = 0; j < MANY; ++j) f[j] = load<Floats>(y + r * WIDTH + j * LANES);
        }
        const int32_t* sum = sums + r * WIDTH;
        for (int64_t turn = from, segment = begin; turn < to; ++turn, sum += ROWS * WIDTH) {
            const int64_t at = (block.panel * segments + segment) * PANEL + block.v;
            segment = segment + 1 == segments ? 0 : segment + 1;
            const int64_t input = (block.row + r) * turns + turn;
            const float sx = p.sx[input];
            const int32_t zx = p.zx[input], rest = ZEROS ? p.suma[input] - size * zx : 0;
            for (int j = 0; j < MANY; ++j) {
                Ints v = load<Ints>(sum + j * LANES);
                if (!EVEN) v -= zx * load<Ints>(p.sumc + at + j * LANES);
                if (ZEROS) v -= rest * load<Ints>(p.zw + at + j * LANES);
                f[j] = fused(to_floats(v) * sx, load<Floats>(p.sw + at + j * LANES), f[j]);
            }
        }
        if (to < turns) {
            for (int j = 0; j < MANY; ++j) store(y + r * WIDTH + j * LANES, f[j]);
            continue;
        }
        if (call.bias != nullptr) {
            for (int j = 0; j < MANY; ++j) f[j] += bias[j];
        }
        if (p.gelu != nullptr) {  // unrolled, or f would lie in memory
#pragma GCC unroll 8
            for (int j = 0; j < MANY; ++j) f[j] = (*p.gelu)(f[j]);
        }
        put<MANY, WHOLE>(p, block.row + r, first, block.many, f);
    }
}

template <int WIDTH, bool WHOLE>
void scaled(const Plan& p, const Block& block, int64_t from, int64_t to, const int32_t* sums, float* y) {
    const bool zeros = p.zw != nullptr;
    const auto run = p.even() ? (zeros ? scaled<WIDTH, true, true, WHOLE> : scaled<WIDTH, true, false, WHOLE>)
                              : (zeros ? scaled<WIDTH, false, true, WHOLE> : scaled<WIDTH, false, false, WHOLE>);
    run(p, block, from, to, sums, y);
}

template <int WIDTH>
void scaled(const Plan& p, const Block& block, int64_t from, int64_t to, const int32_t* sums, float* y) {
    block.many == WIDTH ? scaled<WIDTH, true>(p, block, from, to, sums, y) : scaled<WIDTH, false>(p, block, from, to, sums, y);
}

// Outputs of a block: ``sum(turn, sums)`` makes the sums (ROWS, WIDTH) of a turn.
template <int WIDTH, class Sum>
void outputs(const Plan& p, const Block& block, const Sum& sum) {
    alignas(64) int32_t sums[TURNS * ROWS * WIDTH];
    alignas(64) float y[ROWS * WIDTH];
    const int64_t turns = p.passes * p.call.segments;
    for (int64_t from = 0; from < turns; from += TURNS) {
        const int64_t to = turns - from < TURNS ? turns : from + TURNS;
        for (int64_t turn = from; turn < to; ++turn) sum(turn, sums + (turn - from) * ROWS * WIDTH);
        scaled<WIDTH>(p, block, from, to, sums, y);
    }
}

// A block whose sums (ROWS, HALF) are there, and which becomes outputs some rows at a time.
struct Behind {
    const Plan& plan;
    Block block;
    const int32_t* sums;

    void take(int64_t rows) {
        if (block.rows == 0) return;
        Block some = block;
        if (some.rows > rows) some.rows = rows;
        scaled<HALF>(plan, some, 0, 1, sums, nullptr);
        block.row += some.rows;
        block.rows -= some.rows;
        sums += some.rows * HALF;
    }
};

// Rows [row, row + rows) of a panel's outputs.
inline void multiply(const Plan& p, int64_t row, int64_t rows, int64_t panel, bool tiles) {
    const int64_t left = p.call.weight.outputs - panel * PANEL, wanted = left < PANEL ? left : PANEL;
    const int8_t* b = p.b + panel * p.pitch * PANEL;
    const int64_t segments = p.call.segments, pitch = p.passes * p.pitch;
    const int32_t* starts = p.even() ? p.sumc + panel * segments * PANEL : nullptr;
    const auto factors = [&](int64_t at, int64_t turn, int64_t bytes) {
        const int64_t s = turn % segments;
        const uint8_t* a = p.a + at * pitch + turn * p.padded;
        return Factors{a, pitch, b + s * p.padded * COLUMN, p.pitch, bytes, starts == nullptr ? nullptr : starts + s * PANEL};
    };
#ifdef DITHER_TILES
    if (tiles && p.passes * segments == 1) {  // while sums of a block are made, those of the one before become outputs
        alignas(64) int32_t both[2][ROWS * HALF];
        Behind behind{p, Block{}, nullptr};
        const int64_t each = (ROWS + p.padded / STEP - 1) / (p.padded / STEP);
        int64_t turn = 0;
        for (int64_t v = 0; v < wanted; v += HALF)  // half a panel may stay in the first cache
            for (int64_t r = row; r < row + rows; r += ROWS, turn ^= 1) {
                const int64_t many = row + rows - r, rest = wanted - v;
                by_tiles(factors(r, 0, p.padded), v, both[turn], [&] { behind.take(each); });
                behind.block = Block{r, many < ROWS ? many : ROWS, panel, v, rest < HALF ? rest : HALF};
                behind.sums = both[turn];
            }
        behind.take(ROWS);
        return;
    }
    if (tiles) {
        for (int64_t v = 0; v < wanted; v += HALF)  // half a panel may stay in the first cache
            for (int64_t r = row; r < row + rows; r += ROWS) {
                const int64_t many = row + rows - r, rest = wanted - v;
                const Block block{r, many < ROWS ? many : ROWS, panel, v, rest < HALF ? rest : HALF};
                outputs<HALF>(p, block, [&](int64_t turn, int32_t* sums) { by_tiles(factors(r, turn, p.padded), v, sums, [] {}); });
            }
        return;
    }
#endif
    (void)tiles;
    for (int64_t r = row; r < row + rows; r += BY_VECTORS) {
        const int64_t many = row + rows - r;
        const Block block{r, many < BY_VECTORS ? many : BY_VECTORS, panel, 0, wanted};
        outputs<PANEL>(p, block, [&](int64_t turn, int32_t* sums) {
            by_vectors(factors(r, turn, up(p.size, 4)), block.rows, wanted, sums);
        });
    }
}

}  // namespace dither
