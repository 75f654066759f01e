// Gradients of a linear layer in bf16 by matrix units, with those of what goes round it: a normalisation of its input, and
// a branch that is added to its result times a factor.

#pragma once

#include "tile_sums.hpp"

// library.py has the same fields in the same order. Weights of layers are bf16, all sums that are overwritten here fp32.
struct TileLinearGradient {
    TileProduct layer;  // as it ran, with x, its normalisation, `scaled` and `factor`
    TileProduct back;   // x: the gradient of the result, fp32 or bf16; weight: the layer's, turned; out: that of x, like x;
                        // add: what else the normalisation's result has as a gradient, bf16, or null
    float *d_weight;    // turned, too, (inputs, outputs)
    float *d_bias, *d_norm_weight, *d_norm_bias;  // of a normalisation, if there is one
    void *d_scaled;     // (pixels, outputs), bf16, if there is `scaled`
    float *d_factor;    // (images, outputs)
};

#if defined(HAT_TILES)

namespace {

// What one thread needs: PIXELS rows of units, and what SPAN pixels leave for the gradient of the weight.
struct LinearGradientRoom {
    int64_t row;  // of inputs in fp32, whole squares
    uint32_t *x, *grad, *x_turned, *grad_pairs;
    float *dx, *line, *sums;
    Moments *moments;
    bool ready;

    explicit LinearGradientRoom(const TileProduct &a) : row(up(a.inputs, SQUARE)) {
        for (int pass = 0; pass < 2; ++pass) {
            arena.take(x, PIXELS * depth(a.inputs));
            arena.take(grad, PIXELS * depth(a.outputs));
            arena.take(x_turned, tiles_of(a.inputs) * STEPS * TILE);
            arena.take(grad_pairs, SPAN / 2 * up(a.outputs, SQUARE));
            arena.take(dx, PIXELS * row);
            arena.take(line, up(a.inputs, LANES));
            arena.take(sums, SQUARE * SQUARE);
            arena.take(moments, PIXELS);
            if (!pass) ready = arena.allocate();
            if (!ready) return;
        }
        std::memset(dx, 0, sizeof(float) * PIXELS * row);
    }

  private:
    Arena arena;
};

// What one part of the pixels adds up to.
struct LinearGradientSums {
    TileSums weight;  // (inputs, outputs)
    int64_t inputs, outputs, images;

