// What the passes of window_attention.cpp share: where the tokens of a window lie, how they are packed, logits, softmax.
//
// Logits and weights of a few queries live in the first-level cache and never reach memory; the bias and the mask are
// added in registers; softmax is in fp32 whatever the tensors are; shift, windows and overlap are a matter of
// addresses, so that no image is rolled, cut or padded before.

#pragma once

#include "memory.hpp"
#include "vectors.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

// What the gradient needs of a query's weights: its largest logit, and the sum of all logits' exponentials after that was
// subtracted.
struct Softmax {
    float peak, sum;
};

// The caller fills it: library.py has the same fields in the same order, and a build is named by this file's content.
// Strides are in elements; the last dimension of every tensor has stride 1.
struct WindowAttention {
    const void *q, *k, *v, *bias, *mask;  // mask: null, or (N, M), or (3, N, M) as mask_mode says
    void *out;
    Softmax *softmax;  // null, or (windows, heads, N)
    int64_t q_stride[4], k_stride[4], v_stride[4], out_stride[4];  // batch, row, column, head
    int64_t batch, heads, width;                                   // width: channels of one head
    int64_t height_q, width_q, height_k, width_k;                  // images that queries and keys come from
    int64_t rows, columns;                                         // windows in an image
    int64_t window_height, window_width;                           // of queries: N = window_height * window_width
    int64_t key_height, key_width;                                 // of keys: M = key_height * key_width
    int64_t margin, shift;  // keys begin margin pixels before the queries; all windows are shift pixels further on
    int64_t mask_mode;      // 0: none; 1: one for all; 2: last row, last column and corner of windows
    int64_t half, half_bias;  // whether tensors, and bias with mask, are bf16 (else fp32)
    int64_t threads;
    double scale;
};

namespace {

constexpr int64_t AHEAD = 16;  // tokens that are fetched in advance
constexpr float LOG2_E = 1.44269504088896340736f;

// Sizes of a window and a head, as they are packed.
struct Sizes {
    int64_t n, m, queries, keys, width, depth, values;

