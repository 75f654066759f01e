// Gradients of a normalised MLP, x + down(GELU(up(norm(x)))), in bf16 by matrix units, from x alone: what lies between is
// computed anew, a few pixels at a time, and never leaves the cache.

#pragma once

#include "tile_sums.hpp"

// library.py has the same fields in the same order. Weights of layers are bf16, all that is overwritten here fp32.
struct TileFeedForwardGradient {
    TileProduct up;         // as it ran, with its normalisation and x
    TileProduct from_down;  // x: the gradient of the result, like `up.x`; weight: down's, turned
    TileProduct from_up;    // out: the gradient of x, like `up.x`; weight: up's, turned
    float *d_up, *d_up_bias, *d_down, *d_down_bias;  // d_up: turned, too, (channels, hidden), like d_down
    float *d_norm_weight, *d_norm_bias;
};

#if defined(HAT_TILES)

namespace {

// What one thread needs: PIXELS rows of units, and what SPAN pixels leave for the gradients of weights.
struct FeedForwardGradientRoom {
    int64_t row;  // of channels in fp32, whole squares
    uint32_t *x, *grad, *slope;
    uint32_t *x_turned, *grad_turned, *hidden_pairs, *slope_pairs;
    float *dx, *line, *sums, *slopes;
    Moments *moments;
    bool ready;

    explicit FeedForwardGradientRoom(const TileProduct &a) : row(up(a.inputs, SQUARE)) {
        const int64_t across = depth(a.inputs), channels = tiles_of(a.inputs);
        for (int pass = 0; pass < 2; ++pass) {
            for (uint32_t **rows : {&x, &grad}) arena.take(*rows, PIXELS * across);
            arena.take(slope, PIXELS * depth(a.outputs));
            for (uint32_t **turned : {&x_turned, &grad_turned}) arena.take(*turned, channels * STEPS * TILE);
            for (uint32_t **pairs : {&hidden_pairs, &slope_pairs}) arena.take(*pairs, SPAN / 2 * up(a.outputs, SQUARE));
            arena.take(dx, PIXELS * row);
            arena.take(line, up(a.inputs, LANES));
            for (float **square : {&sums, &slopes}) arena.take(*square, SQUARE * SQUARE);
            arena.take(moments, PIXELS);
            if (!pass) ready = arena.allocate();
            if (!ready) return;
        }
        std::memset(slope, 0, 4 * PIXELS * depth(a.outputs));  // what is behind the last channel stays zero
        std::memset(dx, 0, sizeof(float) * PIXELS * row);
    }

  private:
    Arena arena;
};

// What one part of the pixels adds up to.
struct FeedForwardGradientSums {
    TileSums up, down;  // both (channels, hidden)
    int64_t channels, hidden;

