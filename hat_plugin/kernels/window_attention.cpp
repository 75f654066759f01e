// Attention within the windows of an image: softmax(q k^T * scale + bias + mask) v, one window and head at a time.
//
// A plain C interface without torch's headers, so that one build serves every version of torch and takes seconds.
// Logits and weights of a few queries live in the first-level cache and never reach memory; the bias and the mask are
// added in registers; softmax is in fp32 whatever the tensors are; shift, windows and overlap are a matter of
// addresses, so that no image is rolled, cut or padded before.

#include "vectors.hpp"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>

// The caller fills it: library.py has the same fields in the same order, and a build is named by this file's content.
// Strides are in elements; the last dimension of every tensor has stride 1.
struct WindowAttention {
    const void *q, *k, *v, *bias, *mask;  // mask: null, or (N, M), or (3, N, M) as mask_mode says
    void *out;
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
constexpr int64_t GROUP = 16;  // windows that go through all heads before the next ones: q, k and v stay in cache

inline int64_t up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// What one thread needs; filled anew for each window and head.
struct Workspace {
    int64_t n, m, keys, depth, values;  // keys: m in whole panels; depth: units of a query; values: lanes of a value
    uint32_t *q;       // (n + ROWS, depth)
    uint32_t *k;       // (keys / PANEL, depth, PANEL)
    uint32_t *v;       // (keys / UNIT, values)
    uint32_t *weights; // (ROWS, keys); logits first
    uint32_t *row;     // one row of units
    void **q_row, **k_row, **v_row, **out_row;  // where each token's row begins; null for a key beyond the border
    char *memory;

    Workspace(const WindowAttention &a, int unit) {
        n = a.window_height * a.window_width;
        m = a.key_height * a.key_width;
        keys = up(m, PANEL);
        depth = (a.width + unit - 1) / unit;
        values = up(a.width, LANES);
        const int64_t sizes[] = {(n + ROWS) * depth + PANEL, keys * depth, keys * values, ROWS * keys,
                                 up(a.width, PANEL) + PANEL};
        int64_t units = (2 * n + 2 * m) * static_cast<int64_t>(sizeof(void *) / 4) + 16;
        for (int64_t size : sizes) units += up(size, 16);
        memory = static_cast<char *>(std::aligned_alloc(64, up(units * 4, 64)));
        if (!memory) return;
        uint32_t *next = reinterpret_cast<uint32_t *>(memory);
        uint32_t **parts[] = {&q, &k, &v, &weights, &row};
        for (int part = 0; part < 5; ++part) {
            *parts[part] = next;
            next += up(sizes[part], 16);
        }
        q_row = reinterpret_cast<void **>(next);
        out_row = q_row + n;
        k_row = out_row + n;
        v_row = k_row + m;
    }
    ~Workspace() { std::free(memory); }
    Workspace(const Workspace &) = delete;
    Workspace &operator=(const Workspace &) = delete;
};

// A position that may be less than one image off, brought back.
inline int64_t wrapped(int64_t at, int64_t size) { return at < 0 ? at + size : at >= size ? at - size : at; }

// The window and head that a task is about. Windows of a group go through one head after the other.
struct Task {
    int64_t image, row, column, head;

