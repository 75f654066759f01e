// The gradient of a 3x3 convolution's weights, by the products of winograd.hpp: at each of 16 points that of the inputs'
// transform and the output gradients', summed over the tiles; the transform of kernels turned round gives 9 taps.
//
// The gradient of the input is itself a convolution, by the weights turned round.

#pragma once

#include "winograd.hpp"

// library.py has the same fields in the same order.
struct ConvolutionGradient {
    const float *x, *grad;  // the convolution's input; its result's gradient, (batch, height, width, outputs), contiguous
    float *out;             // the weights' gradient, overwritten
    int64_t x_stride[3];    // batch, row, column
    int64_t out_stride[3];  // output, input, tap
    int64_t batch, height, width;
    int64_t inputs, outputs;
    int64_t threads;
};

namespace {

constexpr int64_t SPAN = 48;  // tiles of which a point's panel stays in the first-level cache
constexpr int64_t GROUP_STRIDE = SPAN * ROWS + 16, PANEL_STRIDE = SPAN * PANEL + 16;  // one cache line off: other sets

// How the sums fall into tasks: parts of the outputs, and of the panels of inputs.
struct Parts {
    int64_t groups, panels;       // in all; a group is ROWS outputs
    int64_t of_groups, of_panels;

    explicit Parts(const ConvolutionGradient &g)
        : groups((g.outputs + ROWS - 1) / ROWS), panels((g.inputs + PANEL - 1) / PANEL), of_groups((groups + 9) / 10),
          of_panels((panels + 2) / 3) {  // so that a task's operands and sums fit the second-level cache
        while (count() < 4 * g.threads) {  // but transforming the same for few sums would show
            if (panels / (of_panels + 1) >= 2) ++of_panels;
            else if (groups / (of_groups + 1) >= 4) ++of_groups;
            else if (of_panels < panels) ++of_panels;
            else if (of_groups < groups) ++of_groups;
            else break;
        }
    }
    int64_t count() const { return of_groups * of_panels; }
    int64_t groups_each() const { return (groups + of_groups - 1) / of_groups; }
    int64_t panels_each() const { return (panels + of_panels - 1) / of_panels; }
};

// What one thread needs: SPAN tiles' gradients as (POINTS, groups, SPAN, ROWS), their inputs as (POINTS, panels, SPAN,
// PANEL), and its sums as (POINTS, panels, groups, ROWS, PANEL).
struct GradientRoom {
    float *grad, *panel, *zeros, *sums;
    bool ready;

    GradientRoom(const ConvolutionGradient &g, const Parts &parts) {
        lay_out(g, parts);
        ready = arena.allocate();
        if (!ready) return;
        lay_out(g, parts);
        std::memset(zeros, 0, (std::max(g.inputs, g.outputs) + PANEL) * sizeof(float));
    }

