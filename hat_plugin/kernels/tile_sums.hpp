// Gradients of weights in bf16 by matrix units: sums over pixels of what a layer read times the gradient of what it made.
//
// A unit is a channel of two neighbouring pixels. The left side of a product is tiles, (tiles of channels, steps, 16
// channels, 16 pairs), the right side (channels / 32, pairs, 32 channels). Sums stay in memory, in fp32, and are
// loaded into tiles once for SPAN pixels.

#pragma once

#include "tile_product.hpp"

#if defined(HAT_TILES)

namespace {

constexpr int64_t SPAN = 4 * PIXELS;
constexpr int64_t STEPS = SPAN / (2 * SIDE);  // tiles' worth of pairs of pixels
constexpr int64_t TILE = SIDE * SIDE;

inline int64_t tiles_of(int64_t channels) { return up(channels, SIDE) / SIDE; }

// PIXELS rows of `units` (bf16, zeros behind the last channel) to a left side of `steps`, from step `first` on.
inline void turn_pixels(const uint32_t *rows, int64_t units, int64_t tiles, int64_t steps, int64_t first, uint32_t *to) {
    Tiles *how = nullptr;
    for (int64_t pair = 0; pair < PIXELS / 2; pair += LANES)
        for (int64_t c = 0; c < tiles * SIDE; c += LANES) {
            Bits block[LANES];
            for (int64_t i = 0; i < LANES; ++i) {
                const bf16 *one = reinterpret_cast<const bf16 *>(rows + 2 * (pair + i) * units) + c;
                block[i] = paired(how, one, one + 2 * units, LANES);
            }
            turn(block);
            uint32_t *tile = to + (c / SIDE * steps + first + pair / SIDE) * TILE + c % SIDE * SIDE + pair % SIDE;
            for (int64_t i = 0; i < LANES; ++i) write(tile + i * SIDE, block[i]);
        }
}

// Where a right side of `pairs` pairs has one of them, and a channel.
inline int64_t pair_at(int64_t pairs, int64_t pair, int64_t channel) {
    return (channel / SQUARE * pairs + pair) * SQUARE + channel % SQUARE;
}

// `count` pairs of rows of `units` to a right side of `pairs`, from pair `first` on.
inline void pair_pixels(const uint32_t *rows, int64_t units, int64_t count, int64_t pairs, int64_t first, uint32_t *to) {
    Tiles *how = nullptr;
    for (int64_t pair = first; pair < first + count; ++pair, rows += 2 * units) {
        const bf16 *one = reinterpret_cast<const bf16 *>(rows);
        for (int64_t c = 0; c < 2 * units; c += LANES)
            write(to + pair_at(pairs, pair, c), paired(how, one + c, one + 2 * units + c, LANES));
    }
}

// A left side and a right one, from where they are multiplied on; from their tiles to those of the next channels, on the
// left 16, on the right 32.
struct Factors {
    const uint32_t *left, *right;
    int64_t below, beside;
};

// Two tiles by two are added to, or the first of two where TALL or WIDE are not.
template <bool TALL, bool WIDE> inline void add_square(const Factors &by, int64_t steps, float *sums) {
    const uint32_t *left = by.left, *right = by.right;
    load_tile<0>(sums, 4 * SIDE);
    if (WIDE) load_tile<1>(sums + TILE, 4 * SIDE);
    if (TALL) load_tile<2>(sums + 2 * TILE, 4 * SIDE);
    if (TALL && WIDE) load_tile<3>(sums + 3 * TILE, 4 * SIDE);
    for (int64_t step = 0; step < steps; ++step, left += TILE, right += SIDE * SQUARE) {
        load_tile<4>(left, 4 * SIDE);
        load_tile<6>(right, 4 * SQUARE);
        multiply_tiles<0, 4, 6>();
        if (TALL) {
            load_tile<5>(left + by.below, 4 * SIDE);
            multiply_tiles<2, 5, 6>();
        }
        if (WIDE) {
            load_tile<7>(right + SIDE, 4 * SQUARE);
            multiply_tiles<1, 4, 7>();
        }
        if (TALL && WIDE) multiply_tiles<3, 5, 7>();
    }
    store_tile<0>(sums, 4 * SIDE);
    if (WIDE) store_tile<1>(sums + TILE, 4 * SIDE);
    if (TALL) store_tile<2>(sums + 2 * TILE, 4 * SIDE);
    if (TALL && WIDE) store_tile<3>(sums + 3 * TILE, 4 * SIDE);
}

// Work falls into as many parts as there are threads; what each adds up to, `size` numbers, is added in their order.
class Parts {
    Arena memory;
    float *sums;
    int64_t all, each, size;

  public:
    int64_t count;
    bool ready;