    Sizes(const WindowAttention &a, int unit, const Packing &packing)
        : n(a.window_height * a.window_width),  // queries
          m(a.key_height * a.key_width),        // keys
          queries(up(n, packing.queries)),
          keys(up(m, packing.keys)),
          width(a.width),
          depth(up((a.width + unit - 1) / unit, packing.depth)),  // units of a token
          values(up(a.width, packing.channels)) {}                // lanes of a token
    int64_t broadcast() const { return queries * depth + 2 * PANEL; }  // pack_units() writes whole vectors
    int64_t row() const { return keys + LANES; }  // rows of many a power of two would meet in few sets of a cache
    int64_t panels() const { return keys * depth; }
    int64_t token() const { return up(width, PANEL) + PANEL; }  // row_units() writes whole vectors
    int64_t few() const { return LANES * token(); }
};

// A window, and the head that is worked on.
struct Place {
    int64_t image, row, column, head;
};

// A position that may be less than one image off, brought back.
inline int64_t wrapped(int64_t at, int64_t size) { return at < 0 ? at + size : at >= size ? at - size : at; }

// Call work(row, column, inside) for the pixel of each of a window's tokens; those of keys may lie beyond the image.
template <class Work> void each_token(const WindowAttention &a, const Place &place, bool keys, const Work &work) {
    const int64_t image_height = keys ? a.height_k : a.height_q, image_width = keys ? a.width_k : a.width_q;
    const int64_t height = keys ? a.key_height : a.window_height, width = keys ? a.key_width : a.window_width;
    const int64_t top = place.row * a.window_height + a.shift - (keys ? a.margin : 0);
    const int64_t left = place.column * a.window_width + a.shift - (keys ? a.margin : 0);
    for (int64_t y = top; y < top + height; ++y) {
        const int64_t in_y = a.shift ? wrapped(y, image_height) : y;
        for (int64_t x = left; x < left + width; ++x) {
            const int64_t in_x = a.shift ? wrapped(x, image_width) : x;
            work(in_y, in_x, in_y >= 0 && in_y < image_height && in_x >= 0 && in_x < image_width);
        }
    }
}

// Where the rows of a window's tokens begin in a tensor; null for those beyond the image.
template <class T>
void locate(const WindowAttention &a, const Place &place, const void *tensor, const int64_t *stride, bool keys, T **rows) {
    T *base = static_cast<T *>(const_cast<void *>(tensor)) + place.image * stride[0] + place.head * stride[3];
    each_token(a, place, keys, [&](int64_t y, int64_t x, bool inside) {
        *rows++ = inside ? base + y * stride[1] + x * stride[2] : nullptr;
    });
}

// Ask for a row of an image before it is needed: rows lie too far apart for the processor to guess the next one.
template <class T> inline void fetch(T *const *rows, int64_t at, int64_t count, int64_t width) {
    if (at >= count || !rows[at]) return;
    const T *row = rows[at];
    for (int64_t c = 0; c < width; c += 64 / sizeof(T)) __builtin_prefetch(row + c);
    __builtin_prefetch(row + width - 1);
}

// The three orders in which tokens are multiplied. `rows` says where each begins; null, or beyond `count`: zeros.

// (total, depth): a token's units one after the other, each to be spread over a vector.
template <class P, class T>
void pack_units(const Sizes &s, T *const *rows, int64_t count, int64_t total, uint32_t *to) {
    P *how = nullptr;
    for (int64_t i = 0; i < count; ++i) {
        fetch<T>(rows, i + AHEAD, count, s.width);
        row_units(how, rows[i], s.width, to + i * s.depth);  // the next row clears the excess
    }
    std::memset(to + count * s.depth, 0, (total - count) * s.depth * 4);
}

// (total / PANEL, depth, PANEL): the same unit of neighbouring tokens side by side. `room`: few().
template <class P, class T>
void pack_panels(const Sizes &s, T *const *rows, int64_t count, int64_t total, uint32_t *to, uint32_t *room) {
    P *how = nullptr;
    const int64_t stride = s.token();
    for (int64_t j = 0; j < total; j += LANES) {
        for (int64_t i = j; i < j + LANES; ++i) {
            uint32_t *token = room + (i - j) * stride;
            fetch<T>(rows, i + AHEAD, count, s.width);
            if (i < count && rows[i]) row_units(how, rows[i], s.width, token);
            else std::memset(token, 0, stride * 4);
        }
        uint32_t *panel = to + j / PANEL * PANEL * s.depth + j % PANEL;
        for (int64_t p = 0; p < s.depth; p += LANES) {
            Bits block[LANES];
            for (int i = 0; i < LANES; ++i) block[i] = read<Bits>(room + i * stride + p);
            turn(block);
            for (int64_t i = 0; i < std::min<int64_t>(LANES, s.depth - p); ++i) write(panel + (p + i) * PANEL, block[i]);
        }
    }
}

// (total / UNIT, values): channels side by side, a unit being the same channel of UNIT neighbouring tokens.
template <class P, class T>
void pack_values(const Sizes &s, T *const *rows, int64_t count, int64_t total, uint32_t *to) {
    static const T nothing[2 * LANES] = {};
    P *how = nullptr;
    for (int64_t j = 0; j < total; j += P::UNIT, to += s.values) {
        const T *token[P::UNIT];
        for (int u = 0; u < P::UNIT; ++u) {
            fetch<T>(rows, j + u + AHEAD, count, s.width);
            token[u] = j + u < count ? rows[j + u] : nullptr;
        }
        for (int64_t c = 0; c < s.values; c += LANES) {
            const T *first = token[0] ? token[0] + c : nothing, *last = token[P::UNIT - 1] ? token[P::UNIT - 1] + c : nothing;
            write(to + c, paired(how, first, last, std::max<int64_t>(s.width - c, 0)));
        }
    }
}

// Ask for a panel's columns of a row before they are needed.
template <class B> inline void fetch_panel(const B *row) {
    for (int64_t at = 0; at < PANEL; at += 64 / static_cast<int64_t>(sizeof(B))) __builtin_prefetch(row + at);
}

// Products of ROWS tokens, packed as units, with one panel: sums begin as begin(row, side), and end(row, side, sum) takes
// them.
template <class P, class Begin, class End>
inline __attribute__((always_inline)) void products(const uint32_t *units, const uint32_t *panel, int64_t depth,
                                                    const Begin &begin, const End &end) {
    Floats sum[ROWS][2];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
        sum[r][0] = begin(r, 0);
        sum[r][1] = begin(r, 1);
    }
    for (int64_t p = 0; p < depth; ++p) {
        const Bits left = read<Bits>(panel + p * PANEL), right = read<Bits>(panel + p * PANEL + LANES);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) {
            sum[r][0] = P::fma(sum[r][0], units[r * depth + p], left);
            sum[r][1] = P::fma(sum[r][1], units[r * depth + p], right);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
        end(r, 0, sum[r][0]);
        end(r, 1, sum[r][1]);
    }
}

