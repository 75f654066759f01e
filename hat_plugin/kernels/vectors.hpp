// Vectors of fp32 and bf16, and ways of multiplying them that window_attention.cpp is built from.
//
// Vectors are GCC's and clang's own (any processor). bf16 is multiplied as such by AVX512_BF16 (here) or AMX (tiles.hpp),
// or is widened to fp32 while it is packed.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#if defined(__SSE__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int BYTES = 64, ROWS = 8;
#elif defined(__AVX__)
constexpr int BYTES = 32, ROWS = 6;
#elif defined(__aarch64__)
constexpr int BYTES = 16, ROWS = 8;
#else
constexpr int BYTES = 16, ROWS = 4;
#endif
constexpr int LANES = BYTES / 4;
constexpr int PANEL = 2 * LANES;  // keys that are worked on at once

typedef float Floats __attribute__((vector_size(BYTES)));
typedef int32_t Ints __attribute__((vector_size(BYTES)));
typedef uint32_t Bits __attribute__((vector_size(BYTES)));
typedef uint16_t Halves __attribute__((vector_size(BYTES / 2)));

typedef uint16_t bf16;

// While it lives, this thread takes numbers below 1.2e-38 for zeros. The weights that a mask of -100 leaves are such, and
// Intel's processors take a hundred cycles for each.
class NoDenormals {
#if defined(__SSE__)
    const unsigned before = _mm_getcsr();

  public:
    NoDenormals() { _mm_setcsr(before | 0x8040); }  // results and operands
    ~NoDenormals() { _mm_setcsr(before); }
#elif defined(__aarch64__)
    uint64_t before;

  public:
    NoDenormals() {
        __asm__ volatile("mrs %0, fpcr" : "=r"(before));
        __asm__ volatile("msr fpcr, %0" : : "r"(before | uint64_t{1} << 24));
    }
    ~NoDenormals() { __asm__ volatile("msr fpcr, %0" : : "r"(before)); }
#else

  public:
    NoDenormals() {}
#endif
    NoDenormals(const NoDenormals &) = delete;
    NoDenormals &operator=(const NoDenormals &) = delete;
};

inline Floats all(float value) { return Floats{} + value; }

template <class V> inline V read(const void *from) {
    V value;
    std::memcpy(&value, from, sizeof(V));
    return value;
}

template <class V> inline void write(void *to, V value) { std::memcpy(to, &value, sizeof(V)); }

// ---- fp32 and bf16, LANES at a time -------------------------------------------------------------------------------

#if defined(__AVX512F__)  // gcc 12 makes three instructions of the other line
inline Bits widen(Halves halves) { return (Bits)_mm512_cvtepu16_epi32((__m256i)halves); }
#else
inline Bits widen(Halves halves) { return __builtin_convertvector(halves, Bits); }
#endif

// Round to nearest even; a NaN stays one.
inline Bits rounded(Floats value) {
    const Bits bits = (Bits)value;
    const Bits nearest = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const Ints number = value == value;
    return (nearest & (Bits)number) | (0x7fc0u & ~(Bits)number);
}

// The first `count` of LANES elements, raw: fp32's bits, or bf16's widened to 32 bits; zeros behind them.
inline Bits raw(const float *from, int64_t count) {
    if (count >= LANES) return read<Bits>(from);
#if defined(__AVX512F__)
    return (Bits)_mm512_maskz_loadu_epi32((__mmask16)((1u << count) - 1), from);
#else
    uint32_t part[LANES] = {};
    std::memcpy(part, from, count * sizeof(float));
    return read<Bits>(part);
#endif
}

inline Bits raw(const bf16 *from, int64_t count) {
    if (count >= LANES) return widen(read<Halves>(from));
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    return widen((Halves)_mm256_maskz_loadu_epi16((__mmask16)((1u << count) - 1), from));
#else
    bf16 part[LANES] = {};
    std::memcpy(part, from, count * sizeof(bf16));
    return widen(read<Halves>(part));
#endif
}

inline Floats load(const float *from, int64_t count) { return (Floats)raw(from, count); }
inline Floats load(const bf16 *from, int64_t count) { return (Floats)(raw(from, count) << 16); }

inline void store(float *to, Floats value, int64_t count) {
    if (count >= LANES) return write(to, value);
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(to, (__mmask16)((1u << count) - 1), (__m512)value);
#else
    std::memcpy(to, &value, count * sizeof(float));
#endif
}

inline void store(bf16 *to, Floats value, int64_t count) {
#if defined(__AVX512BF16__)
    const Halves halves = (Halves)_mm512_cvtneps_pbh((__m512)value);
#else
    const Halves halves = __builtin_convertvector(rounded(value), Halves);
#endif
    if (count >= LANES) return write(to, halves);
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    _mm256_mask_storeu_epi16(to, (__mmask16)((1u << count) - 1), (__m256i)halves);
#else
    std::memcpy(to, &halves, count * sizeof(bf16));
#endif
}