    explicit FeedForwardGradientSums(const TileProduct &a)
        : up(a.inputs, a.outputs), down(a.inputs, a.outputs), channels(::up(a.inputs, SQUARE)), hidden(::up(a.outputs, SQUARE)) {}
    int64_t at_down() const { return up.size(); }
    int64_t at_up_bias() const { return at_down() + down.size(); }
    int64_t at_down_bias() const { return at_up_bias() + hidden; }
    int64_t at_norm_weight() const { return at_down_bias() + channels; }
    int64_t at_norm_bias() const { return at_norm_weight() + channels; }
    int64_t size() const { return at_norm_bias() + channels; }
};

// Pixels from `first` on, `count` of PIXELS, as units: what the layer reads, and the gradient of the result.
template <class X>
void read_pixels(const TileFeedForwardGradient &g, const FeedForwardGradientRoom &room, int64_t first, int64_t count,
                 float *down_bias) {
    const int64_t channels = g.up.inputs, units = depth(channels);
    std::memset(room.x, 0, 4 * PIXELS * units);
    std::memset(room.grad, 0, 4 * PIXELS * units);
    for (int64_t i = 0; i < count; ++i) {
        const int64_t at = (first + i) * channels;
        const X *grad = static_cast<const X *>(g.from_down.x) + at;
        room.moments[i] = left_row(g.up, static_cast<const X *>(g.up.x) + at, room.line,
                                   reinterpret_cast<bf16 *>(room.x + i * units), static_cast<bf16 *>(nullptr));
        for (int64_t c = 0; c < channels; c += LANES) {
            const Floats value = load(grad + c, channels - c);
            store(reinterpret_cast<bf16 *>(room.grad + i * units) + c, value, channels - c);
            write(down_bias + c, read<Floats>(down_bias + c) + value);
        }
    }
}

// From these units to what is hidden and the gradient before the GELU, whose pairs begin at step `step`.
inline void hidden_gradients(const TileFeedForwardGradient &g, const uint32_t *up_weight, const uint32_t *down_weight,
                             const FeedForwardGradientRoom &room, int64_t step, float *up_bias) {
    const int64_t hidden = g.up.outputs, units = depth(g.up.inputs), row = 2 * depth(hidden);
    bf16 *rows = reinterpret_cast<bf16 *>(room.slope);
    for (int64_t output = 0; output < hidden; output += SQUARE)
        for (int64_t from = 0; from < PIXELS; from += SQUARE) {
            const bool wide = output + SIDE < hidden;
            const auto multiply = wide ? multiply_square<true> : multiply_square<false>;
            multiply(room.x + from * units, ITSELF, units, up_weight + output * units, room.sums);
            multiply(room.grad + from * units, ITSELF, units, down_weight + output * units, room.slopes);
            for (int64_t c = 0; c < (wide ? SQUARE : SIDE); c += LANES) {
                const int64_t at = output + c, rest = std::max<int64_t>(hidden - at, 0);
                const Floats bias = g.up.bias ? load(g.up.bias + at, rest) : Floats{};
                Floats sum = {};
                for (int64_t r = 0; r < SQUARE; r += 2) {
                    Floats made[2], slope[2];
                    for (int o = 0; o < 2; ++o) {
                        made[o] = rough_gelu(read<Floats>(room.sums + (r + o) * SQUARE + c) + bias, slope[o]);
                        slope[o] *= read<Floats>(room.slopes + (r + o) * SQUARE + c);
                        sum += slope[o];
                        store(rows + (from + r + o) * row + at, slope[o], LANES);
                    }
                    const int64_t pair = pair_at(SPAN / 2, step * SIDE + (from + r) / 2, at);
                    Tiles::put_rows(room.hidden_pairs + pair, 0, made[0], made[1]);
                    Tiles::put_rows(room.slope_pairs + pair, 0, slope[0], slope[1]);
                }
                write(up_bias + at, read<Floats>(up_bias + at) + sum);
            }
        }
}

// `count` pixels, at most SPAN, from `first` on.
template <class X>
void differentiate(const TileFeedForwardGradient &g, const PackedWeights<3> &weights, const FeedForwardGradientSums &by,
                   const FeedForwardGradientRoom &room, int64_t first, int64_t count, float *sums) {
    const int64_t channels = g.up.inputs, units = depth(channels), across = tiles_of(channels);
    const NormSums norm{sums + by.at_norm_weight(), sums + by.at_norm_bias()};
    int64_t step = 0;
    for (int64_t from = 0; from < count; from += PIXELS, step += PIXELS / (2 * SIDE)) {
        const int64_t here = std::min(PIXELS, count - from);
        read_pixels<X>(g, room, first + from, here, sums + by.at_down_bias());
        turn_pixels(room.x, units, across, STEPS, step, room.x_turned);
        turn_pixels(room.grad, units, across, STEPS, step, room.grad_turned);
        hidden_gradients(g, weights[0], weights[1], room, step, sums + by.at_up_bias());
        multiply_pixels(g.from_up, ITSELF, weights[2], room.slope, here, room.sums, [&](int64_t n) {
            return Target<float>{room.dx + n * room.row, nullptr, nullptr, nullptr};
        });
        for (int64_t i = 0; i < here; ++i) {
            const int64_t at = (first + from + i) * channels;
            const X *grad = static_cast<const X *>(g.from_down.x) + at;
            norm_gradient(g.up, room.moments[i], static_cast<const X *>(g.up.x) + at, room.dx + i * room.row, grad, norm,
                          static_cast<X *>(g.from_up.out) + at);
        }
    }
    by.up.add({room.x_turned, room.slope_pairs, STEPS * TILE, SPAN / 2 * SQUARE}, step, sums);
    by.down.add({room.grad_turned, room.hidden_pairs, STEPS * TILE, SPAN / 2 * SQUARE}, step, sums + by.at_down());
}

template <class X> int run_tile_feed_forward_gradient(const TileFeedForwardGradient &g) {
    const TileProduct *const products[] = {&g.up, &g.from_down, &g.from_up};
    const PackedWeights<3> weights(products);
    const FeedForwardGradientSums by(g.up);
    const Parts parts(g.up.pixels, PIXELS, g.up.threads, by.size());
    if (!weights.ready || !parts.ready) return 1;
    int failed = 0;
#pragma omp parallel num_threads(static_cast<int>(g.up.threads)) reduction(| : failed)
    {
        const NoDenormals none;
        const TileSetting setting;
        const FeedForwardGradientRoom room(g.up);
        failed = !room.ready;
#pragma omp for schedule(static)
        for (int64_t n = 0; n < weights.tiles; ++n) weights.pack(n);
#pragma omp for schedule(static, 1)
        for (int64_t part = 0; part < parts.count; ++part)
            if (room.ready)
                parts.each_span(part, SPAN, [&](int64_t first, int64_t count, float *sums) {
                    differentiate<X>(g, weights, by, room, first, count, sums);
                });
#pragma omp for schedule(static)
        for (int64_t row = 0; row < g.up.inputs; ++row) {
            by.up.finish(parts, 0, row, g.d_up + row * g.up.outputs);
            by.down.finish(parts, by.at_down(), row, g.d_down + row * g.up.outputs);
        }
#pragma omp single
        {
            parts.finish(by.at_up_bias(), g.up.outputs, g.d_up_bias);
            parts.finish(by.at_down_bias(), g.up.inputs, g.d_down_bias);
            parts.finish(by.at_norm_weight(), g.up.inputs, g.d_norm_weight);
            parts.finish(by.at_norm_bias(), g.up.inputs, g.d_norm_bias);
        }
    }
    return failed;
}

}  // namespace

#endif
