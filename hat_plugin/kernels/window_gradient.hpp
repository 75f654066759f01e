// The gradients of attention within windows: for q, k and v, and for the bias, summed over windows.
//
// Weights are computed anew, a few queries and keys at a time, from each query's largest logit and sum, which the forward
// pass left, so that nothing of (windows, heads, N, M) is ever kept. With weights P, their gradient dP = dO v^T and the
// logits' gradient dS = P (dP - sum(dO O)): dq = scale dS k, dk = scale dS^T q, dv = P^T dO, dbias = dS.
//
// Source: "FlashAttention-2" (2023), section 3.1, algorithm 2, whose blocks are here what the first-level cache holds.

#pragma once

#include "gradient_tokens.hpp"

namespace {

constexpr int64_t BLOCK = 8 * ROWS;  // queries that a panel of keys meets before the next panel
#if defined(__AVX512F__)
constexpr int CHANNELS = 30;  // whose gradients are in registers at a time, at most
#elif defined(__aarch64__)
constexpr int CHANNELS = 24;
#else
constexpr int CHANNELS = 12;
#endif

// What one thread needs to differentiate; filled anew for each window and head.
template <class T> struct GradientSpace : GradientTokens<T> {
    int64_t piece, channels;      // channels whose gradients are summed at a time, and all, up to whole pieces
    uint32_t *q_value, *g_value;  // packed as values, for units of two queries
    uint32_t *weights, *slopes;   // (BLOCK, PANEL): P and dS as units along queries
    uint32_t *by_key;             // (BLOCK, PANEL): dS as units along keys
    float *dq;                    // (BLOCK, values)
    float *dk, *dv;               // (keys / PANEL, channels, PANEL)
    bool ready;

    GradientSpace(const WindowAttention &a, int unit, const Packing &packing) : GradientTokens<T>(a, unit, packing) {
        const int64_t pieces = up(this->width, CHANNELS) / CHANNELS;
        piece = up((this->width + pieces - 1) / pieces, 2);
        channels = pieces * piece;
        lay_out();
        ready = this->arena.allocate();
        if (ready) lay_out();
    }

  private:
    void lay_out() {
        this->take_tokens();
        for (uint32_t **part : {&q_value, &g_value}) this->arena.take(*part, this->queries * this->values + CHANNELS);
        for (uint32_t **part : {&weights, &slopes, &by_key}) this->arena.take(*part, BLOCK * PANEL);
        this->arena.take(dq, BLOCK * this->values);
        for (float **part : {&dk, &dv}) this->arena.take(*part, this->keys * channels);
    }
};

// P and dS of ROWS queries from `first` on, to `p` and `slopes`, (ROWS, PANEL) each, and a panel of keys from `column`
// on; dS is added to the bias's gradient. WHOLE: all of these keys exist.
template <class P, bool WHOLE, class T, class B>
void panel_slopes(const GradientSpace<T> &w, int64_t first, int64_t column, const B *bias, const B *mask, float scale,
                  float *dbias, float *p, float *slopes) {
    const auto there = [&](int side) {
        return WHOLE ? int64_t{LANES} : std::clamp<int64_t>(w.m - column - side * LANES, 0, LANES);
    };
    const auto place = [&](int r) { return std::min(first + r, w.n - 1) * w.m + column; };
    for (int r = 0; r < ROWS; ++r) {
        fetch_panel(bias + place(r + ROWS));
        fetch_panel(dbias + place(r + ROWS));
    }
    const auto added = [&](int r, int side) {
        const int64_t at = place(r) + side * LANES;
        const Floats value = load(bias + at, there(side));
        return mask ? value + load(mask + at, there(side)) : value;
    };
    products<P>(
        w.q + first * w.depth, w.k + column * w.depth, w.depth,
        [&](int r, int side) { return P::SCALES ? added(r, side) : Floats{}; },
        [&](int r, int side, Floats sum) {
            if (!P::SCALES) sum = sum * scale + added(r, side);
            const Floats weight = weights_of<P>(sum, w.top[first + r], w.inverse[first + r]);
            write(p + r * PANEL + side * LANES, WHOLE ? weight : first_lanes(weight, there(side), 0.0f));
        });
    products<P>(
        w.g + first * w.depth, w.v + column * w.depth, w.depth,
        [&](int r, int) { return all(-w.mean[first + r]); },
        [&](int r, int side, Floats sum) {
            const Floats slope = sum * read<Floats>(p + r * PANEL + side * LANES);
            write(slopes + r * PANEL + side * LANES, slope);
            if (first + r >= w.n) return;
            float *to = dbias + place(r) + side * LANES;
            store(to, load(to, there(side)) + slope, there(side));
        });
}

// The same into the orders of what follows: `weights`, `slopes` and `by_key` at queries `row` of their block.
template <class P, class T, class B>
void panel_units(const GradientSpace<T> &w, int64_t first, int64_t row, int64_t column, const B *bias, const B *mask,
                 float scale, float *dbias) {
    uint32_t *weights = w.weights + row / P::UNIT * PANEL, *slopes = w.slopes + row / P::UNIT * PANEL;
    alignas(64) float room[2][P::UNIT > 1 ? ROWS * PANEL : 1];
    float *p = P::UNIT > 1 ? room[0] : reinterpret_cast<float *>(weights);
    float *s = P::UNIT > 1 ? room[1] : reinterpret_cast<float *>(slopes);
    if (column + PANEL <= w.m) panel_slopes<P, true>(w, first, column, bias, mask, scale, dbias, p, s);
    else panel_slopes<P, false>(w, first, column, bias, mask, scale, dbias, p, s);
    if (P::UNIT == 1) return;
    for (int r = 0; r < ROWS; r += 2) {
        Floats slope[2][2];
        for (int side = 0; side < 2; ++side) {
            const float *from = p + r * PANEL + side * LANES;
            for (int o = 0; o < 2; ++o) slope[o][side] = read<Floats>(s + (r + o) * PANEL + side * LANES);
            const int64_t to = r / P::UNIT * PANEL + side * LANES;
            P::put_rows(weights + to, PANEL, read<Floats>(from), read<Floats>(from + PANEL));
            P::put_rows(slopes + to, PANEL, slope[0][side], slope[1][side]);
        }
        for (int o = 0; o < 2; ++o)
            P::put_weights(w.by_key + (row + r + o) * (PANEL / P::UNIT), slope[o][0], slope[o][1]);
    }
}

// To the sums of a panel's keys, (COUNT channels, PANEL), add `units` of queries, their weights or slopes times their
// tokens; a token's units begin `stride` after those of the one before. `fresh`: there are no sums yet.
template <class P, int COUNT>
void spread(const uint32_t *weights, const uint32_t *tokens, int64_t stride, int64_t units, bool fresh, float *result) {
    for (int side = 0; side < 2; ++side, weights += LANES, result += LANES) {
        Floats sum[COUNT];
#pragma GCC unroll 32
        for (int c = 0; c < COUNT; ++c) sum[c] = fresh ? Floats{} : read<Floats>(result + c * PANEL);
        for (int64_t u = 0; u < units; ++u) {
            const Bits weight = read<Bits>(weights + u * PANEL);
#pragma GCC unroll 32
            for (int c = 0; c < COUNT; ++c) sum[c] = P::fma(sum[c], tokens[u * stride + c], weight);
        }
#pragma GCC unroll 32
        for (int c = 0; c < COUNT; ++c) write(result + c * PANEL, sum[c]);
    }
}

// The same for any even number of channels.
template <class P, int COUNT = 2>
void spread_piece(int64_t piece, const uint32_t *weights, const uint32_t *tokens, int64_t stride, int64_t units,
                  bool fresh, float *result) {
    if (piece == COUNT) return spread<P, COUNT>(weights, tokens, stride, units, fresh, result);
    if constexpr (COUNT < CHANNELS) spread_piece<P, COUNT + 2>(piece, weights, tokens, stride, units, fresh, result);
}

// What a thread needs for a way of multiplying.
template <class P, class T> struct Gradients {
    typedef GradientSpace<T> Space;
};

// A block of queries and a panel of keys: dS and P, and what all gradients get from them.
template <class P, class T, class B>
void differentiate_block(const GradientSpace<T> &w, int64_t first, int64_t column, const B *bias, const B *mask,
                         float scale, float *dbias) {
    const int64_t rows = std::min(BLOCK, w.queries - first);
    for (int64_t row = 0; row < rows; row += ROWS)
        panel_units<P>(w, first + row, row, column, bias, mask, scale, dbias);
    const uint32_t *by_key = P::UNIT > 1 ? w.by_key : w.slopes;
    const bool fresh = column == 0;
    for (int64_t row = 0; row < rows; row += ROWS)
        each_vectors(w.values, [&](int64_t lane, auto vectors) {
            float *sums = w.dq + row * w.values + lane;
            weigh<P, decltype(vectors)::value>(
                by_key + row * (PANEL / P::UNIT), PANEL / P::UNIT, w.k_value + column / P::UNIT * w.values + lane,
                w.values, PANEL / P::UNIT,
                [&](int r, int c) { return fresh ? Floats{} : read<Floats>(sums + r * w.values + c * LANES); },
                [&](int r, int c, Floats sum) { write(sums + r * w.values + c * LANES, sum); });
        });
    // Units along queries are the queries' own units where a unit is of one token.
    const uint32_t *q = P::UNIT > 1 ? w.q_value + first / P::UNIT * w.values : w.q + first * w.depth;
    const uint32_t *g = P::UNIT > 1 ? w.g_value + first / P::UNIT * w.values : w.g + first * w.depth;
    const int64_t stride = P::UNIT > 1 ? w.values : w.depth;
    for (int64_t c = 0; c < w.channels; c += w.piece) {
        const int64_t to = column * w.channels + c * PANEL;
        spread_piece<P>(w.piece, w.slopes, q + c, stride, rows / P::UNIT, first == 0, w.dk + to);
        spread_piece<P>(w.piece, w.weights, g + c, stride, rows / P::UNIT, first == 0, w.dv + to);
    }
}

template <class B, class P, class T>
void differentiate(P *, const WindowGradient &g, const Place &at, const GradientSpace<T> &w, float *dbias) {
    const WindowAttention &a = g.forward;
    const float scale = static_cast<float>(a.scale);
    pack_tokens<P>(g, at, w);
    P::scale(w.q, w.n * w.depth, scale);
    if (P::UNIT > 1) {
        pack_values<P>(w, w.q_row, w.n, w.queries, w.q_value);
        pack_values<P>(w, w.g_row, w.n, w.queries, w.g_value);
    }
    const B *bias = static_cast<const B *>(a.bias) + at.head * w.n * w.m;
    const B *mask = mask_of<B>(a, at, w);
    for (int64_t first = 0; first < w.n; first += BLOCK) {
        for (int64_t column = 0; column < w.keys; column += PANEL)
            differentiate_block<P>(w, first, column, bias, mask, scale, dbias);
        for (int64_t i = first; i < std::min(first + BLOCK, w.n); ++i)
            for (int64_t c = 0; c < w.width; c += LANES)
                store(w.dq_row[i] + c, read<Floats>(w.dq + (i - first) * w.values + c) * scale, w.width - c);
    }
    const bool add = a.margin > 0;
    deliver<T>(w, w.dk, PANEL, w.channels * PANEL, P::SCALES ? 1.0f : scale, w.dk_row, add);
    deliver<T>(w, w.dv, PANEL, w.channels * PANEL, 1.0f, w.dv_row, add);
}

// All windows and heads. A head's bias gradient stays in cache, since a thread stays with it; windows of keys that
// overlap are never worked on at the same time, and always in the same order.
template <class P, class T, class B> int differentiate(const WindowGradient &g) {
    const WindowAttention &a = g.forward;
    const int64_t period = (a.key_height + a.window_height - 1) / a.window_height;  // windows this far apart are apart
    const int64_t colours = a.margin > 0 ? period : 1;
    int failed = 0;
#pragma omp parallel num_threads(static_cast<int>(a.threads)) reduction(| : failed)
    {
        const NoDenormals none;
        const typename P::Setting setting;
        const typename Gradients<P, T>::Space w(a, P::UNIT, P::PACKING);
        P *how = nullptr;
        failed = !w.ready;
        for (int64_t colour = 0; colour < colours * colours; ++colour) {
            const int64_t top = colour / colours, left = colour % colours;
            const int64_t rows = (a.rows - top + colours - 1) / colours, columns = (a.columns - left + colours - 1) / colours;
            const int64_t windows = rows > 0 && columns > 0 ? a.batch * rows * columns : 0;
#pragma omp for schedule(dynamic, 1)
            for (int64_t task = 0; task < g.parts * a.heads; ++task) {
                const int64_t head = task / g.parts, part = task % g.parts;
                float *dbias = g.dbias + (part * a.heads + head) * w.n * w.m;
                for (int64_t window = part; window < windows && w.ready; window += g.parts) {
                    const int64_t place = window % (rows * columns);
                    const Place at{window / (rows * columns), top + place / columns * colours,
                                   left + place % columns * colours, head};
                    differentiate<B>(how, g, at, w, dbias);
                }
            }
        }
    }
    return failed;
}

}  // namespace
