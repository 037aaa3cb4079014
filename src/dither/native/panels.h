// Inputs to codes, row by row, and a packed weight to panels of int8.

#pragma once

#include <cstdint>
#include <cstring>

#include "lanes.h"
#include "plan.h"

namespace dither {

// One row of inputs. ``spare``: room for two.
inline void take_row(const Plan& p, int64_t row, float* spare) {
    const Linear& call = p.call;
    const int64_t k = call.weight.inputs;
    const float* x = spare;
    const bool turned = call.rotation.pre != nullptr || call.rotation.signs != nullptr;
    if (call.x_type == F32 && !(turned && call.norm.shift == nullptr)) x = static_cast<const float*>(call.x) + row * k;
    else widen(call.x, call.x_type, row * k, k, spare);
    if (call.norm.shift != nullptr) {
        modulated(x, k, call.norm, p.sample(row), call.narrow, spare);
        x = spare;
    }
    if (turned) rotated(spare, k, call.rotation, call.narrow, spare + k);
    const int64_t per = call.segments / call.act_groups;  // segments that share a range
    for (int64_t g = 0; g < call.act_groups; ++g) {
        const Range range = call.act_scale == nullptr ? range_of(x + g * per * p.size, per * p.size, p.even()) : Range{};
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
inline void transpose(const int8_t* rows, int64_t pitch, int8_t* panel) {
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
inline void take_panel(const Plan& p, int64_t panel, int8_t* rows, uint8_t* spare) {
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

inline void take_panel(const Plan& p, int64_t panel) {
    static thread_local Scratch rows, spare;
    take_panel(p, panel, rows.of<int8_t>(PANEL * p.pitch), spare.of<uint8_t>(spare_bytes(p.call.weight)));
}

// Rows [first, last); those that are not there become 0, as tiles read them.
inline void take_rows(const Plan& p, int64_t first, int64_t last) {
    static thread_local Scratch spare;
    float* wide = spare.of<float>(2 * p.call.weight.inputs);
    for (int64_t row = first; row < last; ++row) {
        if (row < p.call.rows) take_row(p, row, wide);
        else std::memset(p.a + row * p.passes * p.pitch, 0, static_cast<size_t>(p.passes * p.pitch));
    }
}

}  // namespace dither