  private:
    Arena arena;
    void lay_out(const ConvolutionGradient &g, const Parts &parts) {
        arena.take(grad, POINTS * parts.groups_each() * GROUP_STRIDE);
        arena.take(panel, POINTS * parts.panels_each() * PANEL_STRIDE);
        arena.take(zeros, std::max(g.inputs, g.outputs) + PANEL);
        arena.take(sums, POINTS * parts.groups_each() * parts.panels_each() * ROWS * PANEL);
    }
};

// From two rows or columns of a tile's gradient to four.
inline void widen_gradient(Floats a, Floats b, Floats (&to)[4]) {
    to[0] = a;
    to[1] = a + b;
    to[2] = a - b;
    to[3] = -b;
}

// A tile's output gradients, for `groups` groups of outputs from `group` on.
inline void transform_gradients(const ConvolutionGradient &g, const TilePlace &at, const float *zeros, int64_t group,
                                int64_t groups, float *to) {
    const float *from[2][2];
    for (int64_t y = 0; y < 2; ++y)
        for (int64_t x = 0; x < 2; ++x) {
            const bool inside = at.top + y < g.height && at.left + x < g.width;
            const int64_t pixel = (at.image * g.height + at.top + y) * g.width + at.left + x;
            from[y][x] = inside ? g.grad + pixel * g.outputs : zeros;
        }
    for (int64_t n = 0; n < groups; ++n)
        for (int64_t c = 0; c < ROWS; c += LANES) {
            const int64_t first = (group + n) * ROWS + c, left = g.outputs - first;
            Floats rows[2][4], column[4];
            for (int y = 0; y < 2 && left > 0; ++y)
                widen_gradient(load(from[y][0] + first, left), load(from[y][1] + first, left), rows[y]);
            for (int x = 0; x < 4; ++x) {
                if (left > 0)
                    widen_gradient(rows[0][x], rows[1][x], column);
                else
                    for (Floats &value : column) value = Floats{};
                // A vector may hold more than a group; the next tile's overwrites the excess.
                for (int y = 0; y < 4; ++y) write(to + ((4 * y + x) * groups + n) * GROUP_STRIDE + c, column[y]);
            }
        }
}

// From four points to three taps.
inline void narrow_kernel(Floats a, Floats b, Floats c, Floats d, Floats (&to)[3]) {
    to[0] = a + 0.5f * (b + c);
    to[1] = 0.5f * (b - c);
    to[2] = 0.5f * (b + c) + d;
}

// One output's taps for a vector of inputs; a point's sum is `stride` behind the last's.
inline void write_taps(const ConvolutionGradient &g, const float *sums, int64_t stride, int64_t output, int64_t input) {
    Floats rows[4][3];
    for (int y = 0; y < 4; ++y) {
        const float *from = sums + 4 * y * stride;
        narrow_kernel(read<Floats>(from), read<Floats>(from + stride), read<Floats>(from + 2 * stride),
                      read<Floats>(from + 3 * stride), rows[y]);
    }
    for (int x = 0; x < 3; ++x) {
        Floats column[3];
        narrow_kernel(rows[0][x], rows[1][x], rows[2][x], rows[3][x], column);
        for (int y = 0; y < 3; ++y) {
            float *to = g.out + output * g.out_stride[0] + input * g.out_stride[1] + (3 * y + x) * g.out_stride[2];
            for (int64_t lane = 0; lane < std::min<int64_t>(LANES, g.inputs - input); ++lane)
                to[lane * g.out_stride[1]] = column[y][lane];
        }
    }
}

// The taps of `groups` groups of outputs and `panels` panels of inputs.
inline void differentiate(const ConvolutionGradient &g, const GradientRoom &room, int64_t group, int64_t groups,
                          int64_t panel, int64_t panels) {
    const int64_t tiles = tiles_of(g), stride = groups * panels * ROWS * PANEL;
    std::memset(room.sums, 0, POINTS * stride * sizeof(float));
    for (int64_t first = 0; first < tiles; first += SPAN) {
        const int64_t span = std::min(SPAN, tiles - first);
        for (int64_t i = 0; i < span; ++i) {
            const TilePlace at(g, first + i);
            transform_gradients(g, at, room.zeros, group, groups, room.grad + i * ROWS);
            const float *from[POINTS];
            locate_inputs(g, at, room.zeros, from);
            for (int64_t c = 0; c < panels * PANEL; c += LANES) {
                float *to = room.panel + c / PANEL * PANEL_STRIDE + i * PANEL + c % PANEL;
                const int64_t input = panel * PANEL + c, left = g.inputs - input;
                const auto put = [=](int point, Floats value) { write(to + point * panels * PANEL_STRIDE, value); };
                if (left > 0)
                    transform_inputs(from, input, left, put);
                else
                    for (int point = 0; point < POINTS; ++point) put(point, Floats{});
            }
        }
        float *sums = room.sums;
        for (int64_t p = 0; p < POINTS * panels; ++p)
            for (int64_t n = 0; n < groups; ++n, sums += ROWS * PANEL)
                add_outer(room.grad + (p / panels * groups + n) * GROUP_STRIDE, ROWS, room.panel + p * PANEL_STRIDE, PANEL,
                          span, sums);
    }
    for (int64_t p = 0; p < panels; ++p)
        for (int64_t n = 0; n < groups * ROWS && group * ROWS + n < g.outputs; ++n)
            for (int64_t c = 0; c < PANEL && (panel + p) * PANEL + c < g.inputs; c += LANES)
                write_taps(g, room.sums + (p * groups * ROWS + n) * PANEL + c, stride, group * ROWS + n, (panel + p) * PANEL + c);
}

// Each sum is one task's alone, and in the order of the tiles: it does not depend on the number of threads.
inline int run_convolution_gradient(const ConvolutionGradient &g) {
    const Parts parts(g);
    int failed = 0;
#pragma omp parallel num_threads(static_cast<int>(g.threads)) reduction(| : failed)
    {
        const NoDenormals none;
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