    Task(const WindowAttention &a, int64_t number) {
        const int64_t start = number / (GROUP * a.heads) * GROUP, within = number - start * a.heads;
        const int64_t members = std::min(GROUP, a.batch * a.rows * a.columns - start);
        const int64_t window = start + within % members, place = window % (a.rows * a.columns);
        head = within / members;
        image = window / (a.rows * a.columns);
        row = place / a.columns;
        column = place % a.columns;
    }
};

// Where the rows of a window's tokens begin in a tensor; null for those beyond the image.
template <class T>
void locate(const WindowAttention &a, const Task &task, const void *tensor, const int64_t *stride, bool keys, T **rows) {
    const int64_t image_height = keys ? a.height_k : a.height_q, image_width = keys ? a.width_k : a.width_q;
    const int64_t height = keys ? a.key_height : a.window_height, width = keys ? a.key_width : a.window_width;
    const int64_t top = task.row * a.window_height + a.shift - (keys ? a.margin : 0);
    const int64_t left = task.column * a.window_width + a.shift - (keys ? a.margin : 0);
    T *base = static_cast<T *>(const_cast<void *>(tensor)) + task.image * stride[0] + task.head * stride[3];
    for (int64_t y = top; y < top + height; ++y) {
        const int64_t in_y = a.shift ? wrapped(y, image_height) : y;
        for (int64_t x = left; x < left + width; ++x) {
            const int64_t in_x = a.shift ? wrapped(x, image_width) : x;
            const bool inside = in_y >= 0 && in_y < image_height && in_x >= 0 && in_x < image_width;
            *rows++ = inside ? base + in_y * stride[1] + in_x * stride[2] : nullptr;
        }
    }
}

// Ask for a row of an image before it is needed: rows lie too far apart for the processor to guess the next one.
template <class T> inline void fetch(void *const *rows, int64_t at, int64_t count, int64_t width) {
    if (at >= count || !rows[at]) return;
    const T *row = static_cast<const T *>(rows[at]);
    for (int64_t c = 0; c < width; c += 64 / sizeof(T)) __builtin_prefetch(row + c);
    __builtin_prefetch(row + width - 1);
}

// Copy a window's tokens into the order in which they are multiplied.
template <class P, class T> void pack(int64_t width, const Workspace &w) {
    static const T nothing[2 * LANES] = {};
    P *how = nullptr;
    for (int64_t i = 0; i < w.n; ++i) {
        fetch<T>(w.q_row, i + AHEAD, w.n, width);
        row_units(how, static_cast<const T *>(w.q_row[i]), width, w.q + i * w.depth);  // the next row clears the excess
    }
    std::memset(w.q + w.n * w.depth, 0, ROWS * w.depth * 4);
    for (int64_t j = 0; j < w.keys; ++j) {
        uint32_t *panel = w.k + j / PANEL * PANEL * w.depth + j % PANEL;
        fetch<T>(w.k_row, j + AHEAD, w.m, width);
        if (j < w.m && w.k_row[j]) {
            row_units(how, static_cast<const T *>(w.k_row[j]), width, w.row);
            for (int64_t p = 0; p < w.depth; ++p) panel[p * PANEL] = w.row[p];
        } else {
            for (int64_t p = 0; p < w.depth; ++p) panel[p * PANEL] = 0;
        }
    }
    for (int64_t j = 0; j < w.keys; j += P::UNIT) {
        uint32_t *to = w.v + j / P::UNIT * w.values;
        const T *rows[P::UNIT];
        for (int u = 0; u < P::UNIT; ++u) {
            fetch<T>(w.v_row, j + u + AHEAD, w.m, width);
            rows[u] = j + u < w.m ? static_cast<const T *>(w.v_row[j + u]) : nullptr;
        }
        for (int64_t c = 0; c < w.values; c += LANES) {
            const T *first = rows[0] ? rows[0] + c : nothing, *second = rows[P::UNIT - 1] ? rows[P::UNIT - 1] + c : nothing;
            write(to + c, paired(how, first, second, width - c));
        }
    }
}

// Logits of ROWS queries, in fp32, and the largest of each. Keys that only fill a panel get -inf.
template <class P, class B>
void logits(const Workspace &w, int64_t first, const B *bias, const B *mask, float scale, float *peak) {
    Floats most[ROWS];
    for (int r = 0; r < ROWS; ++r) most[r] = all(-std::numeric_limits<float>::infinity());
    const uint32_t *q = w.q + first * w.depth;
    for (int64_t j = 0; j < w.keys; j += PANEL) {
        const uint32_t *panel = w.k + j * w.depth;
        Floats sum[ROWS][2] = {};
        for (int64_t p = 0; p < w.depth; ++p) {
            const Bits left = read<Bits>(panel + p * PANEL), right = read<Bits>(panel + p * PANEL + LANES);
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; ++r) {
                sum[r][0] = P::fma(sum[r][0], q[r * w.depth + p], left);
                sum[r][1] = P::fma(sum[r][1], q[r * w.depth + p], right);
            }
        }
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) {
            const int64_t at = std::min(first + r, w.n - 1) * w.m;
#pragma GCC unroll 2
            for (int side = 0; side < 2; ++side) {
                const int64_t column = j + side * LANES, count = w.m - column;
                Floats value = all(-std::numeric_limits<float>::infinity());
                if (count > 0) {
                    value = sum[r][side] * scale + load(bias + at + column, count);
                    if (mask) value += load(mask + at + column, count);
                }
                if (count > 0 && count < LANES)
                    for (int lane = count; lane < LANES; ++lane) value[lane] = -std::numeric_limits<float>::infinity();
                most[r] = value > most[r] ? value : most[r];
                write(w.weights + r * w.keys + column, value);
            }
        }
    }
    for (int r = 0; r < ROWS; ++r) peak[r] = largest(most[r]);
}

