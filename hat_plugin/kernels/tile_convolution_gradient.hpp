// The gradients of a 3x3 convolution's weight and bias in bf16 by matrix units: at each tap the sum over pixels of the
// result's gradient times the input there.
//
// Rectangles are laid out as in tile_convolution.hpp: a tap is a constant number of pixels away. Pairs of inputs begin at
// even pixels, and once more at odd ones.

#pragma once

#include "tile_convolution.hpp"
#include "tile_sums.hpp"

// library.py has the same fields in the same order.
struct TileConvolutionGradient {
    TileProduct layer;  // as it ran, with x and its normalisation
    const void *grad;   // of the result, (pixels, outputs), bf16
    float *d_weight;    // (outputs, taps, inputs), overwritten like the other
    float *d_bias;
};

#if defined(HAT_TILES)

namespace {

// What one thread needs.
struct ConvolutionGradientRoom {
    int64_t stride, steps, pixels;  // of a row of the layout; of sums over it; that taps may reach
    uint32_t *x, *pairs[2];         // inputs, (pixels, units); as pairs from even pixels on, and from odd ones
    uint32_t *grad, *turned;        // gradients, zeros at the border; as a left side
    float *line;
    bool ready;

    ConvolutionGradientRoom(const TileProduct &a, const Rectangles &all) : stride(all.broad + 2) {
        const int64_t made = up(all.high * stride, PIXELS);
        steps = made / (2 * SIDE);
        pixels = made + 2 * stride + 4;
        for (int pass = 0; pass < 2; ++pass) {
            arena.take(x, pixels * depth(a.inputs));
            for (uint32_t **each : {&pairs[0], &pairs[1]}) arena.take(*each, pixels / 2 * up(a.inputs, SQUARE));
            arena.take(grad, made * depth(a.outputs));
            arena.take(turned, tiles_of(a.outputs) * steps * TILE);
            arena.take(line, up(a.inputs, LANES));
            if (!pass) ready = arena.allocate();
            if (!ready) return;
        }
        std::memset(x, 0, 4 * pixels * depth(a.inputs));
    }

  private:
    Arena arena;
};

// One rectangle; `sums`: those of the taps one after the other, then the bias's.
template <class X>
void differentiate(const TileConvolutionGradient &g, const Rectangles &all, const TileSums &by,
                   const ConvolutionGradientRoom &room, int64_t number, float *sums) {
    const TileProduct &a = g.layer;
    const Rectangle at = all.place(a, number);
    const int64_t units = depth(a.inputs), of_grad = depth(a.outputs), across = tiles_of(a.outputs), all_pairs = room.pixels / 2;
    lay_out<X>(a, at, room.line, room.stride, room.x);
    for (int64_t odd = 0; odd < 2; ++odd)
        pair_pixels(room.x + odd * units, units, all_pairs - odd, all_pairs, 0, room.pairs[odd]);
    std::memset(room.grad, 0, 4 * room.steps * 2 * SIDE * of_grad);
    float *bias = sums + 9 * by.size();
    for (int64_t y = 0; y < at.high; ++y)
        for (int64_t x = 0; x < at.broad; ++x) {
            const bf16 *from = static_cast<const bf16 *>(g.grad) + at.pixel(a, y, x) * a.outputs;
            bf16 *to = reinterpret_cast<bf16 *>(room.grad + (y * room.stride + x) * of_grad);
            for (int64_t c = 0; c < a.outputs; c += LANES) {
                const Floats value = load(from + c, a.outputs - c);
                store(to + c, value, a.outputs - c);
                write(bias + c, read<Floats>(bias + c) + value);
            }
        }
    for (int64_t step = 0; step < room.steps; step += PIXELS / (2 * SIDE))
        turn_pixels(room.grad + step * 2 * SIDE * of_grad, of_grad, across, room.steps, step, room.turned);
    const int64_t steps = up(at.high * room.stride, 2 * SIDE) / (2 * SIDE);
    for (int64_t column = 0; column < by.wide; column += 2)  // the inputs of two tiles of channels stay in the first cache
        for (int64_t tap = 0; tap < 9; ++tap) {
            const int64_t first = tap / 3 * room.stride + tap % 3;
            const uint32_t *pairs = room.pairs[first % 2] + first / 2 * SQUARE;
            by.add_column({room.turned, pairs, room.steps * TILE, all_pairs * SQUARE}, column, steps, sums + tap * by.size());
        }
}

// Rectangles fall into parts as pixels do elsewhere.
template <class X> int run_tile_convolution_gradient(const TileConvolutionGradient &g) {
    const TileProduct &a = g.layer;
    const Rectangles all(a);
    const TileSums by(a.outputs, a.inputs);
    const Parts parts(all.count, 1, a.threads, 9 * by.size() + up(a.outputs, SQUARE));
    if (!parts.ready) return 1;
    int failed = 0;
#pragma omp parallel num_threads(static_cast<int>(a.threads)) reduction(| : failed)
    {
        const NoDenormals none;
        const TileSetting setting;
        const ConvolutionGradientRoom room(a, all);
        failed = !room.ready;
#pragma omp for schedule(static, 1)
        for (int64_t part = 0; part < parts.count; ++part)
            if (room.ready)
                parts.each_span(part, 1, [&](int64_t number, int64_t, float *sums) {
                    differentiate<X>(g, all, by, room, number, sums);
                });
#pragma omp for schedule(static)
        for (int64_t row = 0; row < 9 * a.outputs; ++row)
            by.finish(parts, row % 9 * by.size(), row / 9, g.d_weight + row * a.inputs);
#pragma omp single
        parts.finish(9 * by.size(), a.outputs, g.d_bias);
    }
    return failed;
}

}  // namespace

#endif