    // A part is a multiple of `together`.
    Parts(int64_t all, int64_t together, int64_t threads, int64_t size)
        : all(all), each(up((all + threads - 1) / threads, together)), size(up(size, SIDE)), count((all + each - 1) / each) {
        for (int pass = 0; pass < 2; ++pass) {
            memory.take(sums, count * this->size);
            if (!pass) ready = memory.allocate();
            if (!ready) return;
        }
    }
    // use(first, count, sums) for the spans of a part, whose sums begin with zeros.
    template <class Use> void each_span(int64_t part, int64_t span, const Use &use) const {
        float *own = sums + part * size;
        std::memset(own, 0, size * sizeof(float));
        const int64_t end = std::min(all, (part + 1) * each);
        for (int64_t first = part * each; first < end; first += span) use(first, std::min(span, end - first), own);
    }
    // A vector of all parts together.
    Floats sum(int64_t place) const {
        Floats all = {};
        for (int64_t part = 0; part < count; ++part) all += read<Floats>(sums + part * size + place);
        return all;
    }
    void finish(int64_t place, int64_t channels, float *to) const {
        for (int64_t c = 0; c < channels; c += LANES) store(to + c, sum(place + c), channels - c);
    }
};

// A gradient while it is summed up: squares of two tiles by two, (columns / 32, rows / 32, 2, 2, 16, 16).
struct TileSums {
    int64_t rows, columns, tall, wide;  // tall, wide: in tiles

    TileSums(int64_t rows, int64_t columns) : rows(rows), columns(columns), tall(tiles_of(rows)), wide(tiles_of(columns)) {}
    int64_t size() const { return up(tall, 2) * up(wide, 2) * TILE; }

    // Add the products of `steps` steps.
    void add(const Factors &from, int64_t steps, float *sums) const {
        for (int64_t column = 0; column < wide; column += 2) add_column(from, column, steps, sums);
    }
    // Those of two tiles of columns.
    void add_column(const Factors &from, int64_t column, int64_t steps, float *sums) const {
        sums += column / 2 * up(tall, 2) * 2 * TILE;
        for (int64_t row = 0; row < tall; row += 2, sums += 4 * TILE) {
            const Factors by{from.left + row * from.below, from.right + column / 2 * from.beside, from.below, 0};
            if (row + 1 < tall && column + 1 < wide) add_square<true, true>(by, steps, sums);
            else if (row + 1 < tall) add_square<true, false>(by, steps, sums);
            else if (column + 1 < wide) add_square<false, true>(by, steps, sums);
            else add_square<false, false>(by, steps, sums);
        }
    }
    // One row of the gradient, from such sums at `place` of each part.
    void finish(const Parts &parts, int64_t place, int64_t row, float *to) const {
        const int64_t tile = row / SIDE;
        for (int64_t c = 0; c < columns; c += LANES) {
            const int64_t beside = c / SIDE, square = beside / 2 * (up(tall, 2) / 2) + tile / 2;
            const int64_t at = (square * 4 + tile % 2 * 2 + beside % 2) * TILE + row % SIDE * SIDE + c % SIDE;
            store(to + c, parts.sum(place + at), columns - c);
        }
    }
};

// Sums for the gradients of a normalisation's weight and bias, whole vectors.
struct NormSums {
    float *weight, *bias;
};

// The gradient before a normalisation, of one pixel, from that behind it, whole vectors; `add`: is added, or null. What it
// adds up to for the weight and the bias is added to `sums`.
template <class X>
void norm_gradient(const TileProduct &a, const Moments &moments, const X *x, const float *grad, const X *add,
                   const NormSums &sums, X *to) {
    Floats plain = {}, along = {};
    const auto standard = [&](int64_t c) {
        return first_lanes((load(x + c, a.inputs - c) - moments.mean) * moments.factor, a.inputs - c, 0.0f);
    };
    for (int64_t c = 0; c < a.inputs; c += LANES) {
        const Floats value = read<Floats>(grad + c), at = standard(c), slope = value * load(a.norm_weight + c, a.inputs - c);
        write(sums.bias + c, read<Floats>(sums.bias + c) + value);
        write(sums.weight + c, read<Floats>(sums.weight + c) + value * at);
        plain += slope;
        along += slope * at;
    }
    const float mean = total(plain) / a.inputs, lean = total(along) / a.inputs;
    for (int64_t c = 0; c < a.inputs; c += LANES) {
        const Floats slope = read<Floats>(grad + c) * load(a.norm_weight + c, a.inputs - c);
        Floats value = moments.factor * (slope - mean - lean * standard(c));
        if (add) value += load(add + c, a.inputs - c);
        store(to + c, value, a.inputs - c);
    }
}

}  // namespace

#endif
