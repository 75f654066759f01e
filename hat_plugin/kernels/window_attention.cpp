// Attention within the windows of an image: softmax(q k^T * scale + bias + mask) v, one window and head at a time, and
// its gradients (window_gradient.hpp).
//
// A plain C interface without torch's headers, so that one build serves every version of torch and takes seconds.

#include "attend.hpp"
#include "tile_gradient.hpp"

namespace {

constexpr int64_t GROUP = 16;  // windows that go through all heads before the next ones: q, k and v stay in cache

// The task of a number. Windows of a group go through one head after the other.
Place task(const WindowAttention &a, int64_t number) {
    const int64_t start = number / (GROUP * a.heads) * GROUP, within = number - start * a.heads;
    const int64_t members = std::min(GROUP, a.batch * a.rows * a.columns - start);
    const int64_t window = start + within % members, place = window % (a.rows * a.columns);
    return {window / (a.rows * a.columns), place / a.columns, place % a.columns, within / members};
}

template <class P, class T, class B> void attend(const WindowAttention &a, const Place &at, const Workspace<T> &w) {
    locate(a, at, a.q, a.q_stride, false, w.q_row);
    locate(a, at, a.k, a.k_stride, true, w.k_row);
    locate(a, at, a.v, a.v_stride, true, w.v_row);
    locate(a, at, a.out, a.out_stride, false, w.out_row);
    const B *bias = static_cast<const B *>(a.bias) + at.head * w.n * w.m;
    attend_rows<P>(w, bias, mask_of<B>(a, at, w), static_cast<float>(a.scale), softmax_of(a, at, w));
}

// All windows and heads, in an order that finds the bias of a head and the tokens of a group of windows in cache.
template <class P, class T, class B> int run(const WindowAttention &a) {
    const int64_t tasks = a.batch * a.rows * a.columns * a.heads;
    int failed = 0;
#pragma omp parallel num_threads(static_cast<int>(a.threads)) reduction(| : failed)
    {
        const NoDenormals none;
        const typename P::Setting setting;
        const Workspace<T> w(a, P::UNIT, P::PACKING);
        failed = !w.ready;
#pragma omp for schedule(dynamic, 2)
        for (int64_t number = 0; number < tasks; ++number)
            if (w.ready) attend<P, T, B>(a, task(a, number), w);
    }
    return failed;
}

template <class P, class T> int run_bias(const WindowAttention &a) {
    return a.half_bias ? run<P, T, bf16>(a) : run<P, T, float>(a);
}

template <class P, class T> int run_gradient(const WindowGradient &g) {
    return g.forward.half_bias ? differentiate<P, T, bf16>(g) : differentiate<P, T, float>(g);
}

// How bf16 is multiplied: widened to fp32, by AVX512_BF16, or by AMX.
enum Way { WIDENED, PAIRS, TILES };

bool is_there(int way) {
#if defined(HAT_TILES)
    if (way == TILES) return tiles_are_there();
#endif
#if defined(__AVX512BF16__)
    if (way == PAIRS) return true;
#endif
    return way == WIDENED;
}

// On an Intel Xeon AVX512_BF16 had half of fp32's rate; AMD's processors are built to double it.
int best_way() {
#if defined(__x86_64__)
    if (is_there(PAIRS) && __builtin_cpu_is("amd")) return PAIRS;
#endif
    return is_there(TILES) ? TILES : WIDENED;
}

int &way() {
    static int chosen = best_way();
    return chosen;
}

// Whether LANES rows follow each other downwards, as those of the keys in a row of a window do.
inline bool falls(const int64_t *index) {
    const uint64_t first = static_cast<uint64_t>(index[0]);
    uint64_t apart = 0;
    for (uint64_t i = 0; i < LANES; ++i) apart |= static_cast<uint64_t>(index[i]) + i - first;
    return !apart;
}

// A head's biases, (heads, count), from a table (rows, heads) and the row of each pair of tokens. 1: no memory; 2: there
// is no such row.
template <class T>
int gather(const T *table, const int64_t *index, T *out, int64_t rows, int64_t heads, int64_t count, int64_t threads) {
    Arena memory;
    T *turned;  // (heads, rows), the last row first: what falls is then copied
    for (int pass = 0; pass < 2; ++pass) {
        memory.take(turned, heads * rows);
        if (!pass && !memory.allocate()) return 1;
    }
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t head = 0; head < heads; ++head) turned[head * rows + rows - 1 - row] = table[row * heads + head];
    int failed = 0;
#pragma omp parallel for num_threads(static_cast<int>(threads)) schedule(static) reduction(| : failed)
    for (int64_t first = 0; first < count; first += LANES) {
        const int64_t end = std::min<int64_t>(first + LANES, count);
        const bool copied = end - first == LANES && falls(index + first);
        bool there = true;
        for (int64_t i = first; i < end; i += copied ? LANES - 1 : 1) there &= index[i] >= 0 && index[i] < rows;
        failed |= there ? 0 : 2;
        if (!there) continue;
        for (int64_t head = 0; head < heads; ++head) {
            const T *from = turned + head * rows + rows - 1;
            if (copied)
                std::memcpy(out + head * count + first, from - index[first], LANES * sizeof(T));
            else
                for (int64_t i = first; i < end; ++i) out[head * count + i] = *(from - index[i]);
        }
    }
    return failed;
}

}  // namespace

// Each gives 0 if all went well, 1 if memory ran out. The sizes are the caller's to check.
extern "C" int hat_window_attention(const WindowAttention *a) {
    if (!a->half) return run_bias<Single, float>(*a);
#if defined(HAT_TILES)
    if (way() == TILES) return run_bias<Tiles, bf16>(*a);
#endif
#if defined(__AVX512BF16__)
    if (way() == PAIRS) return run_bias<Pair, bf16>(*a);
#endif
    return run_bias<Single, bf16>(*a);
}

extern "C" int hat_window_attention_gradient(const WindowGradient *g) {
    if (!g->forward.half) return run_gradient<Single, float>(*g);
#if defined(HAT_TILES)
    if (way() == TILES) return run_gradient<Tiles, bf16>(*g);
#endif
#if defined(__AVX512BF16__)
    if (way() == PAIRS) return run_gradient<Pair, bf16>(*g);
#endif
    return run_gradient<Single, bf16>(*g);
}

// The way in which bf16 is multiplied, a `Way`; from now on `wanted`, if this processor has it.
extern "C" int hat_bf16_way(int wanted) {
    if (is_there(wanted)) way() = wanted;
    return way();
}

// As `gather`, of bf16 if `half`, else of fp32.
extern "C" int hat_gather_bias(const void *table, const int64_t *index, void *out, int64_t rows, int64_t heads,
                               int64_t count, int64_t half, int64_t threads) {
    if (half)
        return gather(static_cast<const bf16 *>(table), index, static_cast<bf16 *>(out), rows, heads, count, threads);
    return gather(static_cast<const float *>(table), index, static_cast<float *>(out), rows, heads, count, threads);
}
