// What the gradients of attention share, whichever way they are multiplied: a window's tokens, and where their gradients go.

#pragma once

#include "windows.hpp"

// The caller fills it. Where windows of keys overlap, dk and dv are fp32 whatever the tensors are, and are added to.
struct WindowGradient {
    WindowAttention forward;  // as it ran, `out` and `softmax` as it left them
    const void *grad;         // of `out`
    void *dq, *dk, *dv;
    int64_t grad_stride[4], dq_stride[4], dk_stride[4], dv_stride[4];
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

// A window's tokens, where they and their gradients lie, and the memory of a thread that differentiates.
template <class T> struct GradientTokens : Sizes {
    uint32_t *q, *g, *k, *v;  // queries and output gradients as units, keys and values as panels
    uint32_t *k_value, *few;  // keys packed as values; a few tokens
    float *top, *inverse;     // of each query, its largest logit in powers of two, 1 / the sum of its exponentials
    float *mean;              // of its slopes under its weights: sum(dO O)
    T **q_row, **k_row, **v_row, **g_row, **out_row, **dq_row;
    void **dk_row, **dv_row;

    using Sizes::Sizes;

  protected:
    Arena arena;
    void take_tokens() {
        for (uint32_t **part : {&q, &g}) arena.take(*part, broadcast());
        for (uint32_t **part : {&k, &v}) arena.take(*part, panels());
        arena.take(k_value, keys * values);
        arena.take(few, Sizes::few());
        for (float **part : {&top, &inverse, &mean}) arena.take(*part, queries);
        for (T ***rows : {&q_row, &g_row, &out_row, &dq_row}) arena.take(*rows, n);
        for (T ***rows : {&k_row, &v_row}) arena.take(*rows, m);
        for (void ***rows : {&dk_row, &dv_row}) arena.take(*rows, m);
    }
};

// A query's logits of LANES keys to its weights, by the very steps of the forward pass.
template <class P> inline Floats weights_of(Floats logits, float top, float inverse) {
    return P::power(logits * LOG2_E - top) * inverse;
}

// Ask for a row's memory before it is written.
inline void fetch_to_write(void *row, int64_t bytes) {
    char *from = static_cast<char *>(row);
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(from + at, 1);
    __builtin_prefetch(from + bytes - 1, 1);
}

// The gradients of a window's keys or values, of which a channel's PANEL keys begin `stride` after the channel before and
// a panel's `panel` after the panel before, to where they belong; those of keys beyond the border to nowhere.
template <class T>
void deliver(const Sizes &s, const float *sums, int64_t stride, int64_t panel, float factor, void *const *rows, bool add) {
    const int64_t row_bytes = s.width * static_cast<int64_t>(add ? sizeof(float) : sizeof(T));
    for (int64_t j = 0; j < s.m; j += LANES) {
        for (int64_t i = j + LANES; i < std::min(j + 2 * LANES, s.m); ++i)
            if (rows[i]) fetch_to_write(rows[i], row_bytes);
        for (int64_t c = 0; c < s.width; c += LANES) {
            const int64_t count = std::min<int64_t>(LANES, s.width - c);
            const float *from = sums + j / PANEL * panel + j % PANEL + c * stride;
            Bits block[LANES];
            for (int64_t i = 0; i < LANES; ++i) block[i] = i < count ? read<Bits>(from + i * stride) : Bits{};
            turn(block);
            for (int64_t i = 0; i < std::min<int64_t>(LANES, s.m - j); ++i) {
                if (!rows[j + i]) continue;
                const Floats value = (Floats)block[i] * factor;
                float *sum = static_cast<float *>(rows[j + i]) + c;
                if (add) store(sum, load(sum, count) + value, count);
                else store(static_cast<T *>(rows[j + i]) + c, value, count);
            }
        }
    }
}

// Find a window's tokens and where their gradients belong, and pack them; values of queries and gradients aside.
template <class P, class T> void pack_tokens(const WindowGradient &g, const Place &at, const GradientTokens<T> &w) {
    const WindowAttention &a = g.forward;
    locate(a, at, a.q, a.q_stride, false, w.q_row);
    locate(a, at, a.k, a.k_stride, true, w.k_row);
    locate(a, at, a.v, a.v_stride, true, w.v_row);
    locate(a, at, a.out, a.out_stride, false, w.out_row);
    locate(a, at, g.grad, g.grad_stride, false, w.g_row);
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
    const Softmax *softmax = softmax_of(a, at, w);
    for (int64_t i = 0; i < w.queries; ++i) {
        w.top[i] = i < w.n ? softmax[i].peak * LOG2_E : std::numeric_limits<float>::max();
        w.inverse[i] = i < w.n ? 1.0f / softmax[i].sum : 0.0f;
        w.mean[i] = 0;
        if (i >= w.n) continue;
        fetch<T>(w.out_row, i + AHEAD, w.n, w.width);
        Floats sum{};
        for (int64_t c = 0; c < w.width; c += LANES)
            sum += load(w.g_row[i] + c, w.width - c) * load(w.out_row[i] + c, w.width - c);
        w.mean[i] = total(sum);
    }
}

}  // namespace