    explicit LinearGradientSums(const TileProduct &a)
        : weight(a.inputs, a.outputs), inputs(up(a.inputs, SQUARE)), outputs(up(a.outputs, SQUARE)),
          images(a.scaled ? a.pixels / a.image : 0) {}
    int64_t at_bias() const { return weight.size(); }
    int64_t at_norm_weight() const { return at_bias() + outputs; }
    int64_t at_norm_bias() const { return at_norm_weight() + inputs; }
    int64_t at_factor(int64_t image) const { return at_norm_bias() + inputs + image * outputs; }
    int64_t size() const { return at_factor(images); }
};

// Pixels from `first` on, `count` of PIXELS, as units; what the branch has of the gradient is done at once.
template <class X, class G>
void read_pixels(const TileLinearGradient &g, const LinearGradientSums &by, const LinearGradientRoom &room, int64_t first,
                 int64_t count, float *sums) {
    const int64_t inputs = g.layer.inputs, outputs = g.layer.outputs;
    std::memset(room.x, 0, 4 * PIXELS * depth(inputs));
    std::memset(room.grad, 0, 4 * PIXELS * depth(outputs));
    float *bias = sums + by.at_bias();
    for (int64_t i = 0; i < count; ++i) {
        const int64_t number = first + i, at = number * outputs;
        const G *grad = static_cast<const G *>(g.back.x) + at;
        bf16 *to = reinterpret_cast<bf16 *>(room.grad + i * depth(outputs));
        room.moments[i] = left_row(g.layer, static_cast<const X *>(g.layer.x) + number * inputs, room.line,
                                   reinterpret_cast<bf16 *>(room.x + i * depth(inputs)), static_cast<bf16 *>(nullptr));
        for (int64_t c = 0; c < outputs; c += LANES) {
            const Floats value = load(grad + c, outputs - c);
            store(to + c, value, outputs - c);
            write(bias + c, read<Floats>(bias + c) + value);
        }
        if (!g.layer.scaled) continue;
        const bf16 *branch = static_cast<const bf16 *>(g.layer.scaled) + at;
        const int64_t image = number / g.layer.image;
        const float *factor = g.layer.factor + image * outputs;
        float *of_factor = sums + by.at_factor(image);
        for (int64_t c = 0; c < outputs; c += LANES) {
            const int64_t left = outputs - c;
            const Floats value = load(grad + c, left);
            store(static_cast<bf16 *>(g.d_scaled) + at + c, value * load(factor + c, left), left);
            write(of_factor + c, read<Floats>(of_factor + c) + value * load(branch + c, left));
        }
    }
}

// The gradients of `count` of PIXELS pixels from `first` on, from those behind the normalisation in `dx`.
template <class X>
void write_gradients(const TileLinearGradient &g, const LinearGradientRoom &room, int64_t first, int64_t count,
                     const NormSums &norm) {
    const int64_t inputs = g.layer.inputs;
    for (int64_t i = 0; i < count; ++i) {
        const int64_t at = (first + i) * inputs;
        float *grad = room.dx + i * room.row;
        if (g.back.add)
            for (int64_t c = 0; c < inputs; c += LANES)
                write(grad + c, read<Floats>(grad + c) + load(static_cast<const bf16 *>(g.back.add) + at + c, inputs - c));
        X *to = static_cast<X *>(g.back.out) + at;
        if (g.layer.norm_weight)
            norm_gradient(g.layer, room.moments[i], static_cast<const X *>(g.layer.x) + at, grad,
                          static_cast<const X *>(nullptr), norm, to);
        else
            for (int64_t c = 0; c < inputs; c += LANES) store(to + c, read<Floats>(grad + c), inputs - c);
    }
}

// `count` pixels, at most SPAN, from `first` on.
template <class X, class G>
void differentiate(const TileLinearGradient &g, const uint32_t *packed, const LinearGradientSums &by,
                   const LinearGradientRoom &room, int64_t first, int64_t count, float *sums) {
    const int64_t across = tiles_of(g.layer.inputs);
    const NormSums norm{sums + by.at_norm_weight(), sums + by.at_norm_bias()};
    int64_t step = 0;
    for (int64_t from = 0; from < count; from += PIXELS, step += PIXELS / (2 * SIDE)) {
        const int64_t here = std::min(PIXELS, count - from);
        read_pixels<X, G>(g, by, room, first + from, here, sums);
        turn_pixels(room.x, depth(g.layer.inputs), across, STEPS, step, room.x_turned);
        pair_pixels(room.grad, depth(g.layer.outputs), PIXELS / 2, SPAN / 2, from / 2, room.grad_pairs);
        multiply_pixels(g.back, ITSELF, packed, room.grad, here, room.sums, [&](int64_t n) {
            return Target<float>{room.dx + n * room.row, nullptr, nullptr, nullptr};
        });
        write_gradients<X>(g, room, first + from, here, norm);
    }
    by.weight.add({room.x_turned, room.grad_pairs, STEPS * TILE, SPAN / 2 * SQUARE}, step, sums);
}

template <class X, class G> int run_tile_linear_gradient(const TileLinearGradient &g) {
    const TileProduct *const products[] = {&g.back};
    const PackedWeights<1> weights(products);
    const LinearGradientSums by(g.layer);
    const Parts parts(g.layer.pixels, PIXELS, g.layer.threads, by.size());
    if (!weights.ready || !parts.ready) return 1;
    int failed = 0;
#pragma omp parallel num_threads(static_cast<int>(g.layer.threads)) reduction(| : failed)
    {
        const NoDenormals none;
        const TileSetting setting;
        const LinearGradientRoom room(g.layer);
        failed = !room.ready;
#pragma omp for schedule(static)
        for (int64_t n = 0; n < weights.tiles; ++n) weights.pack(n);
#pragma omp for schedule(static, 1)
        for (int64_t part = 0; part < parts.count; ++part)
            if (room.ready)
                parts.each_span(part, SPAN, [&](int64_t first, int64_t count, float *sums) {
                    differentiate<X, G>(g, weights[0], by, room, first, count, sums);
                });
#pragma omp for schedule(static)
        for (int64_t row = 0; row < g.layer.inputs; ++row) by.weight.finish(parts, 0, row, g.d_weight + row * g.layer.outputs);
#pragma omp single
        {
            parts.finish(by.at_bias(), g.layer.outputs, g.d_bias);
            if (g.layer.norm_weight) {
                parts.finish(by.at_norm_weight(), g.layer.inputs, g.d_norm_weight);
                parts.finish(by.at_norm_bias(), g.layer.inputs, g.d_norm_bias);
            }
            for (int64_t image = 0; image < by.images; ++image)
                parts.finish(by.at_factor(image), g.layer.outputs, g.d_factor + image * g.layer.outputs);
        }
    }
    return failed;
}

}  // namespace

#endif
