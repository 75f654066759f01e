// Attention's products in bf16 by the matrix units of Intel's processors (AMX). A tile is 16 rows of 64 bytes; one
// instruction adds to 16x16 sums in fp32 the products of 16 rows of 16 units with 16 units of 16 columns.
//
// HAT_EMULATED_TILES computes the same on any processor, slowly, for tests.
//
// Source: "Intel Architecture Instruction Set Extensions Programming Reference", chapter on AMX.

#pragma once

#include "windows.hpp"

#if defined(HAT_EMULATED_TILES) && defined(__AVX__)
#define HAT_TILES
#elif defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__linux__) && !defined(HAT_WITHOUT_TILES)
#define HAT_TILES
#endif

#if defined(HAT_TILES)

#if !defined(HAT_EMULATED_TILES)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

constexpr int64_t SIDE = 16;  // rows of a tile, and units in a row

#if defined(HAT_EMULATED_TILES)

inline bool tiles_are_there() { return true; }

typedef NoSetting TileSetting;

inline uint32_t (&emulated(int number))[SIDE][SIDE] {
    thread_local uint32_t tile[8][SIDE][SIDE];
    return tile[number];
}

template <int TILE> inline void clear_tile() { std::memset(emulated(TILE), 0, sizeof(emulated(TILE))); }

// `stride`: bytes from a row to the next.
template <int TILE> inline void load_tile(const void *from, int64_t stride) {
    for (int64_t r = 0; r < SIDE; ++r) std::memcpy(emulated(TILE)[r], static_cast<const char *>(from) + r * stride, 4 * SIDE);
}

template <int TILE> inline void store_tile(void *to, int64_t stride) {
    for (int64_t r = 0; r < SIDE; ++r) std::memcpy(static_cast<char *>(to) + r * stride, emulated(TILE)[r], 4 * SIDE);
}

inline float as_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// SUM (16 rows, 16 columns, fp32) += LEFT (16 rows, 16 units) RIGHT (16 units, 16 columns).
template <int SUM, int LEFT, int RIGHT> inline void multiply_tiles() {
    for (int64_t r = 0; r < SIDE; ++r)
        for (int64_t unit = 0; unit < SIDE; ++unit)
            for (int64_t c = 0; c < SIDE; ++c) {
                const uint32_t left = emulated(LEFT)[r][unit], right = emulated(RIGHT)[unit][c];
                const float sum = as_float(emulated(SUM)[r][c]) + as_float(left << 16) * as_float(right << 16) +
                                  as_float(left & 0xffff0000u) * as_float(right & 0xffff0000u);
                std::memcpy(&emulated(SUM)[r][c], &sum, 4);
            }
}

#else

// Whether the system lets this process use them; it must be asked once.
inline bool tiles_are_there() {
    constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
    static const bool there = !syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA);
    return there;
}

// While it lives, this thread has eight whole tiles.
class TileSetting {
    struct alignas(64) Layout {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {};
        uint8_t rows[16] = {};
    };

  public:
    TileSetting() {
        Layout layout;
        for (int tile = 0; tile < 8; ++tile) {
            layout.row_bytes[tile] = 4 * SIDE;
            layout.rows[tile] = SIDE;
        }
        __asm__ volatile("ldtilecfg %0" : : "m"(layout));
    }
    ~TileSetting() { __asm__ volatile("tilerelease" : : : "memory"); }
    TileSetting(const TileSetting &) = delete;
    TileSetting &operator=(const TileSetting &) = delete;
};

// Own lines in the place of the compiler's functions, which do not say that they read memory.
template <int TILE> inline void clear_tile() { __asm__ volatile("tilezero %%tmm%c0" : : "i"(TILE)); }

// `stride`: bytes from a row to the next.
template <int TILE> inline void load_tile(const void *from, int64_t stride) {
    __asm__ volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(TILE), "r"(from), "r"(stride) : "memory");
}

template <int TILE> inline void store_tile(void *to, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c0, (%1,%2,1)" : : "i"(TILE), "r"(to), "r"(stride) : "memory");
}

// SUM (16 rows, 16 columns, fp32) += LEFT (16 rows, 16 units) RIGHT (16 units, 16 columns).
template <int SUM, int LEFT, int RIGHT> inline void multiply_tiles() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(SUM), "i"(LEFT), "i"(RIGHT));
}

#endif

struct Tiles : Pairs {
    typedef TileSetting Setting;
    static constexpr Packing PACKING{SIDE, 2 * SIDE, SIDE, SIDE};
};
static_assert(2 * SIDE % PANEL == 0 && PANEL % SIDE == 0, "keys are padded to whole tiles and panels");