// The logits of ROWS queries and the panel of keys from `column` on, each row beginning at result[row]. WHOLE: all of
// these keys exist. Those that do not get -inf.
template <class P, bool WHOLE, class B>
inline __attribute__((always_inline)) void panel_logits(const uint32_t *units, const uint32_t *panel, int64_t depth,
                                                        const B *const (&bias)[ROWS], const B *const (&mask)[ROWS],
                                                        int64_t column, int64_t keys, float scale,
                                                        float *const (&result)[ROWS]) {
    const auto there = [&](int side) {
        return WHOLE ? int64_t{LANES} : std::clamp<int64_t>(keys - column - side * LANES, 0, LANES);
    };
    const auto added = [&](int r, int side) {
        const int64_t at = column + side * LANES, count = there(side);
        const Floats value = load(bias[r] + at, count);
        return mask[r] ? value + load(mask[r] + at, count) : value;
    };
    for (int r = 0; r < ROWS; ++r) fetch_panel(bias[r] + column + PANEL);
    products<P>(
        units, panel, depth, [&](int r, int side) { return P::SCALES ? added(r, side) : Floats{}; },
        [&](int r, int side, Floats sum) {
            if (!P::SCALES) sum = sum * scale + added(r, side);
            if (!WHOLE) sum = first_lanes(sum, there(side), -std::numeric_limits<float>::infinity());
            write(result[r] + column + side * LANES, sum);
        });
}

// Logits of ROWS queries from `first` on, (ROWS, keys) in fp32. Keys that only fill a panel get -inf. Where P::SCALES,
// the queries' units have been scaled.
template <class P, class B>
void logits(const Sizes &s, const uint32_t *q, const uint32_t *k, int64_t first, const B *bias, const B *mask,
            float scale, float *result) {
    const B *biases[ROWS], *masks[ROWS];
    float *rows[ROWS];
    for (int r = 0; r < ROWS; ++r) {
        const int64_t at = std::min(first + r, s.n - 1) * s.m;
        biases[r] = bias + at;
        masks[r] = mask ? mask + at : nullptr;
        rows[r] = result + r * s.keys;
    }
    const uint32_t *units = q + first * s.depth;
    const int64_t keys = s.m, depth = s.depth;
    int64_t column = 0;
    for (; column + PANEL <= keys; column += PANEL)
        panel_logits<P, true>(units, k + column * depth, depth, biases, masks, column, keys, scale, rows);
    if (column < keys) panel_logits<P, false>(units, k + column * depth, depth, biases, masks, column, keys, scale, rows);
}

// The largest of a row's logits.
inline float peak_of(const float *row, int64_t keys) {
    Floats most[2] = {read<Floats>(row), read<Floats>(row + LANES)};
    for (int64_t j = PANEL; j < keys; j += PANEL)
        for (int side = 0; side < 2; ++side) most[side] = larger(read<Floats>(row + j + side * LANES), most[side]);
    return largest(larger(most[0], most[1]));
}

