// Gradients of an MLP over standardised pixels, x + down(GELU(up(standardise(x)))), in fp32, from x alone.
//
// A block of pixels goes through all of it while it is in the cache: what lies between the layers is computed anew and
// never written to memory. A normalisation's scale and offset are the caller's to fold into `up`.

#pragma once

#include "product.hpp"

// library.py has the same fields in the same order. All are contiguous.
struct FeedForwardGradient {
    const float *x, *grad;             // (pixels, channels); grad: of the result
    const float *up, *up_bias, *down;  // (hidden, channels), (hidden), (channels, hidden)
    float *dx;                         // (pixels, channels)
    float *dup, *dup_bias, *ddown, *ddown_bias;  // overwritten
    int64_t pixels, channels, hidden;
    int64_t threads;
    double eps;                 // added to the variance
};

namespace {

// Rows of the working memory are an odd number of vectors long, so that they do not meet in the same sets of the cache.
constexpr int64_t row_length(int64_t channels) { return (up(channels, LANES) / LANES | 1) * LANES; }

// Sums over vectors of `parts` rows, `stride` apart.
inline void add_parts(const float *from, int64_t parts, int64_t stride, int64_t count, float *to) {
    for (int64_t c = 0; c < count; c += LANES) {
        Floats sum = {};
        for (int64_t part = 0; part < parts; ++part) sum += read<Floats>(from + part * stride + c);
        store(to + c, sum, count - c);
    }
}

// A weight's gradient while it is summed up: (panels of inputs, groups of outputs, ROWS, PANEL).
struct WeightSums {
    int64_t outputs, inputs, groups, panels;

    WeightSums(int64_t outputs, int64_t inputs)
        : outputs(outputs), inputs(inputs), groups((outputs + ROWS - 1) / ROWS), panels((inputs + PANEL - 1) / PANEL) {}
    int64_t size() const { return groups * panels * ROWS * PANEL; }
    void add(const float *grad, int64_t grad_row, const float *x, int64_t x_row, int64_t count, float *sums) const {
        for (int64_t p = 0; p < panels; ++p)
            for (int64_t g = 0; g < groups; ++g, sums += ROWS * PANEL)
                add_outer(grad + g * ROWS, grad_row, x + p * PANEL, x_row, count, sums);
    }
    // One output's gradient, of all parts together.
    void finish(const float *sums, int64_t parts, int64_t stride, int64_t output, float *to) const {
        const float *from = sums + output * PANEL;
        for (int64_t c = 0; c < inputs; c += PANEL, from += groups * ROWS * PANEL)
            add_parts(from, parts, stride, std::min<int64_t>(PANEL, inputs - c), to + c);
    }
};

// What one thread needs: maps of a block, rows of channels or of what is hidden. Whole panels may be read of any row.
struct FeedForwardRoom {
    int64_t row, hidden_row;
    float *x, *grad, *dx;    // x standardised
    float *hidden, *slope;   // slope: the GELU's, then the gradient before it
    float *factor;           // what standardising multiplied by
    const float **x_rows, **grad_rows, **slope_rows;
    bool ready;

    explicit FeedForwardRoom(const FeedForwardGradient &g) : row(row_length(g.channels)), hidden_row(row_length(g.hidden)) {
        lay_out();
        ready = arena.allocate();
        if (!ready) return;
        lay_out();
        for (int64_t i = 0; i < BLOCK; ++i) {
            x_rows[i] = x + i * row;
            grad_rows[i] = grad + i * row;
            slope_rows[i] = slope + i * hidden_row;
        }
    }

  private:
    Arena arena;
    void lay_out() {
        for (float **map : {&x, &grad, &dx}) arena.take(*map, BLOCK * row + PANEL);
        for (float **map : {&hidden, &slope}) arena.take(*map, BLOCK * hidden_row + PANEL);
        arena.take(factor, BLOCK);
        for (const float ***rows : {&x_rows, &grad_rows, &slope_rows}) arena.take(*rows, BLOCK);
    }
};

// The layers as products: forward up, and backward through down and up; and the sums for the gradients of both.
struct FeedForwardProducts {
    Product up, from_down, from_up;
    WeightSums up_sums, down_sums;

    explicit FeedForwardProducts(const FeedForwardGradient &g)
        : up(layer(g.up, g.channels, g.hidden, g.channels, 1)), from_down(layer(g.down, g.channels, g.hidden, 1, g.hidden)),
          from_up(layer(g.up, g.hidden, g.channels, 1, g.channels)), up_sums(g.hidden, g.channels),
          down_sums(g.channels, g.hidden) {}

  private:
    static Product layer(const float *weight, int64_t inputs, int64_t outputs, int64_t of_output, int64_t of_input) {
        Product a{};
        a.weight = weight;
        a.inputs = inputs;
        a.outputs = outputs;
        a.weight_stride[0] = of_output;
        a.weight_stride[1] = of_input;
        return a;
    }
};

// What one part of the pixels adds up to.
struct FeedForwardSums {
    float *up, *down, *up_bias, *down_bias;