// The first `count` lanes, and `other` in those behind.
inline Floats first_lanes(Floats value, int64_t count, float other) {
    if (count >= LANES) return value;
#if defined(__AVX512F__)
    return (Floats)_mm512_mask_mov_ps((__m512)all(other), (__mmask16)((1u << count) - 1), (__m512)value);
#else
    float part[LANES];
    std::fill(part, part + LANES, other);
    std::memcpy(part, &value, count * sizeof(float));
    return read<Floats>(part);
#endif
}

// The larger (smaller) of two, lane by lane; the second where one is no number.
inline Floats larger(Floats a, Floats b) {
#if defined(__AVX512F__)
    return (Floats)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)  // gcc makes two instructions of the other line
    return (Floats)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return a > b ? a : b;
#endif
}

inline Floats smaller(Floats a, Floats b) {
#if defined(__AVX512F__)
    return (Floats)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)
    return (Floats)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return a < b ? a : b;
#endif
}

// a / b to the last digit or the one before, for a b that is neither zero nor infinite.
inline Floats quotient(Floats a, Floats b) {
#if defined(__AVX512F__)  // a division takes as long as sixteen products
    const Floats guess = (Floats)_mm512_rcp14_ps((__m512)b);
    return a * (guess * (2.0f - b * guess));
#else
    return a / b;
#endif
}

inline float largest(Floats value) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)value);
#else
    float found = value[0];
    for (int lane = 1; lane < LANES; ++lane) found = value[lane] > found ? value[lane] : found;
    return found;
#endif
}

inline float total(Floats value) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)value);
#else
    float sum = 0;
    for (int lane = 0; lane < LANES; ++lane) sum += value[lane];
    return sum;
#endif
}

#if defined(__AVX512F__)
// Blocks of SIZE lanes change places across the diagonal of two rows. A lane of `upper` is that of the first row, or
// comes SIZE lanes from the left in the second; `lower` likewise.
template <int SIZE> struct Exchange {
    alignas(64) uint32_t upper[LANES], lower[LANES];
    constexpr Exchange() : upper(), lower() {
        for (int lane = 0; lane < LANES; ++lane) {
            upper[lane] = lane & SIZE ? LANES + lane - SIZE : lane;
            lower[lane] = lane & SIZE ? LANES + lane : lane + SIZE;
        }
    }
};

template <int SIZE> inline __attribute__((always_inline)) void exchange(Bits (&rows)[LANES]) {
    static constexpr Exchange<SIZE> from;
    const __m512i upper = _mm512_load_si512(from.upper), lower = _mm512_load_si512(from.lower);
#pragma GCC unroll 16
    for (int row = 0; row < LANES; ++row) {
        if (row & SIZE) continue;
        const __m512i one = (__m512i)rows[row], other = (__m512i)rows[row + SIZE];
        rows[row] = (Bits)_mm512_permutex2var_epi32(one, upper, other);
        rows[row + SIZE] = (Bits)_mm512_permutex2var_epi32(one, lower, other);
    }
}
#endif

// LANES rows to LANES columns.
inline void turn(Bits (&rows)[LANES]) {
#if defined(__AVX512F__)
    exchange<1>(rows);
    exchange<2>(rows);
    exchange<4>(rows);
    exchange<8>(rows);
#else
    uint32_t lanes[LANES][LANES];
    std::memcpy(lanes, rows, sizeof(rows));
    for (int row = 0; row < LANES; ++row)
        for (int lane = 0; lane < LANES; ++lane) rows[lane][row] = lanes[row][lane];
#endif
}

// 2 ** x for x <= 0, to 1e-7 of its value; what is below 2 ** -126 becomes 2 ** -126. A NaN stays one.
inline Floats power_of_two(Floats x) {
    x = larger(all(-126.0f), x);
    const Floats shifted = x + 12582912.0f;  // 1.5 * 2 ** 23: the nearest integer falls into the lowest bits
    const Floats rest = x - (shifted - 12582912.0f);
    Floats y = all(1.326472720e-3f);  // minimax on [-0.5, 0.5]
    y = y * rest + 9.671512640e-3f;
    y = y * rest + 5.550733743e-2f;
    y = y * rest + 2.402224209e-1f;
    y = y * rest + 6.931469776e-1f;
    y = y * rest + 1.0f;
    return (Floats)((Ints)y + ((Ints)shifted << 23));
}

// The same to 1e-4, for results that are rounded to bf16; -inf becomes 0.
inline Floats rough_power_of_two(Floats x) {
#if defined(__AVX512DQ__)
    const Floats rest = (Floats)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF);  // what is above the integer below
    Floats y = all(7.80245e-2f);  // minimax on [0, 1]
    y = y * rest + 2.2606716e-1f;
    y = y * rest + 6.9583354e-1f;
    y = y * rest + 9.9992522e-1f;
    return (Floats)_mm512_scalef_ps((__m512)y, (__m512)x);
