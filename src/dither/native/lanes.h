// Vectors as wide as the CPU's, written once: arithmetic by the compiler's vector types, and what they lack by name.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace dither {

#if defined(__AVX512F__) && defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define DITHER_WIDE 1  // vectors of 64 bytes; AVX-512 alone, without VNNI, goes by AVX2
#else
#define DITHER_WIDE 0
#endif

#if DITHER_WIDE
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));
typedef int8_t Bytes __attribute__((vector_size(LANES)));

template <class V>
inline V load(const void* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

template <class V>
inline void store(void* p, const V& v) {
    std::memcpy(p, &v, sizeof v);
}

// Asks for bytes that will be read soon; nothing happens where there are none.
inline void fetch(const void* at, int64_t bytes) {
    const char* first = static_cast<const char*>(at);
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(first + i);
}

// The first ``left`` of a vector's values, or all of them; others are 0.
inline Floats some(const float* p, int64_t left) {
    if (left >= LANES) return load<Floats>(p);
#if DITHER_WIDE
    return (Floats)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1 << left) - 1), p);
#else
    Floats v{};
    std::memcpy(&v, p, static_cast<size_t>(left) * sizeof(float));
    return v;
#endif
}

inline void store_some(float* p, Floats v, int64_t left) {
    if (left >= LANES) return store(p, v);
#if DITHER_WIDE
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1 << left) - 1), (__m512)v);
#else
    std::memcpy(p, &v, static_cast<size_t>(left) * sizeof(float));
#endif
}

inline Floats all(float x) { return x - Floats{}; }
inline Ints all(int32_t x) { return x - Ints{}; }
inline Floats to_floats(Ints v) { return __builtin_convertvector(v, Floats); }

// The second one where either is NaN. Of a choice written out, compilers make two instructions.
inline Floats least(Floats a, Floats b) {
#if DITHER_WIDE
    return (Floats)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (Floats)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return a < b ? a : b;
#endif
}

inline Floats most(Floats a, Floats b) {
#if DITHER_WIDE
    return (Floats)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (Floats)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return a > b ? a : b;
#endif
}

inline Ints most(Ints a, Ints b) {
#if DITHER_WIDE
    return (Ints)_mm512_max_epi32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (Ints)_mm256_max_epi32((__m256i)a, (__m256i)b);
#else
    return a > b ? a : b;
#endif
}

// One value of all lanes: halves are joined until one is left.
template <class V, class Join>
inline auto joined(V v, const Join& join) {
    decltype(v[0] + v[0]) lanes[LANES];
    store(lanes, v);
    for (int many = LANES / 2; many > 0; many /= 2)
        for (int j = 0; j < many; ++j) lanes[j] = join(lanes[j], lanes[j + many]);
    return lanes[0];
}

#if DITHER_WIDE  // in the same order
inline float least_of(Floats v) { return _mm512_reduce_min_ps((__m512)v); }
inline float most_of(Floats v) { return _mm512_reduce_max_ps((__m512)v); }
inline int32_t most_of(Ints v) { return _mm512_reduce_max_epi32((__m512i)v); }
inline int32_t sum_of(Ints v) { return _mm512_reduce_add_epi32((__m512i)v); }
inline float sum_of(Floats v) { return _mm512_reduce_add_ps((__m512)v); }
#else
inline float least_of(Floats v) { return joined(v, [](float a, float b) { return a < b ? a : b; }); }
inline float most_of(Floats v) { return joined(v, [](float a, float b) { return a > b ? a : b; }); }
inline int32_t most_of(Ints v) { return joined(v, [](int32_t a, int32_t b) { return a > b ? a : b; }); }
inline int32_t sum_of(Ints v) { return joined(v, [](int32_t a, int32_t b) { return a + b; }); }
inline float sum_of(Floats v) { return joined(v, [](float a, float b) { return a + b; }); }
#endif
inline Floats bits_to_floats(Ints v) { return (Floats)v; }
inline Floats size_of(Floats v) { return (Floats)((Ints)v & 0x7fffffff); }

// Signed bytes to integers, and the lowest bytes of integers; compilers make the conversions of vectors one by one.
inline Ints from_bytes(const int8_t* p) {
#if DITHER_WIDE
    return (Ints)_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__AVX2__)
    return (Ints)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#else
    return __builtin_convertvector(load<Bytes>(p), Ints);
#endif
}

inline void to_bytes(uint8_t* p, Ints v) {
#if DITHER_WIDE
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8((__m512i)v));
#elif defined(__AVX2__)
    const __m256i lowest = _mm256_set1_epi32(0x0c080400);  // of each half, into its first four bytes
    const __m256i halves = _mm256_shuffle_epi8((__m256i)v, lowest);
    const __m256i both = _mm256_permutevar8x32_epi32(halves, _mm256_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(both));
