// The gradients of attention within windows: for q, k and v, and for the bias, summed over windows.
//
// Weights are computed anew, a few queries at a time, so that nothing of (windows, heads, N, M) is ever kept. With
// weights P, their gradient dP = dO v^T and the logits' gradient dS = P (dP - sum(P dP)):
// dq = scale dS k, dk = scale dS^T q, dv = P^T dO, dbias = dS.
//
// Source: recomputation as in "FlashAttention" (NeurIPS 2022), section 3.1; a window fits into the cache whole.

#pragma once

#include "windows.hpp"

// The caller fills it. Where windows of keys overlap, dk and dv are fp32 whatever the tensors are, and are added to.
struct WindowGradient {
    WindowAttention forward;  // `out` is the gradient of the output, read
    void *dq, *dk, *dv;
    int64_t dq_stride[4], dk_stride[4], dv_stride[4];
    float *dbias;    // (parts, heads, N, M), zeros
    int64_t parts;   // of the windows; their number decides in which order the bias's gradient is summed
};

namespace {

// A tensor that gradients of keys go to, and where its rows will be.
struct Target {
    void *tensor;
    const int64_t *stride;
    void **rows;
};

constexpr int KEYS = LANES == 16 ? 8 : 4;  // keys whose gradients are in registers at a time

// A window's tokens, where they and their gradients lie, and the memory of a thread that differentiates.
template <class T> struct GradientTokens : Sizes {
    uint32_t *q, *g, *k, *v;  // queries and output gradients as units, keys and values as panels
    uint32_t *k_value, *few;  // keys packed as values; a few tokens
    T **q_row, **k_row, **v_row, **g_row, **dq_row;
    void **dk_row, **dv_row;

    using Sizes::Sizes;

  protected:
    Arena arena;
    void take_tokens() {
        for (uint32_t **part : {&q, &g}) arena.take(*part, broadcast());
        for (uint32_t **part : {&k, &v}) arena.take(*part, panels());
        arena.take(k_value, keys * values);
        arena.take(few, Sizes::few());
        for (T ***rows : {&q_row, &g_row, &dq_row}) arena.take(*rows, n);
        for (T ***rows : {&k_row, &v_row}) arena.take(*rows, m);
        for (void ***rows : {&dk_row, &dv_row}) arena.take(*rows, m);
    }
};

// What one thread needs to differentiate; filled anew for each window and head.
template <class T> struct GradientSpace : GradientTokens<T> {
    uint32_t *q_value, *g_value;  // packed as values
    float *weights, *slopes;      // (ROWS, keys): P and dS, in the end as units along queries
    uint32_t *by_key;             // (ROWS, keys): dS as units along keys
    float *dk, *dv;               // (keys, values)
    bool ready;

    GradientSpace(const WindowAttention &a, int unit, const Packing &packing) : GradientTokens<T>(a, unit, packing) {
        lay_out();
        ready = this->arena.allocate();
        if (ready) lay_out();
    }

  private:
    void lay_out() {
        const int64_t keys = this->keys, values = this->values;
        this->take_tokens();
        for (uint32_t **part : {&q_value, &g_value}) this->arena.take(*part, this->queries * values);
        for (float **part : {&weights, &slopes}) this->arena.take(*part, ROWS * keys);
        this->arena.take(by_key, ROWS * keys);
        for (float **part : {&dk, &dv}) this->arena.take(*part, keys * values);
    }
};

// dP of ROWS queries to `slopes`, and its mean under the weights.
template <class P, class T>
void weight_gradients(const GradientSpace<T> &w, int64_t first, const float *inverse, float *mean) {
    Floats dot[ROWS] = {};
    for (int64_t j = 0; j < w.keys; j += PANEL)
        products<P>(
            w.g + first * w.depth, w.v + j * w.depth, w.depth, [](int, int) { return Floats{}; },
            [&](int r, int side, Floats sum) {
                const int64_t at = r * w.keys + j + side * LANES;
                write(w.slopes + at, sum);
                dot[r] += sum * read<Floats>(w.weights + at);
            });
    for (int r = 0; r < ROWS; ++r) mean[r] = total(dot[r]) * inverse[r];
}

// P and dS of ROWS queries in the orders of what follows; dS is added to the bias's gradient. In place: the units of
// two queries are written where the first of them, or one before it, was read.
template <class P, class T>
void logit_gradients(const GradientSpace<T> &w, int64_t first, const float *inverse, const float *mean, float *dbias) {
    uint32_t *p_units = reinterpret_cast<uint32_t *>(w.weights), *s_units = reinterpret_cast<uint32_t *>(w.slopes);
    for (int64_t j = 0; j < w.keys; j += PANEL)
        for (int r = 0; r < ROWS; r += 2) {
            Floats p[2][2], slope[2][2];
            for (int o = 0; o < 2; ++o) {
                const int64_t query = first + r + o;
                for (int side = 0; side < 2; ++side) {
                    const int64_t column = j + side * LANES, at = (r + o) * w.keys + column, count = w.m - column;
                    p[o][side] = read<Floats>(w.weights + at) * inverse[r + o];
                    slope[o][side] = p[o][side] * (read<Floats>(w.slopes + at) - mean[r + o]);
                    if (query >= w.n || count <= 0) continue;
                    float *to = dbias + query * w.m + column;
                    store(to, load(to, count) + slope[o][side], count);
                }
                if (P::UNIT > 1) P::put_weights(w.by_key + (r + o) * w.keys + j / P::UNIT, slope[o][0], slope[o][1]);
            }
            for (int side = 0; side < 2; ++side) {
                const int64_t at = r / P::UNIT * w.keys + j + side * LANES;
                P::put_rows(p_units + at, w.keys, p[0][side], p[1][side]);
                P::put_rows(s_units + at, w.keys, slope[0][side], slope[1][side]);
            }
        }
}

// To the sums of each key, add its ROWS weights (or slopes) times the queries' tokens: VECTORS vectors of channels.
template <class P, int VECTORS>
void spread(const Sizes &s, const float *weights, const uint32_t *tokens, float *result) {
    const uint32_t *units = reinterpret_cast<const uint32_t *>(weights);
    for (int64_t j = 0; j < s.keys; j += KEYS) {
        Floats sum[KEYS][VECTORS];
#pragma GCC unroll 8
        for (int t = 0; t < KEYS; ++t)
#pragma GCC unroll 2
            for (int c = 0; c < VECTORS; ++c) sum[t][c] = read<Floats>(result + (j + t) * s.values + c * LANES);
#pragma GCC unroll 8
        for (int u = 0; u < ROWS / P::UNIT; ++u) {
            Bits token[VECTORS];
            for (int c = 0; c < VECTORS; ++c) token[c] = read<Bits>(tokens + u * s.values + c * LANES);
#pragma GCC unroll 8
            for (int t = 0; t < KEYS; ++t)
#pragma GCC unroll 2
                for (int c = 0; c < VECTORS; ++c) sum[t][c] = P::fma(sum[t][c], units[u * s.keys + j + t], token[c]);
        }
#pragma GCC unroll 8
        for (int t = 0; t < KEYS; ++t)
#pragma GCC unroll 2
            for (int c = 0; c < VECTORS; ++c) write(result + (j + t) * s.values + c * LANES, sum[t][c]);
    }
}

template <class P> void spread_all(const Sizes &s, const float *weights, const uint32_t *tokens, float *result) {
    int64_t lane = 0;
    for (; lane + 2 * LANES <= s.values; lane += 2 * LANES) spread<P, 2>(s, weights, tokens + lane, result + lane);
    if (lane < s.values) spread<P, 1>(s, weights, tokens + lane, result + lane);
}

// The gradients of a window's keys or values to where they belong; those of keys beyond the border to nowhere.
template <class T> void deliver(const Sizes &s, const float *sums, float factor, void *const *rows, bool add) {
    for (int64_t j = 0; j < s.m; ++j) {
        if (!rows[j]) continue;
        for (int64_t c = 0; c < s.width; c += LANES) {
            const Floats value = read<Floats>(sums + j * s.values + c) * factor;
            const int64_t count = s.width - c;
            float *sum = static_cast<float *>(rows[j]) + c;
            if (add) store(sum, load(sum, count) + value, count);
            else store(static_cast<T *>(rows[j]) + c, value, count);
        }
    }
}

// Find a window's tokens and where their gradients belong, and pack them; values of queries and gradients aside.
template <class P, class T> void pack_tokens(const WindowGradient &g, const Place &at, const GradientTokens<T> &w) {
    const WindowAttention &a = g.forward;
    locate(a, at, a.q, a.q_stride, false, w.q_row);
    locate(a, at, a.k, a.k_stride, true, w.k_row);
    locate(a, at, a.v, a.v_stride, true, w.v_row);
    locate(a, at, a.out, a.out_stride, false, w.g_row);
    locate(a, at, g.dq, g.dq_stride, false, w.dq_row);
    for (auto [tensor, stride, rows] : {Target{g.dk, g.dk_stride, w.dk_row}, Target{g.dv, g.dv_stride, w.dv_row}}) {
        if (a.margin > 0) locate(a, at, tensor, stride, true, reinterpret_cast<float **>(rows));
        else locate(a, at, tensor, stride, true, reinterpret_cast<T **>(rows));
    }
    pack_units<P>(w, w.q_row, w.n, w.queries, w.q);
    pack_units<P>(w, w.g_row, w.n, w.queries, w.g);
    pack_panels<P>(w, w.k_row, w.m, w.keys, w.k, w.few);
    pack_panels<P>(w, w.v_row, w.m, w.keys, w.v, w.few);
    pack_values<P>(w, w.k_row, w.m, w.keys, w.k_value);
}

// What a thread needs for a way of multiplying.
template <class P, class T> struct Gradients {
    typedef GradientSpace<T> Space;
};

template <class B, class P, class T>
void differentiate(P *, const WindowGradient &g, const Place &at, const GradientSpace<T> &w, float *dbias) {
    const WindowAttention &a = g.forward;
    const bool add = a.margin > 0;
    pack_tokens<P>(g, at, w);
    P::scale(w.q, w.n * w.depth, static_cast<float>(a.scale));
    pack_values<P>(w, w.q_row, w.n, w.queries, w.q_value);
    pack_values<P>(w, w.g_row, w.n, w.queries, w.g_value);
    std::memset(w.dk, 0, w.keys * w.values * sizeof(float));
    std::memset(w.dv, 0, w.keys * w.values * sizeof(float));
    const B *bias = static_cast<const B *>(a.bias) + at.head * w.n * w.m;
    const B *mask = mask_of<B>(a, at, w);
    const float scale = static_cast<float>(a.scale);
    const uint32_t *slopes_by_key = P::UNIT > 1 ? w.by_key : reinterpret_cast<const uint32_t *>(w.slopes);
    for (int64_t first = 0; first < w.n; first += ROWS) {
        float inverse[ROWS], mean[ROWS], factor[ROWS];
        logits<P>(w, w.q, w.k, first, bias, mask, scale, w.weights);
        for (int r = 0; r < ROWS; ++r) {
            const float sum = exponentials<Single>(w.weights + r * w.keys, w.keys);
            inverse[r] = first + r < w.n ? 1.0f / sum : 0.0f;
            factor[r] = scale;
        }
        weight_gradients<P>(w, first, inverse, mean);
        logit_gradients<P>(w, first, inverse, mean, dbias);
        all_sums<P>(w, first, slopes_by_key, w.k_value, factor, w.dq_row);
        spread_all<P>(w, w.slopes, w.q_value + first / P::UNIT * w.values, w.dk);
        spread_all<P>(w, w.weights, w.g_value + first / P::UNIT * w.values, w.dv);
    }
    deliver<T>(w, w.dk, scale, w.dk_row, add);
    deliver<T>(w, w.dv, 1.0f, w.dv_row, add);
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