// Logits to weights as units of P, in place, not yet divided by their sum, which is returned. `peak`: the largest.
template <class P> float exponentials(float *row, int64_t keys, float peak) {
    const float top = peak * LOG2_E;  // rounded, but the same for a whole row, which is divided by its sum
    Floats sum[2] = {};
    for (int64_t j = 0; j < keys; j += PANEL) {
        const Floats first = P::power(read<Floats>(row + j) * LOG2_E - top);
        const Floats second = P::power(read<Floats>(row + j + LANES) * LOG2_E - top);
        sum[0] += first;
        sum[1] += second;
        P::put_weights(reinterpret_cast<uint32_t *>(row) + j / P::UNIT, first, second);
    }
    return total(sum[0] + sum[1]);
}

// Sums of `count` units of values, (count, width), each times its weight, for ROWS queries whose weights begin `stride`
// after one another: VECTORS vectors of channels. They begin as begin(row, vector), and end(row, vector, sum) takes them.
template <class P, int VECTORS, class Begin, class End>
inline __attribute__((always_inline)) void weigh(const uint32_t *weights, int64_t stride, const uint32_t *values,
                                                 int64_t width, int64_t count, const Begin &begin, const End &end) {
    Floats sum[ROWS][VECTORS];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
        for (int c = 0; c < VECTORS; ++c) sum[r][c] = begin(r, c);
    for (int64_t j = 0; j < count; ++j, values += width) {
        Bits value[VECTORS];
        for (int c = 0; c < VECTORS; ++c) value[c] = read<Bits>(values + c * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
            for (int c = 0; c < VECTORS; ++c) sum[r][c] = P::fma(sum[r][c], weights[r * stride + j], value[c]);
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
        for (int c = 0; c < VECTORS; ++c) end(r, c, sum[r][c]);
}

// Call work(lane, VECTORS) for two vectors of channels at a time, from `lane` on, and for one that is left.
template <class Work> inline void each_vectors(int64_t channels, const Work &work) {
    int64_t lane = 0;
    for (; lane + 2 * LANES <= channels; lane += 2 * LANES) work(lane, std::integral_constant<int, 2>{});
    if (lane < channels) work(lane, std::integral_constant<int, 1>{});
}

// The output of ROWS queries from `first` on: all keys' values by their weights, each row times its factor.
template <class P, class T>
void all_sums(const Sizes &s, int64_t first, const uint32_t *weights, const uint32_t *values, const float *factor,
              T *const *out) {
    each_vectors(s.values, [&](int64_t lane, auto vectors) {
        weigh<P, decltype(vectors)::value>(
            weights, s.keys, values + lane, s.values, s.keys / P::UNIT, [](int, int) { return Floats{}; },
            [&](int r, int c, Floats sum) {
                const int64_t at = lane + c * LANES;
                if (first + r < s.n) store(out[first + r] + at, sum * factor[r], s.width - at);
            });
    });
}

// Where what the gradient needs of a window's queries lies, or null.
inline Softmax *softmax_of(const WindowAttention &a, const Place &at, const Sizes &s) {
    const int64_t window = (at.image * a.rows + at.row) * a.columns + at.column;
    return a.softmax ? a.softmax + (window * a.heads + at.head) * s.n : nullptr;
}

// The mask of a window, or null.
template <class B> const B *mask_of(const WindowAttention &a, const Place &at, const Sizes &s) {
    const bool last_row = at.row == a.rows - 1, last_column = at.column == a.columns - 1;
    const B *mask = static_cast<const B *>(a.mask);
    if (a.mask_mode == 1) return mask;
    if (a.mask_mode != 2 || !(last_row || last_column)) return nullptr;
    return mask + (last_row && last_column ? 2 : last_row ? 0 : 1) * s.n * s.m;
}

}  // namespace
