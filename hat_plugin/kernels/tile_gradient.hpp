// window_gradient.hpp by AMX: all five products of a window in bf16, softmax and sums in fp32.
//
// Sixteen queries at a time, as in the forward pass, to their weights and slopes. Those stay in cache as units along
// queries, (N / 2, keys): the gradients of keys and values are then one product each over all queries, transposed
// (channels by keys), so that no sum is ever loaded again.

#pragma once

#include "tiles.hpp"
#include "window_gradient.hpp"

#if defined(HAT_TILES)

namespace {

// What one thread needs; filled anew for each window and head.
template <class T> struct TileGradientSpace : GradientTokens<T> {
    int64_t pairs, channels;         // of queries, and channels, up to whole tiles
    uint32_t *q_turned, *g_turned;   // (channels, pairs): units along queries
    uint32_t *p_turned, *s_turned;   // (pairs, keys): weights and slopes, units along queries
    float *weights, *slopes;         // (16, keys)
    uint32_t *by_key;                // (16, keys / 2): slopes as units along keys
    float *room, *sums;              // (16, 32); (channels, keys)
    bool ready;

    TileGradientSpace(const WindowAttention &a, int unit, const Packing &packing)
        : GradientTokens<T>(a, unit, packing), pairs(up(this->n, 2 * SIDE) / 2), channels(up(this->width, SIDE)) {
        lay_out();
        ready = this->arena.allocate();
        if (ready) lay_out();
    }

  private:
    void lay_out() {
        const int64_t keys = this->keys;
        this->take_tokens();
        for (uint32_t **part : {&q_turned, &g_turned}) this->arena.take(*part, channels * pairs);
        for (uint32_t **part : {&p_turned, &s_turned}) this->arena.take(*part, pairs * keys);
        for (float **part : {&weights, &slopes}) this->arena.take(*part, SIDE * keys);
        this->arena.take(by_key, SIDE * keys / 2);
        this->arena.take(room, SIDE * 2 * SIDE);
        this->arena.take(sums, channels * keys);
    }
};

// (channels, pairs): a channel of two neighbouring tokens as a unit; zeros where there is no token or channel.
template <class T> void pack_turned(const TileGradientSpace<T> &w, T *const *rows, uint32_t *to) {
    static const T nothing[SIDE] = {};
    Tiles *how = nullptr;
    for (int64_t pair = 0; pair < w.pairs; pair += LANES)
        for (int64_t c = 0; c < w.channels; c += LANES) {
            const int64_t count = std::clamp<int64_t>(w.width - c, 0, LANES);
            Bits block[LANES];
            for (int64_t i = 0; i < LANES; ++i) {
                const T *token[2];
                for (int64_t o = 0; o < 2; ++o) {
                    const int64_t number = 2 * (pair + i) + o;
                    token[o] = number < w.n && rows[number] ? rows[number] + c : nothing;
                }
                block[i] = paired(how, token[0], token[1], count);
            }
            turn(block);
            for (int64_t i = 0; i < LANES; ++i) write(to + (c + i) * w.pairs + pair, block[i]);
        }
}

// Products to P and dS of 16 queries, in the orders of what follows; dS is added to the bias's gradient. WHOLE: queries
// and keys fill their tiles and panels.
template <bool WHOLE, class T, class B>
void slopes_of_products(const TileGradientSpace<T> &w, int64_t first, const B *bias, const B *mask, float scale,
                        float *dbias) {
    // What a loop reads is copied first: for all that the compiler knows, it writes over `w`.
    const int64_t keys = w.keys, m = w.m, n = w.n;
    for (int64_t r = 0; r < SIDE; r += 2) {
        const float *products[2], *slopes[2];
        float top[2], inverse[2], mean[2];
        int64_t row[2];
        uint32_t *by_key[2];
        for (int o = 0; o < 2; ++o) {
            const int64_t query = first + r + o;
            products[o] = w.weights + (r + o) * keys;
            slopes[o] = w.slopes + (r + o) * keys;
            top[o] = w.top[query];
            inverse[o] = w.inverse[query];
            mean[o] = w.mean[query];
            row[o] = (WHOLE ? query : std::min(query, n - 1)) * m;
            by_key[o] = w.by_key + (r + o) * keys / 2;
        }
        uint32_t *p_turned = w.p_turned + (first + r) / 2 * keys, *s_turned = w.s_turned + (first + r) / 2 * keys;
        for (int64_t j = 0; j < keys; j += PANEL) {
            Floats p[2][2], slope[2][2];
            for (int o = 0; o < 2; ++o) {
                for (int side = 0; side < 2; ++side) {
                    const int64_t column = j + side * LANES, at = row[o] + column;
                    const int64_t count = WHOLE ? LANES : std::clamp<int64_t>(m - column, 0, LANES);
                    Floats logit = read<Floats>(products[o] + column) * scale + load(bias + at, count);
                    if (mask) logit += load(mask + at, count);
                    p[o][side] = first_lanes(weights_of<Tiles>(logit, top[o], inverse[o]), count, 0.0f);
                    slope[o][side] = p[o][side] * (read<Floats>(slopes[o] + column) - mean[o]);
                    if (WHOLE || first + r + o < n) store(dbias + at, load(dbias + at, count) + slope[o][side], count);
                }
                Tiles::put_weights(by_key[o] + j / 2, slope[o][0], slope[o][1]);
            }
            for (int side = 0; side < 2; ++side) {
                const int64_t at = j + side * LANES;
                Tiles::put_rows(p_turned + at, 0, p[0][side], p[1][side]);
                Tiles::put_rows(s_turned + at, 0, slope[0][side], slope[1][side]);
            }
        }
    }
}

// The gradient of keys or values, (channels, keys) in fp32, to where its tokens belong.
template <class T>
void deliver_turned(const TileGradientSpace<T> &w, const uint32_t *tokens, const uint32_t *weights, float factor,
                    void *const *rows, bool add) {
    for (int64_t channel = 0; channel < w.channels; channel += SIDE)
        for (int64_t j = 0; j < w.keys; j += 2 * SIDE)
            multiply_tiles<true>(tokens + channel * w.pairs, w.pairs, weights + j, w.keys, SIDE, w.pairs,
                                 w.sums + channel * w.keys + j, w.keys);
    deliver<T>(w, w.sums, w.keys, PANEL, factor, rows, add);
}

template <class T> struct Gradients<Tiles, T> {
    typedef TileGradientSpace<T> Space;
};

template <class B, class T>
void differentiate(Tiles *, const WindowGradient &g, const Place &at, const TileGradientSpace<T> &w, float *dbias) {
    const WindowAttention &a = g.forward;
    const bool add = a.margin > 0;
    pack_tokens<Tiles>(g, at, w);
    pack_turned(w, w.q_row, w.q_turned);
    pack_turned(w, w.g_row, w.g_turned);
    const int64_t there = w.queries / 2 * w.keys, all = w.pairs * w.keys;
    for (uint32_t *turned : {w.p_turned, w.s_turned}) std::memset(turned + there, 0, (all - there) * 4);
    const B *bias = static_cast<const B *>(a.bias) + at.head * w.n * w.m;
    const B *mask = mask_of<B>(a, at, w);
    const float scale = static_cast<float>(a.scale);
    float factor[SIDE];
    std::fill(factor, factor + SIDE, scale);
    const bool whole = w.n % SIDE == 0 && w.m == w.keys;
    const auto slopes = whole ? slopes_of_products<true, T, B> : slopes_of_products<false, T, B>;
    for (int64_t first = 0; first < w.n; first += SIDE) {
        multiply_panels(w, w.q + first * w.depth, w.k, w.weights, w.keys);
        multiply_panels(w, w.g + first * w.depth, w.v, w.slopes, w.keys);
        slopes(w, first, bias, mask, scale, dbias);
        write_sums(w, w.by_key, w.keys / 2, w.k_value, first, factor, w.room, w.dq_row);
    }
    deliver_turned(w, w.q_turned, w.s_turned, scale, w.dk_row, add);
    deliver_turned(w, w.g_turned, w.p_turned, 1.0f, w.dv_row, add);
}

}  // namespace

#endif
