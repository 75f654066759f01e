// One window and head: what is packed, attended to and written, by any way of multiplying.

#pragma once

#include "tiles.hpp"

namespace {

// What one thread needs; filled anew for each window and head.
template <class T> struct Workspace : Sizes {
    uint32_t *q, *k, *v, *few;  // packed as units, panels and values; a few tokens
    float *weights;             // of a few queries, (packing.queries, keys); logits first
    float *sums;                // for tiles
    T **q_row, **k_row, **v_row, **out_row;
    bool ready;

    Workspace(const WindowAttention &a, int unit, const Packing &how) : Sizes(a, unit, how), packing(how) {
        lay_out();
        ready = arena.allocate();
        if (ready) lay_out();
    }

  private:
    const Packing packing;
    Arena arena;
    void lay_out() {
        arena.take(q, broadcast());
        arena.take(k, panels());
        arena.take(v, keys * values);
        arena.take(few, Sizes::few());
        arena.take(weights, packing.queries * row());
        arena.take(sums, packing.queries * packing.keys);
        for (T ***rows : {&q_row, &out_row}) arena.take(*rows, n);
        for (T ***rows : {&k_row, &v_row}) arena.take(*rows, m);
    }
};

// Queries from `first` on, as many as P packs together. `softmax`: null, or to be filled.
template <class P, class T, class B>
void attend_queries(P *, const Workspace<T> &w, int64_t first, const B *bias, const B *mask, float scale,
                    Softmax *softmax) {
    float inverse[ROWS];
    logits<P>(w, w.q, w.k, first, bias, mask, scale, w.weights);
    for (int r = 0; r < ROWS; ++r) {
        float *row = w.weights + r * w.keys;
        const float peak = peak_of(row, w.keys), sum = exponentials<P>(row, w.keys, peak);
        inverse[r] = 1.0f / sum;
        if (softmax && first + r < w.n) softmax[first + r] = {peak, sum};
    }
    all_sums<P>(w, first, reinterpret_cast<const uint32_t *>(w.weights), w.v, inverse, w.out_row);
}

#if defined(HAT_TILES)
template <class T, class B>
void attend_queries(Tiles *, const Workspace<T> &w, int64_t first, const B *bias, const B *mask, float scale,
                    Softmax *softmax) {
    attend_tiles(w, w.q, w.k, w.v, first, bias, mask, scale, w.weights, w.sums, softmax, w.out_row);
}
#endif

// A window and head whose tokens are at the workspace's rows. `bias`: the head's; `softmax`: null, or to be filled.
template <class P, class T, class B>
void attend_rows(const Workspace<T> &w, const B *bias, const B *mask, float scale, Softmax *softmax) {
    pack_units<P>(w, w.q_row, w.n, w.queries, w.q);
    P::scale(w.q, w.n * w.depth, scale);
    pack_panels<P>(w, w.k_row, w.m, w.keys, w.k, w.few);
    pack_values<P>(w, w.v_row, w.m, w.keys, w.v);
    P *how = nullptr;
    for (int64_t first = 0; first < w.n; first += P::PACKING.queries)
        attend_queries(how, w, first, bias, mask, scale, softmax);
}

}  // namespace
