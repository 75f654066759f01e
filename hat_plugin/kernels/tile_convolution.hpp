// 3x3 convolutions with zeros around, channels last, in bf16 by matrix units: a linear layer (tile_product.hpp) whose
// inputs are those of a pixel and its eight neighbours.
//
// The inputs of a rectangle of pixels, with a border of one, are laid out row by row. A tap is then a constant number of
// pixels away, across the ends of rows, too: sums are made along the whole layout, and those of its border not written.

#pragma once

#include "tile_product.hpp"

#if defined(HAT_TILES)

namespace {

constexpr int64_t HIGH = 8, BROAD = 62;  // of a rectangle at most: with its border two whole squares broad

// A length in even shares of at most `most`.
inline int64_t share(int64_t length, int64_t most) {
    const int64_t parts = (length + most - 1) / most;
    return (length + parts - 1) / parts;
}

// A part of an image.
struct Rectangle {
    int64_t before, top, start, high, broad;  // before: pixels of the images before

    // The number of the pixel in row y and column x of the rectangle.
    int64_t pixel(const TileProduct &a, int64_t y, int64_t x) const { return before + (top + y) * a.width + start + x; }
};

// Rectangles of images, by number.
struct Rectangles {
    int64_t high, broad, across, each, count;

    explicit Rectangles(const TileProduct &a) {
        const int64_t height = a.image / a.width;
        high = share(height, HIGH);
        broad = share(a.width, BROAD);
        across = (a.width + broad - 1) / broad;
        each = across * ((height + high - 1) / high);
        count = each * (a.pixels / a.image);
    }
    Rectangle place(const TileProduct &a, int64_t number) const {
        const int64_t top = number % each / across * high, start = number % across * broad;
        return {number / each * a.image, top, start, std::min(high, a.image / a.width - top), std::min(broad, a.width - start)};
    }
};

// Inputs of a rectangle with a border of one pixel, zeros beyond the image, row by row: a row is `stride` pixels.
template <class X>
void lay_out(const TileProduct &a, const Rectangle &at, float *room, int64_t stride, uint32_t *to) {
    const int64_t units = depth(a.inputs), height = a.image / a.width;
    for (int64_t y = -1; y <= at.high; ++y)
        for (int64_t x = -1; x <= at.broad; ++x) {
            const int64_t row = at.top + y, column = at.start + x;
            bf16 *pixel = reinterpret_cast<bf16 *>(to + ((y + 1) * stride + x + 1) * units);
            const bool there = row >= 0 && row < height && column >= 0 && column < a.width;
            if (there)
                left_row(a, static_cast<const X *>(a.x) + at.pixel(a, y, x) * a.inputs, room, pixel, static_cast<bf16 *>(nullptr));
            else
                std::memset(pixel, 0, 2 * a.inputs);
        }
}

// What one thread needs.
struct ConvolutionRoom {
    uint32_t *left;   // inputs of a rectangle and its border, in units
    int64_t *number;  // of each of its pixels, along the layout
    float *row, *sums;
    bool ready;

    ConvolutionRoom(const TileProduct &a, const Rectangles &all) {
        const int64_t broad = all.broad + 2;
        const int64_t pixels = (all.high + 2) * broad + SQUARE + 2;  // the last square reads on behind the border
        for (int pass = 0; pass < 2; ++pass) {
            arena.take(left, pixels * depth(a.inputs));
            arena.take(number, up(all.high * broad, SQUARE));
            arena.take(row, up(a.inputs, LANES));
            arena.take(sums, SQUARE * SQUARE);
            if (!pass) ready = arena.allocate();
            if (!ready) return;
        }
        std::memset(left, 0, 4 * pixels * depth(a.inputs));  // what is behind the last channel stays zero
    }

  private:
    Arena arena;
};

// One rectangle: its inputs, and what comes of them. `sums`: null, or takes those of each output over all pixels.
template <class X, class O>
void convolve(const TileProduct &a, const Rectangles &all, int64_t number, const uint32_t *packed,
              const ConvolutionRoom &room, float *sums) {
    const Rectangle at = all.place(a, number);
    const int64_t high = at.high, stride = at.broad + 2;
    lay_out<X>(a, at, room.row, stride, room.left);
    // The layout's first sum is that of the rectangle's first pixel: a row ends with two that are of the border.
    for (int64_t y = 0; y < high; ++y)
        for (int64_t x = 0; x < stride; ++x)
            room.number[y * stride + x] = x < at.broad ? at.pixel(a, y, x) : -1;
    Reach reach{9, {}};
    for (int64_t tap = 0; tap < 9; ++tap) reach.pixels[tap] = tap / 3 * stride + tap % 3;
    multiply_pixels(a, reach, packed, room.left, high * stride, room.sums, [&](int64_t n) {
        return room.number[n] < 0 ? Target<O>{} : target_of<O>(a, room.number[n]);
    });
    if (!sums) return;
    std::memset(sums, 0, sizeof(float) * a.outputs);
    for (int64_t n = 0; n < high * stride; ++n) {
        if (room.number[n] < 0) continue;
        const O *made = static_cast<const O *>(a.out) + room.number[n] * a.outputs;
        for (int64_t c = 0; c < a.outputs; c += LANES) {
            const int64_t left = a.outputs - c;
            store(sums + c, load(sums + c, left) + load(made + c, left), left);
        }
    }
}

// Means over images from the sums of their rectangles, always in one order.
inline void finish_means(const TileProduct &a, const Rectangles &all, const float *sums) {
    std::memset(a.means, 0, sizeof(float) * (a.pixels / a.image) * a.outputs);
    for (int64_t number = 0; number < all.count; ++number) {
        float *means = a.means + number / all.each * a.outputs;
        for (int64_t c = 0; c < a.outputs; ++c) means[c] += sums[number * a.outputs + c] / a.image;
    }
}

template <class X, class O> int run_tile_convolution(const TileProduct &a) {
    const TileProduct *const products[] = {&a};
    const PackedWeights<1> weights(products);
    if (!weights.ready) return 1;
    const Rectangles all(a);
    Arena memory;
    float *sums;
    for (int pass = 0; pass < 2; ++pass) {
        memory.take(sums, a.means ? all.count * a.outputs : 0);
        if (!pass && !memory.allocate()) return 1;
    }
    int failed = 0;
#pragma omp parallel num_threads(static_cast<int>(a.threads)) reduction(| : failed)
    {
        const NoDenormals none;
        const TileSetting setting;
        const ConvolutionRoom room(a, all);
        failed = !room.ready;
#pragma omp for schedule(static)
        for (int64_t n = 0; n < weights.tiles; ++n) weights.pack(n);
#pragma omp for schedule(dynamic, 1)
        for (int64_t number = 0; number < all.count; ++number)
            if (room.ready)
                convolve<X, O>(a, all, number, weights[0], room, a.means ? sums + number * a.outputs : nullptr);
    }
    if (a.means && !failed) finish_means(a, all, sums);
    return failed;
}

}  // namespace

#endif