// Two neighbouring tiles of sums: (16, units) by (units, 32 or 16). A left row is `left_stride` units long, one of
// `right` `right_stride`; the second tile's columns begin `beside` units on. WIDE: there is a second one.
template <bool WIDE>
inline void multiply_tiles(const uint32_t *left, int64_t left_stride, const uint32_t *right, int64_t right_stride,
                           int64_t beside, int64_t units, float *to, int64_t stride) {
    clear_tile<0>();
    if (WIDE) clear_tile<1>();
    for (int64_t unit = 0; unit < units; unit += SIDE) {
        load_tile<2>(left + unit, 4 * left_stride);
        load_tile<3>(right + unit * right_stride, 4 * right_stride);
        multiply_tiles<0, 2, 3>();
        if (WIDE) {
            load_tile<4>(right + unit * right_stride + beside, 4 * right_stride);
            multiply_tiles<1, 2, 4>();
        }
    }
    store_tile<0>(to, 4 * stride);
    if (WIDE) store_tile<1>(to + SIDE, 4 * stride);
}

// (16, keys) in fp32: 16 tokens from `units` on times all keys, which are panels.
inline void multiply_panels(const Sizes &s, const uint32_t *units, const uint32_t *panels, float *to, int64_t stride) {
    // In a panel, the 16 keys after the first lie beside them, or begin the next panel.
    const int64_t beside = PANEL > SIDE ? SIDE : PANEL * s.depth;
    if (s.depth == SIDE) {  // heads up to 32 wide: the tokens' tile stays
        load_tile<2>(units, 4 * SIDE);
        for (int64_t column = 0; column < s.keys; column += 2 * SIDE) {
            clear_tile<0>();
            clear_tile<1>();
            load_tile<3>(panels + column * SIDE, 4 * PANEL);
            load_tile<4>(panels + column * SIDE + beside, 4 * PANEL);
            multiply_tiles<0, 2, 3>();
            multiply_tiles<1, 2, 4>();
            store_tile<0>(to + column, 4 * stride);
            store_tile<1>(to + column + SIDE, 4 * stride);
        }
        return;
    }
    for (int64_t column = 0; column < s.keys; column += 2 * SIDE)
        multiply_tiles<true>(units, s.depth, panels + column * s.depth, PANEL, beside, s.depth, to + column, stride);
}

// Products of a query with all keys to its logits, in place, and the largest of them; bias and mask are its rows.
template <class B> float finish_logits(const Sizes &s, float *row, const B *bias, const B *mask, float scale) {
    Floats most = all(-std::numeric_limits<float>::infinity());
    const auto finish = [&](int64_t column, int64_t count) {
        Floats value = read<Floats>(row + column) * scale + load(bias + column, count);
        return mask ? value + load(mask + column, count) : value;
    };
    int64_t column = 0;
    for (; column + LANES <= s.m; column += LANES) {
        const Floats value = finish(column, LANES);
        write(row + column, value);
        most = larger(value, most);
    }
    for (; column < s.keys; column += LANES) {
        const int64_t left = std::max<int64_t>(s.m - column, 0);
        const Floats value = first_lanes(finish(column, left), left, -std::numeric_limits<float>::infinity());
        write(row + column, value);
        most = larger(value, most);
    }
    return largest(most);
}

// Weighted sums of `values` for 16 queries from `first` on, each times its factor. Units along keys, a query's
// beginning `stride` after the one before; `room`: (16, 32).
template <class T>
void write_sums(const Sizes &s, const uint32_t *units, int64_t stride, const uint32_t *values, int64_t first,
                const float *factor, float *room, T *const *out) {
    const int64_t count = std::min(SIDE, s.n - first);
    for (int64_t channel = 0; channel < s.values; channel += 2 * SIDE) {
        if (channel + SIDE < s.values)
            multiply_tiles<true>(units, stride, values + channel, s.values, SIDE, s.keys / 2, room, 2 * SIDE);
        else
            multiply_tiles<false>(units, stride, values + channel, s.values, 0, s.keys / 2, room, 2 * SIDE);
        for (int64_t r = 0; r < count; ++r)
            for (int64_t c = 0; c < 2 * SIDE && channel + c < s.width; c += LANES)
                store(out[first + r] + channel + c, read<Floats>(room + r * 2 * SIDE + c) * factor[r], s.width - channel - c);
    }
}

// As `logits` and what follows, for 16 queries from `first` on. `weights`: (16, keys). `softmax`: null, or to be filled.
template <class T, class B>
void attend_tiles(const Sizes &s, const uint32_t *q, const uint32_t *k, const uint32_t *v, int64_t first, const B *bias,
                  const B *mask, float scale, float *weights, float *room, Softmax *softmax, T *const *out) {
    const int64_t stride = s.row();
    multiply_panels(s, q + first * s.depth, k, weights, stride);
    float inverse[SIDE];
    for (int64_t r = 0; r < std::min(SIDE, s.n - first); ++r) {
        float *row = weights + r * stride;
        const int64_t at = (first + r) * s.m;
        const float peak = finish_logits(s, row, bias + at, mask ? mask + at : nullptr, scale);
        const float sum = exponentials<Tiles>(row, s.keys, peak);
        inverse[r] = 1.0f / sum;
        if (softmax) softmax[first + r] = {peak, sum};
    }
    write_sums(s, reinterpret_cast<const uint32_t *>(weights), stride, v, first, inverse, room, out);
}

}  // namespace

#endif
