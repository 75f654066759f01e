// The gradient of a product's weights (product.hpp). That of its input is itself a product, of the weights turned round.

#pragma once

#include "product.hpp"

// library.py has the same fields in the same order.
struct ProductGradient {
    const float *x, *grad;  // the product's input; its result's gradient, (batch, height, width, outputs), contiguous
    float *out;             // the weights' gradient, overwritten
    int64_t x_stride[3];    // batch, row, column
    int64_t out_stride[3];  // output, input, tap
    int64_t batch, height, width;
    int64_t inputs, outputs, taps;
    int64_t threads;
};

namespace {

constexpr int64_t SPAN = 128;  // pixels of which a panel of inputs stays in the first-level cache
constexpr int64_t GROUP_STRIDE = SPAN * ROWS + 16, PANEL_STRIDE = SPAN * PANEL + 16;  // one cache line off: other sets

// How the sums fall into tasks: parts of the outputs, and of the panels of inputs.
struct Parts {
    int64_t groups, panels;    // in all; a group is ROWS outputs
    int64_t of_groups = 1, of_panels = 1;

    explicit Parts(const ProductGradient &g) : groups((g.outputs + ROWS - 1) / ROWS), panels((g.inputs + PANEL - 1) / PANEL) {
        const int64_t enough = 8;  // groups of a part: packing inputs for fewer would show
        while (count() < 4 * g.threads) {
            if (groups / (of_groups + 1) >= enough) ++of_groups;
            else if (of_panels < panels) ++of_panels;
            else if (of_groups < groups) ++of_groups;
            else break;
        }
    }
    int64_t count() const { return of_groups * of_panels; }
    int64_t groups_each() const { return (groups + of_groups - 1) / of_groups; }
    int64_t panels_each() const { return (panels + of_panels - 1) / of_panels; }
};

// What one thread needs: SPAN pixels' gradients as (groups, SPAN, ROWS), panels of their inputs, and its sums.
struct GradientRoom {
    const float **rows;
    float *grad, *panel, *zeros, *sums;
    bool ready;

    GradientRoom(const ProductGradient &g, const Parts &parts) {
        lay_out(g, parts);
        ready = arena.allocate();
        if (!ready) return;
        lay_out(g, parts);
        std::memset(zeros, 0, (g.inputs + PANEL) * sizeof(float));
    }

