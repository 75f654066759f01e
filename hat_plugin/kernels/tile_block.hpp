// A transformer block in bf16 by matrix units, a window of an image at a time: normalisation, queries, keys and values,
// attention, projection, residuals, MLP. What is between is a few hundred kilobytes and stays in the second-level cache.

#pragma once

#include "attend.hpp"
#include "tile_product.hpp"

// The caller fills it: library.py has the same fields in the same order. The stream, which is `queries.x`, `down.out`
// and `branch`, is fp32 or, if queries.half_x, bf16; `down.out` may be `branch`, but not `queries.x`.
struct WindowBlock {
    WindowAttention attention;  // k, v: null where they come of the window's own pixels; q, out, softmax: not used
    TileProduct queries;        // normalises; its outputs are queries and, unless given, keys and values
    TileProduct projection;     // of what has attended; the stream is added
    TileProduct up, down;       // an MLP of what that made, normalised; added to it
    const void *branch;         // (pixels, channels), added with the projection times `factor`; or null
    const float *factor;        // (images, channels)
};

#if defined(HAT_TILES)

namespace {

// What one thread needs.
struct BlockRoom {
    uint32_t *left, *hidden;  // inputs of PIXELS pixels, and what is inside the MLP
    uint32_t *attended;       // inputs of the projection, of a whole window
    bf16 *tokens;             // queries, keys and values of a window
    float *y, *row, *sums;    // the stream behind attention, of PIXELS pixels
    int64_t *number;          // of the window's pixels in the image
    bool ready;

    explicit BlockRoom(const WindowBlock &b) {
        const int64_t n = b.attention.window_height * b.attention.window_width;
        const int64_t units = depth(b.queries.inputs), hidden_units = depth(b.down.inputs);
        for (int pass = 0; pass < 2; ++pass) {
            arena.take(left, PIXELS * units);
            arena.take(hidden, PIXELS * hidden_units);
            arena.take(attended, up(n, PIXELS) * units);
            arena.take(tokens, n * b.queries.outputs);
            arena.take(y, PIXELS * b.queries.inputs);
            arena.take(row, up(b.queries.inputs, LANES));
            arena.take(sums, SQUARE * SQUARE);
            arena.take(number, n);
            if (!pass) ready = arena.allocate();
            if (!ready) return;
        }
        std::memset(left, 0, 4 * PIXELS * units);  // what is behind the last channel stays zero
        std::memset(hidden, 0, 4 * PIXELS * hidden_units);
        std::memset(attended, 0, 4 * up(n, PIXELS) * units);
    }