    static int64_t size(const FeedForwardGradient &g, const FeedForwardProducts &by) {
        return by.up_sums.size() + by.down_sums.size() + row_length(g.hidden) + row_length(g.channels);
    }
    FeedForwardSums(const FeedForwardGradient &g, const FeedForwardProducts &by, float *memory)
        : up(memory), down(up + by.up_sums.size()), up_bias(down + by.down_sums.size()),
          down_bias(up_bias + row_length(g.hidden)) {}
};

// use(row, output, sum) for each vector of outputs of all rows.
template <class Use>
inline __attribute__((always_inline)) void each_vector(const Product &a, const float *packed, const float *const *rows,
                                                       int64_t count, const Use &use) {
    each_tile(a, packed, rows, count, [&](int64_t i, int64_t output, auto &sum) __attribute__((always_inline)) {
        for (int c = 0; c < static_cast<int>(sizeof(sum[0]) / sizeof(Floats)); ++c)
            for (int r = 0; r < ROWS; ++r) use(i + r, output + c * LANES, sum[r][c]);
    });
}

// `count` pixels from `first` on.
inline void differentiate(const FeedForwardGradient &g, const FeedForwardProducts &by, const float *const (&packed)[3],
                          const FeedForwardRoom &room, const FeedForwardSums &sums, int64_t first, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        float *x = room.x + i * room.row, *grad = room.grad + i * room.row;
        room.factor[i] = centre(g.x + (first + i) * g.channels, g.channels, g.eps, x);
        for (int64_t c = 0; c < g.channels; c += LANES) {
            const Floats value = load(g.grad + (first + i) * g.channels + c, g.channels - c);
            write(x + c, read<Floats>(x + c) * room.factor[i]);
            write(grad + c, value);
            write(sums.down_bias + c, read<Floats>(sums.down_bias + c) + value);
        }
    }
    each_vector(by.up, packed[0], room.x_rows, count, [&](int64_t i, int64_t c, Floats sum) {
        Floats slope;
        write(room.hidden + i * room.hidden_row + c, gelu(sum + load(g.up_bias + c, g.hidden - c), slope));
        write(room.slope + i * room.hidden_row + c, slope);
    });
    by.down_sums.add(room.grad, room.row, room.hidden, room.hidden_row, count, sums.down);
    each_vector(by.from_down, packed[1], room.grad_rows, count, [&](int64_t i, int64_t c, Floats sum) {
        float *slope = room.slope + i * room.hidden_row + c;
        const Floats value = sum * read<Floats>(slope);
        write(slope, value);
        if (i < count) write(sums.up_bias + c, read<Floats>(sums.up_bias + c) + value);
    });
    by.up_sums.add(room.slope, room.hidden_row, room.x, room.row, count, sums.up);
    each_vector(by.from_up, packed[2], room.slope_rows, count, [&](int64_t i, int64_t c, Floats sum) {
        write(room.dx + i * room.row + c, sum);
    });
    for (int64_t i = 0; i < count; ++i) {
        const float *x = room.x + i * room.row, *dx = room.dx + i * room.row, *grad = room.grad + i * room.row;
        Floats plain = {}, along = {};
        for (int64_t c = 0; c < g.channels; c += LANES) {
            const Floats value = load(dx + c, g.channels - c);
            plain += value;
            along += value * load(x + c, g.channels - c);
        }
        const float mean = total(plain) / g.channels, slope = total(along) / g.channels;
        for (int64_t c = 0; c < g.channels; c += LANES) {
            Floats value = room.factor[i] * (read<Floats>(dx + c) - mean - slope * read<Floats>(x + c));
            value += read<Floats>(grad + c);
            store(g.dx + (first + i) * g.channels + c, value, g.channels - c);
        }
    }
}

// Pixels fall into as many parts as there are threads; what the parts add up to is added in their order.
inline int run_feed_forward_gradient(const FeedForwardGradient &g) {
    const FeedForwardProducts by(g);
    const Product *const products[] = {&by.up, &by.from_down, &by.from_up};
    const int64_t each = up((g.pixels + g.threads - 1) / g.threads, ROWS), parts = (g.pixels + each - 1) / each;
    const int64_t size = FeedForwardSums::size(g, by);
    Arena memory;
    float *packed[3], *sums;
    for (int pass = 0; pass < 2; ++pass) {
        for (int n = 0; n < 3; ++n) memory.take(packed[n], packed_size(*products[n]));
        memory.take(sums, parts * size);
        if (!pass && !memory.allocate()) return 1;
    }
    const FeedForwardSums all(g, by, sums);
    int failed = 0;
#pragma omp parallel num_threads(static_cast<int>(g.threads)) reduction(| : failed)
    {
        const NoDenormals none;
        const FeedForwardRoom room(g);
        failed = !room.ready;
        for (int n = 0; n < 3; ++n) {
#pragma omp for schedule(dynamic, 1)
            for (int64_t panel = 0; panel < (products[n]->outputs + PANEL - 1) / PANEL; ++panel)
                pack_weights(*products[n], panel, packed[n]);
        }
#pragma omp for schedule(static, 1)
        for (int64_t part = 0; part < parts; ++part) {
            if (!room.ready) continue;
            float *own = sums + part * size;
            std::memset(own, 0, size * sizeof(float));
            const int64_t end = std::min(g.pixels, (part + 1) * each);
            for (int64_t first = part * each; first < end; first += BLOCK)
                differentiate(g, by, packed, room, FeedForwardSums(g, by, own), first, std::min(BLOCK, end - first));
        }
#pragma omp for schedule(static)
        for (int64_t n = 0; n < g.hidden; ++n) by.up_sums.finish(all.up, parts, size, n, g.dup + n * g.channels);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < g.channels; ++n) by.down_sums.finish(all.down, parts, size, n, g.ddown + n * g.hidden);
#pragma omp single
        {
            add_parts(all.up_bias, parts, size, g.hidden, g.dup_bias);
            add_parts(all.down_bias, parts, size, g.channels, g.ddown_bias);
        }
    }
    return failed;
}

}  // namespace