#else
    store(p, __builtin_convertvector(v, Bytes));
#endif
}

// The first ``left`` of them, fewer than all: these values, with 0 for the others.
inline Ints some_bytes(uint8_t* p, Ints v, int64_t left) {
#if DITHER_WIDE
    const __mmask16 there = static_cast<__mmask16>((1 << left) - 1);
    _mm512_mask_cvtepi32_storeu_epi8(p, there, (__m512i)v);
    return (Ints)_mm512_maskz_mov_epi32(there, (__m512i)v);
#else
    Ints kept{};
    std::memcpy(&kept, &v, static_cast<size_t>(left) * sizeof(int32_t));
    for (int64_t j = 0; j < left; ++j) p[j] = static_cast<uint8_t>(kept[j]);
    return kept;
#endif
}

// bfloat16: the upper half of a float.
inline Floats from_bf16(const uint16_t* p) {
    return (Floats)(__builtin_convertvector(load<Halves>(p), Ints) << 16);
}

// To the nearest, ties to even; NaN stays one.
inline Ints bf16_bits(Floats v) {
    const Ints bits = (Ints)v;
    const Ints rounded = bits + 0x7fff + ((bits >> 16) & 1);
    const Ints kept = v == v ? rounded : (bits | 0x400000);
    return (kept >> 16) & 0xffff;
}

inline void to_bf16(uint16_t* p, Floats v) { store(p, __builtin_convertvector(bf16_bits(v), Halves)); }

inline Floats as_bf16(Floats v) { return (Floats)(bf16_bits(v) << 16); }

// To the nearest integer, ties to even, of values below 2^22 in size.
inline Floats nearest(Floats v) {
    const float magic = 12582912.0f;  // 1.5 * 2^23: nothing behind the point is left
    return (v + magic) - magic;
}

// The same of any size.
inline Floats nearest_of_any(Floats v) {
#if DITHER_WIDE
    return (Floats)_mm512_roundscale_ps((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
    return (Floats)_mm256_round_ps((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    return size_of(v) < 4194304.0f ? nearest(v) : v;
#endif
}

// Whether any lane is more than ``limit``.
inline bool any_above(Floats v, float limit) {
#if DITHER_WIDE
    return _mm512_cmp_ps_mask((__m512)v, _mm512_set1_ps(limit), _CMP_GT_OQ) != 0;
#elif defined(__AVX2__)
    return _mm256_movemask_ps(_mm256_cmp_ps((__m256)v, _mm256_set1_ps(limit), _CMP_GT_OQ)) != 0;
#else
    bool any = false;
    for (int j = 0; j < LANES; ++j) any |= v[j] > limit;
    return any;
#endif
}

// a b + c, rounded once where the CPU can.
inline Floats fused(Floats a, Floats b, Floats c) {
#if DITHER_WIDE
    return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
    return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

// v 2^n, n a whole number from -126 to 127.
inline Floats times_two_to(Floats v, Floats n) {
#if DITHER_WIDE
    return (Floats)_mm512_scalef_ps((__m512)v, (__m512)n);
#else
    return v * bits_to_floats((__builtin_convertvector(n, Ints) + 127) << 23);
#endif
}

// sum += four bytes of ``a``, unsigned and the same for all lanes, times four of each lane of ``b``, signed.
inline Ints dot(Ints sum, int32_t a, Ints b) {
#if DITHER_WIDE
    return (Ints)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32(a), (__m512i)b);
#elif defined(__AVXVNNI__)
    return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sum, _mm256_set1_epi32(a), (__m256i)b);
#elif defined(__AVX2__)
    // In 16 bits each product is exact; the one instruction for bytes saturates.
    const __m256i x = _mm256_set1_epi32(a), even = _mm256_and_si256(x, _mm256_set1_epi16(0xff));
    const __m256i y = (__m256i)b, low = _mm256_srai_epi16(_mm256_slli_epi16(y, 8), 8);
    const __m256i first = _mm256_madd_epi16(even, low);
    const __m256i second = _mm256_madd_epi16(_mm256_srli_epi16(x, 8), _mm256_srai_epi16(y, 8));
    return (Ints)_mm256_add_epi32((__m256i)sum, _mm256_add_epi32(first, second));
#else
    const uint32_t u = static_cast<uint32_t>(a);
    const Ints b0 = (b << 24) >> 24, b1 = (b << 16) >> 24, b2 = (b << 8) >> 24, b3 = b >> 24;
    const auto byte = [u](int i) { return static_cast<int32_t>(u >> 8 * i & 0xff); };
    return sum + byte(0) * b0 + byte(1) * b1 + byte(2) * b2 + byte(3) * b3;
#endif
}

}  // namespace dither