  private:
    Arena arena;
    void lay_out(const ProductGradient &g, const Parts &parts) {
        arena.take(rows, SPAN);
        arena.take(grad, parts.groups_each() * GROUP_STRIDE);
        arena.take(panel, parts.panels_each() * PANEL_STRIDE);
        arena.take(zeros, g.inputs + PANEL);
        arena.take(sums, parts.groups_each() * parts.panels_each() * g.taps * ROWS * PANEL);
    }
};

// Where a tap finds its input pixels for `count` output pixels from `first` on; pixels beyond the border are `zeros`.
inline void locate_taps(const ProductGradient &g, int64_t tap, int64_t first, int64_t count, const float *zeros,
                        const float **rows) {
    const int64_t down = g.taps == 9 ? tap / 3 - 1 : 0, right = g.taps == 9 ? tap % 3 - 1 : 0;
    int64_t image = first / (g.height * g.width), row = first / g.width % g.height, column = first % g.width;
    for (int64_t i = 0; i < count; ++i) {
        const int64_t y = row + down, at = column + right;
        const bool inside = y >= 0 && y < g.height && at >= 0 && at < g.width;
        rows[i] = inside ? g.x + image * g.x_stride[0] + y * g.x_stride[1] + at * g.x_stride[2] : zeros;
        if (++column == g.width) {
            column = 0;
            if (++row == g.height) row = 0, ++image;
        }
    }
}

// A vector of a pixel's channels from `at` on, zeros beyond the last.
inline Floats some(const float *pixel, int64_t at, int64_t channels) {
    return at < channels ? load(pixel + at, channels - at) : Floats{};
}

// sums (ROWS, PANEL) += grad (count, ROWS)^T panel (count, PANEL).
inline void add_products(const float *grad, const float *panel, int64_t count, float *sums) {
    Floats sum[ROWS][2];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
        for (int c = 0; c < 2; ++c) sum[r][c] = read<Floats>(sums + r * PANEL + c * LANES);
    for (int64_t i = 0; i < count; ++i, grad += ROWS, panel += PANEL) {
        const Floats left = read<Floats>(panel), right = read<Floats>(panel + LANES);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) {
            sum[r][0] += grad[r] * left;
            sum[r][1] += grad[r] * right;
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
        for (int c = 0; c < 2; ++c) write(sums + r * PANEL + c * LANES, sum[r][c]);
}

// The sums of `groups` groups of outputs and `panels` panels of inputs, all taps.
inline void differentiate(const ProductGradient &g, const GradientRoom &room, int64_t group, int64_t groups,
                          int64_t panel, int64_t panels) {
    const int64_t pixels = g.batch * g.height * g.width;
    std::memset(room.sums, 0, groups * panels * g.taps * ROWS * PANEL * sizeof(float));
    for (int64_t first = 0; first < pixels; first += SPAN) {
        const int64_t span = std::min(SPAN, pixels - first);
        for (int64_t i = 0; i < span; ++i)
            for (int64_t n = 0; n < groups; ++n) {
                // A vector may hold more than a group; the next pixel's overwrites the excess.
                const int64_t at = (group + n) * ROWS;
                for (int64_t c = 0; c < ROWS; c += LANES)
                    write(room.grad + n * GROUP_STRIDE + i * ROWS + c, some(g.grad + (first + i) * g.outputs, at + c, g.outputs));
            }
        float *sums = room.sums;
        for (int64_t tap = 0; tap < g.taps; ++tap) {
            locate_taps(g, tap, first, span, room.zeros, room.rows);
            for (int64_t i = 0; i < span; ++i)
                for (int64_t p = 0; p < panels; ++p)
                    for (int64_t c = 0; c < PANEL; c += LANES)
                        write(room.panel + p * PANEL_STRIDE + i * PANEL + c,
                              some(room.rows[i], (panel + p) * PANEL + c, g.inputs));
            for (int64_t p = 0; p < panels; ++p)
                for (int64_t n = 0; n < groups; ++n, sums += ROWS * PANEL)
                    add_products(room.grad + n * GROUP_STRIDE, room.panel + p * PANEL_STRIDE, span, sums);
        }
    }
    const float *sums = room.sums;
    for (int64_t tap = 0; tap < g.taps; ++tap)
        for (int64_t p = panel; p < panel + panels; ++p)
            for (int64_t n = group * ROWS; n < (group + groups) * ROWS; ++n, sums += PANEL)
                for (int64_t k = p * PANEL; n < g.outputs && k < std::min((p + 1) * PANEL, g.inputs); ++k)
                    g.out[n * g.out_stride[0] + k * g.out_stride[1] + tap * g.out_stride[2]] = sums[k - p * PANEL];
}

// Each sum is one task's alone, and in the order of the pixels: it does not depend on the number of threads.
inline int run_product_gradient(const ProductGradient &g) {
    const Parts parts(g);
    int failed = 0;
#pragma omp parallel num_threads(static_cast<int>(g.threads)) reduction(| : failed)
    {
        const GradientRoom room(g, parts);
        failed = !room.ready;
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < parts.count(); ++task) {
            const int64_t group = task / parts.of_panels * parts.groups_each();
            const int64_t panel = task % parts.of_panels * parts.panels_each();
            const int64_t groups = std::min(parts.groups_each(), parts.groups - group);
            const int64_t panels = std::min(parts.panels_each(), parts.panels - panel);
            if (room.ready && groups > 0 && panels > 0) differentiate(g, room, group, groups, panel, panels);
        }
    }
    return failed;
}

}  // namespace
