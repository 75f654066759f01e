// Linear layers over pixels in bf16 by matrix units (tiles.hpp), with what comes before and after: a normalisation, bias,
// GELU, residuals, done in fp32 while the values are in the cache. A 3x3 convolution (tile_convolution.hpp) is a linear
// layer with nine taps.

#pragma once

#include "gelu.hpp"
#include "tile_weights.hpp"

#include <cmath>

#if defined(HAT_TILES)

namespace {

constexpr int64_t SQUARE = 2 * SIDE;  // pixels, and outputs, of sums that are in tiles together
constexpr int64_t PIXELS = 2 * SQUARE;  // that go through all outputs together

// What normalising a pixel takes from its channels, and what it multiplies them by.
struct Moments {
    float mean, factor;
};

// One pixel, normalised, as bf16. A row of up to VECTORS vectors stays in registers; `room`: for longer ones, in fp32.
template <int VECTORS, class X>
Moments normed_row(const TileProduct &a, const X *from, float *room, bf16 *to, bf16 *normed) {
    if constexpr (VECTORS > 1)
        if (a.inputs <= (VECTORS - 1) * LANES) return normed_row<VECTORS - 1>(a, from, room, to, normed);
    Floats value[VECTORS], sums[4] = {}, squares[4] = {};  // four, as one would wait for itself
    const auto left = [&](int v) { return v + 1 < VECTORS ? LANES : a.inputs - (VECTORS - 1) * LANES; };
#pragma GCC unroll 16
    for (int v = 0; v < VECTORS; ++v) sums[v % 4] += value[v] = load(from + v * LANES, left(v));
    for (int64_t c = VECTORS * LANES; c < a.inputs; c += LANES) {
        const Floats more = load(from + c, a.inputs - c);
        write(room + c, more);
        sums[0] += more;
    }
    const float mean = total((sums[0] + sums[1]) + (sums[2] + sums[3])) / a.inputs;
#pragma GCC unroll 16
    for (int v = 0; v < VECTORS; ++v) {
        value[v] = first_lanes(value[v] - mean, left(v), 0.0f);
        squares[v % 4] += value[v] * value[v];
    }
    for (int64_t c = VECTORS * LANES; c < a.inputs; c += LANES) {
        const Floats apart = first_lanes(read<Floats>(room + c) - mean, a.inputs - c, 0.0f);
        write(room + c, apart);
        squares[0] += apart * apart;
    }
    const float square = total((squares[0] + squares[1]) + (squares[2] + squares[3]));
    const float factor = 1.0f / std::sqrt(square / a.inputs + static_cast<float>(a.eps));
    const auto finish = [&](int64_t c, Floats apart, int64_t count) {
        const Floats result = apart * factor * load(a.norm_weight + c, count) + load(a.norm_bias + c, count);
        store(to + c, result, count);
        if (normed) store(normed + c, result, count);
    };
#pragma GCC unroll 16
    for (int v = 0; v < VECTORS; ++v) finish(v * LANES, value[v], left(v));
    for (int64_t c = VECTORS * LANES; c < a.inputs; c += LANES) finish(c, read<Floats>(room + c), a.inputs - c);
    return {mean, factor};
}

// One pixel as bf16, normalised if asked for; `room`: fp32, whole vectors; `normed`: takes it, too, or null.
template <class X> Moments left_row(const TileProduct &a, const X *from, float *room, bf16 *to, bf16 *normed) {
    if (a.norm_weight) return normed_row<12>(a, from, room, to, normed);
    for (int64_t c = 0; c < a.inputs; c += LANES) store(to + c, load(from + c, a.inputs - c), a.inputs - c);
    return {0, 1};
}

// At which pixels a product takes its inputs, counted from its own.
struct Reach {
    int64_t taps, pixels[9];
};
constexpr Reach ITSELF{1, {0}};

// A tile that is loaded soon, of rows without gaps. (All weights do not fit the first cache: 1.2 times as fast so.)
inline void fetch_tile(const uint32_t *from) {
#pragma GCC unroll 16
    for (int64_t r = 0; r < SIDE; ++r) __builtin_prefetch(from + r * SIDE);
}

// Sums of 32 pixels, a row of units each, and 32 outputs (16, unless WIDE) of packed weights: `to` is (32, 32).
template <bool WIDE>
inline void multiply_square(const uint32_t *pixels, const Reach &reach, int64_t units, const uint32_t *right, float *to) {
    const int64_t beside = reach.taps * units * SIDE;  // to the next 16 outputs
    clear_tile<0>();
    clear_tile<2>();
    if (WIDE) {
        clear_tile<1>();
        clear_tile<3>();
    }
    for (int64_t tap = 0; tap < reach.taps; ++tap) {
        const uint32_t *left = pixels + reach.pixels[tap] * units;
        for (int64_t unit = 0; unit < units; unit += SIDE, right += SIDE * SIDE) {
            load_tile<4>(left + unit, 4 * units);
            load_tile<5>(left + SIDE * units + unit, 4 * units);
            load_tile<6>(right, 4 * SIDE);
            fetch_tile(right + SIDE * SIDE);
            multiply_tiles<0, 4, 6>();
            multiply_tiles<2, 5, 6>();
            if (WIDE) {
                load_tile<7>(right + beside, 4 * SIDE);
                fetch_tile(right + beside + SIDE * SIDE);
                multiply_tiles<1, 4, 7>();
                multiply_tiles<3, 5, 7>();
            }
        }
    }
    store_tile<0>(to, 4 * SQUARE);
    store_tile<2>(to + SIDE * SQUARE, 4 * SQUARE);
    if (WIDE) {
        store_tile<1>(to + SIDE, 4 * SQUARE);
        store_tile<3>(to + SIDE * SQUARE + SIDE, 4 * SQUARE);
    }
}

// Where a pixel's outputs go (null: they are not wanted), and where what is added to them begins, or null.
template <class O, class A = O, class S = bf16> struct Target {
    O *out;
    const A *add;
    const S *scaled;
    const float *factor;
};

// As the product says, of its pixel of a number.
template <class O> Target<O> target_of(const TileProduct &a, int64_t number) {
    const int64_t at = number * a.outputs;
    Target<O> to{static_cast<O *>(a.out) + at, nullptr, nullptr, nullptr};
    if (a.add) to.add = static_cast<const O *>(a.add) + at;
    if (a.scaled) {
        to.scaled = static_cast<const bf16 *>(a.scaled) + at;
        to.factor = a.factor + number / a.image * a.outputs;
    }
    return to;
}

// All outputs of `count` pixels whose inputs are in `left`; target(n): the `Target` of the n-th. `sums`: (32, 32). (Sums
// of the next pixels while these are finished were no faster: matrix units take one of two ports for vectors.)
template <class To>
void multiply_pixels(const TileProduct &a, const Reach &reach, const uint32_t *packed, const uint32_t *left, int64_t count,
                     float *sums, const To &target) {
    const int64_t units = depth(a.inputs);
    for (int64_t output = 0; output < a.outputs; output += SQUARE) {
        const uint32_t *right = packed + output * a.taps * units;
        for (int64_t from = 0; from < count; from += SQUARE) {
            if (output + SIDE < a.outputs)
                multiply_square<true>(left + from * units, reach, units, right, sums);
            else
                multiply_square<false>(left + from * units, reach, units, right, sums);
            for (int64_t c = 0; c < SQUARE && output + c < a.outputs; c += LANES) {
                const int64_t at = output + c, rest = a.outputs - at;
                const Floats bias = a.bias ? load(a.bias + at, rest) : Floats{};
                for (int64_t r = 0; r < SQUARE && from + r < count; ++r) {
                    const auto to = target(from + r);
                    if (!to.out) continue;
                    Floats value = read<Floats>(sums + r * SQUARE + c) + bias;
                    if (a.gelu) value = rough_gelu(value);
                    if (to.add) value += load(to.add + at, rest);
                    if (to.scaled) value += load(to.scaled + at, rest) * load(to.factor + at, rest);
                    store(to.out + at, value, rest);
                }
            }
        }
    }
}

// The result of a product, with nothing added, to where the next one has its inputs.
inline void hide(const TileProduct &a, const uint32_t *packed, const uint32_t *left, int64_t count, float *sums,
                 uint32_t *hidden, const TileProduct &next) {
    const int64_t units = depth(next.inputs);
    multiply_pixels(a, ITSELF, packed, left, count, sums, [=](int64_t n) {
        return Target<bf16>{reinterpret_cast<bf16 *>(hidden + n * units), nullptr, nullptr, nullptr};
    });
}

// What one thread needs.
struct TileRoom {
    uint32_t *left, *hidden;
    float *row, *sums;
    bool ready;