// Logits to weights, not yet divided by their sum, which is returned.
template <class P> float exponentials(uint32_t *row, int64_t keys, float peak) {
    constexpr float LOG2_E = 1.44269504088896340736f;
    Floats sum[2] = {};
    for (int64_t j = 0; j < keys; j += PANEL) {
        const Floats first = power_of_two((read<Floats>(row + j) - peak) * LOG2_E);
        const Floats second = power_of_two((read<Floats>(row + j + LANES) - peak) * LOG2_E);
        sum[0] += first;
        sum[1] += second;
        P::put_weights(row + j / P::UNIT, first, second);
    }
    return total(sum[0] + sum[1]);
}

// Weighted means of values: VECTORS vectors of channels from `lane` on, for ROWS queries.
template <class P, int VECTORS, class T>
void means(const Workspace &w, int64_t first, int64_t lane, const float *inverse, int64_t width, T *const *out) {
    Floats sum[ROWS][VECTORS] = {};
    const uint32_t *v = w.v + lane;
    for (int64_t j = 0; j < w.keys / P::UNIT; ++j, v += w.values) {
        Bits value[VECTORS];
        for (int c = 0; c < VECTORS; ++c) value[c] = read<Bits>(v + c * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
            for (int c = 0; c < VECTORS; ++c) sum[r][c] = P::fma(sum[r][c], w.weights[r * w.keys + j], value[c]);
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
        if (first + r >= w.n) continue;
#pragma GCC unroll 2
        for (int c = 0; c < VECTORS; ++c) {
            const int64_t at = lane + c * LANES;
            store(out[first + r] + at, sum[r][c] * inverse[r], width - at);
        }
    }
}

template <class P, class T, class B> void attend(const WindowAttention &a, const Task &task, const Workspace &w) {
    T **out = reinterpret_cast<T **>(w.out_row);
    locate(a, task, a.q, a.q_stride, false, reinterpret_cast<T **>(w.q_row));
    locate(a, task, a.k, a.k_stride, true, reinterpret_cast<T **>(w.k_row));
    locate(a, task, a.v, a.v_stride, true, reinterpret_cast<T **>(w.v_row));
    locate(a, task, a.out, a.out_stride, false, out);
    pack<P, T>(a.width, w);
    const B *bias = static_cast<const B *>(a.bias) + task.head * w.n * w.m;
    const bool last_row = task.row == a.rows - 1, last_column = task.column == a.columns - 1;
    const B *mask = nullptr;
    if (a.mask_mode == 1) mask = static_cast<const B *>(a.mask);
    if (a.mask_mode == 2 && (last_row || last_column))
        mask = static_cast<const B *>(a.mask) + (last_row && last_column ? 2 : last_row ? 0 : 1) * w.n * w.m;
    for (int64_t first = 0; first < w.n; first += ROWS) {
        float peak[ROWS], inverse[ROWS];
        logits<P, B>(w, first, bias, mask, static_cast<float>(a.scale), peak);
        for (int r = 0; r < ROWS; ++r) inverse[r] = 1.0f / exponentials<P>(w.weights + r * w.keys, w.keys, peak[r]);
        int64_t lane = 0;
        for (; lane + 2 * LANES <= w.values; lane += 2 * LANES) means<P, 2, T>(w, first, lane, inverse, a.width, out);
        if (lane < w.values) means<P, 1, T>(w, first, lane, inverse, a.width, out);
    }
}

// All windows and heads, in an order that finds the bias of a head and the tokens of a group of windows in cache.
template <class P, class T, class B> int run(const WindowAttention &a) {
    const int64_t tasks = a.batch * a.rows * a.columns * a.heads;
    int failed = 0;
#pragma omp parallel num_threads(static_cast<int>(a.threads)) reduction(| : failed)
    {
        const Workspace w(a, P::UNIT);
        failed = !w.memory;
#pragma omp for schedule(dynamic, 2)
        for (int64_t number = 0; number < tasks; ++number)
            if (w.memory) attend<P, T, B>(a, Task(a, number), w);
    }
    return failed;
}

template <class P, class T> int run_bias(const WindowAttention &a) {
    return a.half_bias ? run<P, T, bf16>(a) : run<P, T, float>(a);
}

}  // namespace

// 0 if all went well, 1 if memory ran out. The sizes are the caller's to check.
extern "C" int hat_window_attention(const WindowAttention *arguments) {
    const WindowAttention &a = *arguments;
    if (!a.half) return run_bias<Single, float>(a);
#if defined(__AVX512BF16__)
    return run_bias<Pair, bf16>(a);
#else
    return run_bias<Single, bf16>(a);
#endif
}

// Whether OpenMP is in, and bf16 products of the processor: bits 0 and 1.
extern "C" int hat_window_attention_features() {
    int features = 0;
#if defined(_OPENMP)
    features |= 1;
#endif
#if defined(__AVX512BF16__)
    features |= 2;
#endif
    return features;
}
