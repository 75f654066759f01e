// A linear layer or a 3x3 convolution in bf16 by matrix units (tile_product.hpp): what is known of it, and its weights as
// tiles.

#pragma once

#include "memory.hpp"
#include "tiles.hpp"

// The caller fills it: library.py has the same fields in the same order. Everything is contiguous.
struct TileProduct {
    const void *x;                         // (pixels, inputs), fp32 or, if half_x, bf16
    const void *weight;                    // (outputs, taps, inputs), bf16; if `turned`, (inputs, taps backwards, outputs)
    const float *bias;                     // (outputs), or null
    const float *norm_weight, *norm_bias;  // layer normalisation of x before, (inputs); or null
    const void *add;                       // like out, added; or null
    const void *scaled;                    // (pixels, outputs), bf16, added times `factor`; or null
    const float *factor;                   // (images, outputs)
    void *out;                             // (pixels, outputs), fp32 or, if half_out, bf16
    void *normed;                          // takes x normalised, (pixels, inputs), bf16; or null
    float *means;                          // of a convolution's results, (images, outputs); or null
    int64_t pixels, image, width, inputs, outputs, taps;  // image: pixels of one; width: of an image; taps: 1 or 9
    int64_t gelu, turned, half_x, half_out, threads;
    double eps;
};

#if defined(HAT_TILES)

namespace {

// Units of a pixel, in whole tiles.
inline int64_t depth(int64_t channels) { return up(channels, 2 * SIDE) / 2; }

inline int64_t packed_units(const TileProduct &a) { return up(a.outputs, SIDE) * a.taps * depth(a.inputs); }

// As `pack_tap`, of turned weights.
inline void pack_turned_tap(const TileProduct &a, int64_t first, int64_t tap, uint32_t *to) {
    const int64_t stride = a.taps * a.outputs;
    const bf16 *weight = static_cast<const bf16 *>(a.weight) + (a.taps - 1 - tap) * a.outputs + first;
    for (int64_t unit = 0; unit < depth(a.inputs); ++unit, to += SIDE)
        for (int64_t c = 0; c < SIDE; c += LANES) {
            const int64_t input = 2 * unit, count = std::clamp<int64_t>(a.outputs - first - c, 0, LANES);
            const bf16 *one = weight + std::min(input, a.inputs - 1) * stride + c;
            const Bits pair = paired(static_cast<Pairs *>(nullptr), one, input + 1 < a.inputs ? one + stride : nullptr, count);
            write(to + c, input < a.inputs ? pair : Bits{});
        }
}

// Weights of 16 outputs at a tap as tiles: (depth, 16) units, zeros behind the last input and output.
inline void pack_tap(const TileProduct &a, int64_t first, int64_t tap, uint32_t *to) {
    if (a.turned) return pack_turned_tap(a, first, tap, to);
    const int64_t units = depth(a.inputs), stride = a.taps * a.inputs;
    const bf16 *weight = static_cast<const bf16 *>(a.weight) + tap * a.inputs;
    for (int64_t c = 0; c < SIDE; c += LANES)
        for (int64_t unit = 0; unit < units; unit += LANES) {
            Bits block[LANES];
            for (int64_t i = 0; i < LANES; ++i) {
                const int64_t output = first + c + i, left = a.inputs - 2 * unit;
                uint32_t row[up(LANES, SIDE)] = {};  // row_units() writes sixteen
                if (output < a.outputs && left > 0)
                    row_units(static_cast<Pairs *>(nullptr), weight + output * stride + 2 * unit,
                              std::min<int64_t>(left, 2 * LANES), row);
                block[i] = read<Bits>(row);
            }
            turn(block);
            for (int64_t i = 0; i < LANES; ++i) write(to + (unit + i) * SIDE + c, block[i]);
        }
}

// Weights of products that are computed together, as tiles; all threads pack them.
template <int COUNT> class PackedWeights {
    const TileProduct *const (&products)[COUNT];
    uint32_t *packed[COUNT];
    Arena memory;

  public:
    bool ready;
    int64_t tiles = 0;  // of outputs

    // Of products that are null there are none.
    explicit PackedWeights(const TileProduct *const (&all)[COUNT]) : products(all) {
        for (int pass = 0; pass < 2; ++pass) {
            for (int i = 0; i < COUNT; ++i) memory.take(packed[i], products[i] ? packed_units(*products[i]) : 0);
            if (!pass) ready = memory.allocate();
            if (!ready) return;
        }
        for (const TileProduct *product : products) tiles += product ? up(product->outputs, SIDE) / SIDE : 0;
    }
    // Pack the tiles of a number: (taps, depth, 16).
    void pack(int64_t number) const {
        for (int i = 0; i < COUNT; ++i) {
            if (!products[i]) continue;
            const TileProduct &a = *products[i];
            const int64_t here = up(a.outputs, SIDE) / SIDE, units = depth(a.inputs);
            for (int64_t tap = 0; number >= 0 && number < here && tap < a.taps; ++tap)
                pack_tap(a, number * SIDE, tap, packed[i] + (number * a.taps + tap) * SIDE * units);
            number -= here;
        }
    }
    const uint32_t *operator[](int product) const { return packed[product]; }
};

}  // namespace

#endif