  private:
    Arena arena;
};

// Ask for a pixel of the stream and of the branch before they are needed.
template <class X> inline void fetch_pixel(const WindowBlock &b, int64_t number) {
    const int64_t bytes = sizeof(X) * b.queries.inputs, at = bytes * number;
    for (int64_t byte = 0; byte < bytes; byte += 64) {
        __builtin_prefetch(static_cast<const char *>(b.queries.x) + at + byte, 0, 2);
        if (b.branch) __builtin_prefetch(static_cast<const char *>(b.branch) + at + byte, 0, 2);
    }
}

// Queries and, unless they are given, keys and values of a window.
template <class X> void make_tokens(const WindowBlock &b, const uint32_t *packed, const BlockRoom &room, int64_t n) {
    const TileProduct &a = b.queries;
    const int64_t units = depth(a.inputs);
    const X *x = static_cast<const X *>(a.x);
    for (int64_t first = 0; first < n; first += PIXELS) {
        const int64_t count = std::min(PIXELS, n - first);
        for (int64_t i = 0; i < count; ++i)
            left_row(a, x + room.number[first + i] * a.inputs, room.row, reinterpret_cast<bf16 *>(room.left + i * units),
                     static_cast<bf16 *>(nullptr));
        multiply_pixels(a, ITSELF, packed, room.left, count, room.sums, [&](int64_t i) {
            return Target<bf16>{room.tokens + (first + i) * a.outputs, nullptr, nullptr, nullptr};
        });
    }
}

// All heads of a window, from its tokens to the inputs of the projection.
template <class X, class B> void attend_heads(const WindowBlock &b, Place at, const BlockRoom &room, const Workspace<bf16> &w) {
    const WindowAttention &a = b.attention;
    const int64_t channels = b.queries.inputs, stride = b.queries.outputs;
    const B *mask = mask_of<B>(a, at, w);
    for (at.head = 0; at.head < a.heads; ++at.head) {
        bf16 *tokens = room.tokens + at.head * a.width;
        for (int64_t i = 0; i < w.n; ++i) {
            w.q_row[i] = tokens + i * stride;
            w.out_row[i] = reinterpret_cast<bf16 *>(room.attended + i * depth(channels)) + at.head * a.width;
            if (at.head + 1 == a.heads && i < PIXELS) fetch_pixel<X>(b, room.number[i]);
        }
        if (a.k) {
            locate(a, at, a.k, a.k_stride, true, w.k_row);
            locate(a, at, a.v, a.v_stride, true, w.v_row);
        } else
            for (int64_t i = 0; i < w.n; ++i) {
                w.k_row[i] = w.q_row[i] + channels;
                w.v_row[i] = w.k_row[i] + channels;
            }
        const B *bias = static_cast<const B *>(a.bias) + at.head * w.n * w.m;
        attend_rows<Tiles>(w, bias, mask, static_cast<float>(a.scale), nullptr);
    }
}

// What follows attention, for a window's pixels.
template <class X>
void finish(const WindowBlock &b, const PackedWeights<4> &weights, const BlockRoom &room, int64_t n, const float *factor) {
    const int64_t channels = b.queries.inputs, units = depth(channels);
    const X *x = static_cast<const X *>(b.queries.x), *branch = static_cast<const X *>(b.branch);
    X *out = static_cast<X *>(b.down.out);
    for (int64_t first = 0; first < n; first += PIXELS) {
        const int64_t count = std::min(PIXELS, n - first), *number = room.number + first;
        multiply_pixels(b.projection, ITSELF, weights[1], room.attended + first * units, count, room.sums, [&](int64_t i) {
            const int64_t at = number[i] * channels;
            return Target<float, X, X>{room.y + i * channels, x + at, branch ? branch + at : nullptr, factor};
        });
        for (int64_t i = 0; i < count; ++i) {
            left_row(b.up, room.y + i * channels, room.row, reinterpret_cast<bf16 *>(room.left + i * units),
                     static_cast<bf16 *>(nullptr));
            if (first + PIXELS + i < n) fetch_pixel<X>(b, number[PIXELS + i]);
        }
        hide(b.up, weights[2], room.left, count, room.sums, room.hidden, b.down);
        multiply_pixels(b.down, ITSELF, weights[3], room.hidden, count, room.sums, [&](int64_t i) {
            return Target<X, float>{out + number[i] * channels, room.y + i * channels, nullptr, nullptr};
        });
    }
}

template <class X, class B> int run_window_block(const WindowBlock &b) {
    const WindowAttention &a = b.attention;
    const TileProduct *const products[] = {&b.queries, &b.projection, &b.up, &b.down};
    const PackedWeights<4> weights(products);
    if (!weights.ready) return 1;
    int failed = 0;
#pragma omp parallel num_threads(static_cast<int>(a.threads)) reduction(| : failed)
    {
        const NoDenormals none;
        const TileSetting setting;
        const BlockRoom room(b);
        const Workspace<bf16> w(a, Tiles::UNIT, Tiles::PACKING);
        const bool ready = room.ready && w.ready;
        failed = !ready;
#pragma omp for schedule(static)
        for (int64_t n = 0; n < weights.tiles; ++n) weights.pack(n);
#pragma omp for schedule(dynamic, 1)
        for (int64_t window = 0; window < a.batch * a.rows * a.columns; ++window) {
            if (!ready) continue;
            const int64_t place = window % (a.rows * a.columns);
            const Place at{window / (a.rows * a.columns), place / a.columns, place % a.columns, 0};
            int64_t *number = room.number;
            each_token(a, at, false,
                       [&](int64_t y, int64_t x, bool) { *number++ = (at.image * a.height_q + y) * a.width_q + x; });
            make_tokens<X>(b, weights[0], room, w.n);
            attend_heads<X, B>(b, at, room, w);
            finish<X>(b, weights, room, w.n, b.factor ? b.factor + at.image * b.queries.inputs : nullptr);
        }
    }
    return failed;
}

}  // namespace

#endif
