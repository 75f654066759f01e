// Linear layers over the pixels of an image, channels last, in fp32: what comes before (layer normalisation) and after
// (bias, GELU, residuals) is done while the values are in registers or in the cache.
//
// Blocks of pixels go through all outputs, ROWS pixels by PANEL outputs at a time in registers; the weights are packed
// such that they are read in order.

#pragma once

#include "gelu.hpp"
#include "memory.hpp"
#include "vectors.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

// The caller fills it: library.py has the same fields in the same order. Strides are in elements; channels of an image
// lie side by side. `out`, `add` and `scaled` are (batch, height, width, outputs), contiguous.
struct Product {
    const float *x;                         // (batch, height, width, inputs)
    const float *weight, *bias;             // bias: (outputs), or null
    const float *norm_weight, *norm_bias;   // layer normalisation of x before, (inputs); or null
    const float *add, *scaled, *factor;     // out += add + scaled * factor, factor (batch, outputs); or null
    float *out;
    int64_t x_stride[3];                    // batch, row, column
    int64_t weight_stride[3];               // output, input, tap
    int64_t batch, height, width;
    int64_t inputs, outputs, taps;          // taps: 1, or 9 for winograd.hpp
    int64_t gelu, threads;
    double eps;                             // of the normalisation
};

namespace {

constexpr int64_t BLOCK = 96;  // pixels that go through all outputs together: with the weights they fit the cache
static_assert(BLOCK % ROWS == 0, "blocks are cut into whole tiles");

inline int64_t packed_size(const Product &a) { return up(a.outputs, LANES) * a.inputs; }

// Weights as (outputs / PANEL, inputs, PANEL), zeros behind the last output; a last panel may be half as wide.
inline void pack_weights(const Product &a, int64_t panel, float *packed) {
    const int64_t first = panel * PANEL, wide = std::min<int64_t>(PANEL, up(a.outputs - first, LANES));
    float *to = packed + first * a.inputs;
    for (int64_t lane = 0; lane < wide; ++lane) {
        const bool there = first + lane < a.outputs;
        const float *from = a.weight + (first + lane) * a.weight_stride[0];
        for (int64_t k = 0; k < a.inputs; ++k) to[k * wide + lane] = there ? from[k * a.weight_stride[1]] : 0.0f;
    }
}

// Where `count` pixels from `first` on begin. The last address is repeated up to a multiple of ROWS.
inline void locate_pixels(const Product &a, int64_t first, int64_t count, const float **rows) {
    for (int64_t i = 0; i < up(count, ROWS); ++i) {
        const int64_t pixel = first + std::min(i, count - 1), row = pixel / a.width;
        rows[i] = a.x + row / a.height * a.x_stride[0] + row % a.height * a.x_stride[1] + pixel % a.width * a.x_stride[2];
    }
}

// One pixel's channels with mean 0; gives what they are to be multiplied by to have variance 1.
inline float centre(const float *from, int64_t channels, double eps, float *to) {
    Floats sums = {};
    for (int64_t c = 0; c < channels; c += LANES) sums += load(from + c, channels - c);
    const float mean = total(sums) / channels;
    Floats squares = {};
    for (int64_t c = 0; c < channels; c += LANES) {
        const int64_t count = channels - c;
        const Floats apart = load(from + c, count) - mean;
        store(to + c, apart, count);
        const Floats kept = load(to + c, count);  // zeros behind the last channel
        squares += kept * kept;
    }
    return 1.0f / std::sqrt(total(squares) / channels + static_cast<float>(eps));
}

// One pixel's channels with mean 0 and variance 1, then scaled and moved.
inline void normalise(const Product &a, const float *from, float *to) {
    const float factor = centre(from, a.inputs, a.eps, to);
    for (int64_t c = 0; c < a.inputs; c += LANES) {
        const int64_t count = a.inputs - c;
        store(to + c, load(to + c, count) * factor * load(a.norm_weight + c, count) + load(a.norm_bias + c, count), count);
    }
}

// Sums over the inputs of ROWS pixels, for VECTORS vectors of outputs.
template <int VECTORS>
inline __attribute__((always_inline)) void tile(int64_t inputs, const float *const *rows, const float *panel,
                                                Floats (&result)[ROWS][VECTORS]) {
    Floats sum[ROWS][VECTORS];  // in registers; gcc keeps the result in memory, and clears that by a call
    const float *row[ROWS];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
        row[r] = rows[r];
#pragma GCC unroll 2
        for (int c = 0; c < VECTORS; ++c) sum[r][c] = Floats{};
    }
    for (int64_t k = 0; k < inputs; ++k, panel += VECTORS * LANES) {
        Floats weight[VECTORS];
        for (int c = 0; c < VECTORS; ++c) weight[c] = read<Floats>(panel + c * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) {
            const float value = row[r][k];
#pragma GCC unroll 2
            for (int c = 0; c < VECTORS; ++c) sum[r][c] += value * weight[c];
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
        for (int c = 0; c < VECTORS; ++c) result[r][c] = sum[r][c];
}

// What follows the sums, and where they go: pixels from `first` on, of which the first `count` exist, outputs from
// `output` on.
template <int VECTORS>
inline __attribute__((always_inline)) void finish(const Product &a, Floats (&sum)[ROWS][VECTORS], int64_t first,
                                                  int64_t count, int64_t output, float *out) {
    for (int c = 0; c < VECTORS; ++c) {
        const int64_t at = output + c * LANES, left = a.outputs - at;
        if (left <= 0) continue;
        const Floats bias = a.bias ? load(a.bias + at, left) : Floats{};
        for (int r = 0; r < ROWS && r < count; ++r) {
            Floats value = sum[r][c] + bias;
            if (a.gelu) value = gelu(value);
            const int64_t pixel = (first + r) * a.outputs + at;
            if (a.add) value += load(a.add + pixel, left);
            if (a.scaled) {
                const int64_t image = (first + r) / (a.height * a.width);
                value += load(a.scaled + pixel, left) * load(a.factor + image * a.outputs + at, left);
            }
            store(out + r * a.outputs + at, value, left);
        }
    }
}

// For ROWS of `count` pixels at a time and each panel of outputs: use(first of the rows, output, sums).
template <class Use>
inline __attribute__((always_inline)) void each_tile(const Product &a, const float *packed, const float *const *rows,
                                                     int64_t count, const Use &use) {
    for (int64_t output = 0; output < a.outputs; output += PANEL) {
        const float *panel = packed + output * a.inputs;
        for (int64_t i = 0; i < count; i += ROWS) {
            if (a.outputs - output > LANES) {
                Floats sum[ROWS][2];
                tile<2>(a.inputs, rows + i, panel, sum);
                use(i, output, sum);
            } else {
                Floats sum[ROWS][1];
                tile<1>(a.inputs, rows + i, panel, sum);
                use(i, output, sum);
            }
        }
    }
}

// All outputs of `count` pixels from `first` on; `out` is where the first of them goes.
inline void multiply(const Product &a, const float *packed, const float *const *rows, int64_t first, int64_t count,
                     float *out) {
    each_tile(a, packed, rows, count, [&](int64_t i, int64_t output, auto &sum) __attribute__((always_inline)) {
        finish(a, sum, first + i, count - i, output, out + i * a.outputs);
    });
}

// sums (ROWS, PANEL) += a (count, ROWS)^T b (count, PANEL); rows are `a_row` and `b_row` apart.
inline __attribute__((always_inline)) void add_outer(const float *a, int64_t a_row, const float *b, int64_t b_row,
                                                     int64_t count, float *sums) {
    Floats sum[ROWS][2];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
        for (int c = 0; c < 2; ++c) sum[r][c] = read<Floats>(sums + r * PANEL + c * LANES);
    for (int64_t i = 0; i < count; ++i, a += a_row, b += b_row) {
        const Floats left = read<Floats>(b), right = read<Floats>(b + LANES);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) {
            sum[r][0] += a[r] * left;
            sum[r][1] += a[r] * right;
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
        for (int c = 0; c < 2; ++c) write(sums + r * PANEL + c * LANES, sum[r][c]);
}

// What one thread needs.
struct ProductRoom {
    const float **rows, **next_rows;
    float *normed, *hidden;
    bool ready;

    ProductRoom(const Product &a, const Product *next) {
        lay_out(a, next);
        ready = arena.allocate();
        if (ready) lay_out(a, next);
    }

  private:
    Arena arena;
    void lay_out(const Product &a, const Product *next) {
        arena.take(rows, BLOCK);
        arena.take(normed, a.norm_weight ? BLOCK * a.inputs : 0);
        arena.take(next_rows, next ? BLOCK : 0);
        arena.take(hidden, next ? BLOCK * a.outputs : 0);
    }
};

// A product and, if there is a next one, that of its result, which never leaves the cache.
inline int run_product(const Product &a, const Product *next) {
    Arena memory;
    float *packed, *next_packed;
    for (int pass = 0; pass < 2; ++pass) {
        memory.take(packed, packed_size(a));
        memory.take(next_packed, next ? packed_size(*next) : 0);
        if (!pass && !memory.allocate()) return 1;
    }
    const int64_t pixels = a.batch * a.height * a.width, panels = (a.outputs + PANEL - 1) / PANEL;
    const int64_t next_panels = next ? (next->outputs + PANEL - 1) / PANEL : 0;
    // Several blocks for each thread, as threads do not end at the same time.
    const int64_t block = std::min(BLOCK, up(std::max<int64_t>(1, pixels / (4 * a.threads)), ROWS));
    int failed = 0;
#pragma omp parallel num_threads(static_cast<int>(a.threads)) reduction(| : failed)
    {
        const NoDenormals none;
        const ProductRoom room(a, next);
        failed = !room.ready;
#pragma omp for schedule(dynamic, 1)
        for (int64_t n = 0; n < panels + next_panels; ++n) {
            if (n < panels)
                pack_weights(a, n, packed);
            else
                pack_weights(*next, n - panels, next_packed);
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t first = 0; first < pixels; first += block) {
            if (!room.ready) continue;
            const int64_t count = std::min(block, pixels - first);
            locate_pixels(a, first, count, room.rows);
            if (a.norm_weight)
                for (int64_t i = 0; i < up(count, ROWS); ++i) {
                    float *to = room.normed + i * a.inputs;
                    normalise(a, room.rows[i], to);
                    room.rows[i] = to;
                }
            if (!next) {
                multiply(a, packed, room.rows, first, count, a.out + first * a.outputs);
                continue;
            }
            multiply(a, packed, room.rows, first, count, room.hidden);
            for (int64_t i = 0; i < up(count, ROWS); ++i)
                room.next_rows[i] = room.hidden + std::min(i, count - 1) * a.outputs;
            multiply(*next, next_packed, room.next_rows, first, count, next->out + first * next->outputs);
        }
    }
    return failed;
}

}  // namespace