#else
    return power_of_two(x);
#endif
}

// ---- ways of multiplying --------------------------------------------------------------------------------------------
// A unit is what one 32-bit lane holds along the dimension that is summed over: one fp32 number, or two bf16 numbers.

// Of what numbers of elements are multiples once packed.
struct Packing {
    int64_t queries, keys, depth, channels;  // depth: units of a token where tokens are multiplied with each other
};

// What a thread needs while it multiplies, by most ways nothing.
struct NoSetting {
    NoSetting() {}
};

struct Single {
    typedef NoSetting Setting;
    static constexpr int UNIT = 1;
    static constexpr Packing PACKING{ROWS, PANEL, 1, LANES};
    static constexpr bool SCALES = true;  // `scale` is no rounding of what is multiplied
    static inline Floats power(Floats x) { return power_of_two(x); }  // as exact as what it is multiplied as
    static inline void scale(uint32_t *units, int64_t count, float factor) {
        for (int64_t i = 0; i < count; i += LANES) write(units + i, read<Floats>(units + i) * factor);
    }
    static inline Floats fma(Floats sum, uint32_t unit, Bits units) {
        float value;
        std::memcpy(&value, &unit, 4);
        return sum + value * (Floats)units;
    }
    // Two vectors of weights as PANEL / UNIT units.
    static inline void put_weights(uint32_t *to, Floats first, Floats second) {
        write(to, first);
        write(to + LANES, second);
    }
    // The same vector of two rows as units along rows; a unit's row is `stride` long.
    static inline void put_rows(uint32_t *to, int64_t stride, Floats first, Floats second) {
        write(to, first);
        write(to + stride, second);
    }
};

// How bf16 is packed by all who multiply it as bf16.
struct Pairs {
    static constexpr int UNIT = 2;
    static constexpr bool SCALES = false;
    static inline Floats power(Floats x) { return rough_power_of_two(x); }
    static inline void scale(uint32_t *, int64_t, float) {}
    static inline void put_weights(uint32_t *to, Floats first, Floats second) {
#if defined(__AVX512BF16__)
        write(to, (Bits)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first));
#else
        bf16 *halves = reinterpret_cast<bf16 *>(to);
        store(halves, first, LANES);
        store(halves + LANES, second, LANES);
#endif
    }
    static inline void put_rows(uint32_t *to, int64_t, Floats first, Floats second) {
#if defined(__AVX512BF16__)
        typedef short Lanes __attribute__((vector_size(64)));
        static constexpr Lanes IN_TURNS = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23,
                                           8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
        const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
        write(to, (Bits)_mm512_permutexvar_epi16((__m512i)IN_TURNS, both));
#else
        write(to, rounded(first) | (rounded(second) << 16));
#endif
    }
};

#if defined(__AVX512BF16__)
struct Pair : Pairs {
    typedef NoSetting Setting;
    static constexpr Packing PACKING{ROWS, PANEL, 1, LANES};
    static inline Floats fma(Floats sum, uint32_t unit, Bits units) {
        return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32((int)unit), (__m512bh)units);
    }
};
#endif

// One row of `width` channels as units: pairs of neighbours for bf16. `to` has room for whole vectors.
inline void row_units(Single *, const float *from, int64_t width, uint32_t *to) {
    for (int64_t c = 0; c < width; c += LANES) write(to + c, raw(from + c, width - c));
}
inline void row_units(Single *, const bf16 *from, int64_t width, uint32_t *to) {
    for (int64_t c = 0; c < width; c += LANES) write(to + c, raw(from + c, width - c) << 16);
}
// Sixteen units at a time, zeros behind the last channel.
inline void row_units(Pairs *, const bf16 *from, int64_t width, uint32_t *to) {
    for (int64_t c = 0; c < width; c += 32) {
#if defined(__AVX512BW__)
        const __mmask32 here = width - c >= 32 ? 0xffffffffu : (1u << (width - c)) - 1;
        write(to + c / 2, (Bits)_mm512_maskz_loadu_epi16(here, from + c));
#else
        bf16 part[32] = {};
        std::memcpy(part, from + c, std::min<int64_t>(width - c, 32) * sizeof(bf16));
        std::memcpy(to + c / 2, part, sizeof(part));
#endif
    }
}
// Two rows of `width` channels as units: the same channel of both for bf16.
inline Bits paired(Single *, const float *first, const float *, int64_t count) { return raw(first, count); }
inline Bits paired(Single *, const bf16 *first, const bf16 *, int64_t count) { return raw(first, count) << 16; }
inline Bits paired(Pairs *, const bf16 *first, const bf16 *second, int64_t count) {
    return raw(first, count) | (second ? raw(second, count) << 16 : Bits{});
}

}  // namespace