    TileRoom(const TileProduct &a, const TileProduct *next) {
        for (int pass = 0; pass < 2; ++pass) {
            arena.take(left, PIXELS * depth(a.inputs));
            arena.take(hidden, next ? PIXELS * depth(next->inputs) : 0);
            arena.take(row, up(a.inputs, LANES));
            arena.take(sums, SQUARE * SQUARE);
            if (!pass) ready = arena.allocate();
            if (!ready) return;
        }
        std::memset(left, 0, 4 * PIXELS * depth(a.inputs));  // what is behind the last channel stays zero
        if (next) std::memset(hidden, 0, 4 * PIXELS * depth(next->inputs));
    }

  private:
    Arena arena;
};

// A product and, if there is a next one, that of its result, which never leaves the cache.
template <class X, class O> int run_tile_product(const TileProduct &a, const TileProduct *next) {
    const TileProduct *const products[] = {&a, next};
    const PackedWeights<2> weights(products);
    if (!weights.ready) return 1;
    int failed = 0;
#pragma omp parallel num_threads(static_cast<int>(a.threads)) reduction(| : failed)
    {
        const NoDenormals none;
        const TileSetting setting;
        const TileRoom room(a, next);
        failed = !room.ready;
#pragma omp for schedule(static)
        for (int64_t n = 0; n < weights.tiles; ++n) weights.pack(n);
#pragma omp for schedule(dynamic, 1)
        for (int64_t first = 0; first < a.pixels; first += PIXELS) {
            if (!room.ready) continue;
            const int64_t count = std::min(PIXELS, a.pixels - first), units = depth(a.inputs);
            for (int64_t i = 0; i < count; ++i) {
                bf16 *normed = a.normed ? static_cast<bf16 *>(a.normed) + (first + i) * a.inputs : nullptr;
                left_row(a, static_cast<const X *>(a.x) + (first + i) * a.inputs, room.row,
                         reinterpret_cast<bf16 *>(room.left + i * units), normed);
            }
            if (next) {
                hide(a, weights[0], room.left, count, room.sums, room.hidden, *next);
                multiply_pixels(*next, ITSELF, weights[1], room.hidden, count, room.sums,
                                [&](int64_t n) { return target_of<O>(*next, first + n); });
            } else
                multiply_pixels(a, ITSELF, weights[0], room.left, count, room.sums,
                                [&](int64_t n) { return target_of<O>(a, first + n); });
        }
    }
    return failed;
}

}  // namespace

#endif
