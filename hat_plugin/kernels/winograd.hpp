// 3x3 convolutions with zeros around, channels last, in fp32, by the minimal filtering F(2x2, 3x3): a tile of 2x2 output
// pixels takes 16 products for each pair of channels in the place of 36.
//
// Tiles of 4x4 input pixels, and the kernels, go through a transform whose result is 16 points; at each point a matrix
// product over the channels; back through a transform to 2x2 pixels. Transforms are additions, and for kernels halves.
//
// Source: "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016), section 4.1.

#pragma once

#include "product.hpp"

namespace {

constexpr int POINTS = 16;
constexpr int64_t TILES = 24;  // that are worked on at once: with one point's weights they fit the cache
static_assert(TILES % ROWS == 0, "rows of tiles are whole");

// Channels of a point are padded to whole vectors; a point begins one cache line off, in other sets than the last.
inline int64_t point_stride(int64_t channels) { return TILES * up(channels, LANES) + 16; }

// From three rows or columns of a kernel to four.
template <class V> inline void widen_kernel(V a, V b, V c, V (&to)[4]) {
    to[0] = a;
    to[1] = 0.5f * (a + b + c);
    to[2] = 0.5f * (a - b + c);
    to[3] = c;
}

// Kernels of a panel as (POINTS, inputs, PANEL); a last panel may be half as wide.
inline void pack_kernels(const Product &a, int64_t panel, float *packed) {
    const int64_t first = panel * PANEL, wide = std::min<int64_t>(PANEL, up(a.outputs - first, LANES));
    float *to = packed + first * a.inputs * POINTS;
    for (int64_t k = 0; k < a.inputs; ++k) {
        float taps[9][PANEL] = {};
        for (int64_t lane = 0; lane < std::min(wide, a.outputs - first); ++lane) {
            const float *from = a.weight + (first + lane) * a.weight_stride[0] + k * a.weight_stride[1];
            for (int tap = 0; tap < 9; ++tap) taps[tap][lane] = from[tap * a.weight_stride[2]];
        }
        for (int64_t c = 0; c < wide; c += LANES) {
            Floats rows[3][4];
            for (int y = 0; y < 3; ++y)
                widen_kernel(read<Floats>(taps[3 * y] + c), read<Floats>(taps[3 * y + 1] + c),
                             read<Floats>(taps[3 * y + 2] + c), rows[y]);
            for (int x = 0; x < 4; ++x) {
                Floats column[4];
                widen_kernel(rows[0][x], rows[1][x], rows[2][x], column);
                for (int y = 0; y < 4; ++y) write(to + ((4 * y + x) * a.inputs + k) * wide + c, column[y]);
            }
        }
    }
}

// What one thread needs: points of the input and of the output, (POINTS, TILES, channels) each.
struct TileRoom {
    float *in, *out, *zeros;
    bool ready;

    explicit TileRoom(const Product &a) {
        lay_out(a);
        ready = arena.allocate();
        if (!ready) return;
        lay_out(a);
        std::memset(zeros, 0, (a.inputs + LANES) * sizeof(float));
    }

  private:
    Arena arena;
    void lay_out(const Product &a) {
        arena.take(in, POINTS * point_stride(a.inputs));
        arena.take(out, POINTS * point_stride(a.outputs));
        arena.take(zeros, a.inputs + LANES);
    }
};

// A tile of 2x2 output pixels: its number of all, row by row of an image.
struct TilePlace {
    int64_t image, top, left;

    template <class Sizes> TilePlace(const Sizes &a, int64_t number) {
        const int64_t across = (a.width + 1) / 2, down = (a.height + 1) / 2;
        image = number / (across * down);
        top = number / across % down * 2;
        left = number % across * 2;
    }
};

template <class Sizes> inline int64_t tiles_of(const Sizes &a) {
    return a.batch * ((a.height + 1) / 2) * ((a.width + 1) / 2);
}

// The 4x4 input pixels round a tile; those beyond the border are `zeros`.
template <class Sizes>
inline void locate_inputs(const Sizes &a, const TilePlace &at, const float *zeros, const float *(&from)[POINTS]) {
    for (int64_t y = 0; y < 4; ++y)
        for (int64_t x = 0; x < 4; ++x) {
            const int64_t row = at.top + y - 1, column = at.left + x - 1;
            const bool inside = row >= 0 && row < a.height && column >= 0 && column < a.width;
            from[4 * y + x] =
                inside ? a.x + at.image * a.x_stride[0] + row * a.x_stride[1] + column * a.x_stride[2] : zeros;
        }
}

// A vector of these pixels' channels from `c` on, of which `left` exist; put(point, vector) takes the 16 points.
template <class Put>
inline __attribute__((always_inline)) void transform_inputs(const float *const (&from)[POINTS], int64_t c, int64_t left,
                                                            const Put &put) {
    Floats rows[4][4];
#pragma GCC unroll 4
    for (int x = 0; x < 4; ++x) {
        Floats d[4];
        for (int y = 0; y < 4; ++y) d[y] = load(from[4 * y + x] + c, left);
        rows[0][x] = d[0] - d[2];
        rows[1][x] = d[1] + d[2];
        rows[2][x] = d[2] - d[1];
        rows[3][x] = d[1] - d[3];
    }
#pragma GCC unroll 4
    for (int y = 0; y < 4; ++y) {
        const Floats(&r)[4] = rows[y];
        put(4 * y + 0, r[0] - r[2]);
        put(4 * y + 1, r[1] + r[2]);
        put(4 * y + 2, r[2] - r[1]);
        put(4 * y + 3, r[1] - r[3]);
    }
}

inline void forward_tile(const Product &a, const TilePlace &at, const float *zeros, float *to) {
    const float *from[POINTS];
    locate_inputs(a, at, zeros, from);
    const int64_t stride = point_stride(a.inputs);
    for (int64_t c = 0; c < a.inputs; c += LANES)
        transform_inputs(from, c, a.inputs - c, [=](int point, Floats value) { write(to + point * stride + c, value); });
}

inline void backward_tile(const Product &a, const TilePlace &at, const float *from) {
    const int64_t stride = point_stride(a.outputs);
    float *out = a.out + ((at.image * a.height + at.top) * a.width + at.left) * a.outputs;
    const bool below = at.top + 1 < a.height, beside = at.left + 1 < a.width;
    for (int64_t c = 0; c < a.outputs; c += LANES) {
        const int64_t left = a.outputs - c;
        const Floats bias = a.bias ? load(a.bias + c, left) : Floats{};
        Floats rows[2][4];
#pragma GCC unroll 4
        for (int x = 0; x < 4; ++x) {
            Floats m[4];
            for (int y = 0; y < 4; ++y) m[y] = read<Floats>(from + (4 * y + x) * stride + c);
            rows[0][x] = m[0] + m[1] + m[2];
            rows[1][x] = m[1] - m[2] - m[3];
        }
        for (int y = 0; y < 1 + below; ++y) {
            float *to = out + y * a.width * a.outputs + c;
            store(to, rows[y][0] + rows[y][1] + rows[y][2] + bias, left);
            if (beside) store(to + a.outputs, rows[y][1] - rows[y][2] - rows[y][3] + bias, left);
        }
    }
}

// The products of `count` tiles at all points.
inline void multiply_points(const Product &a, const float *packed, int64_t count, const TileRoom &room) {
    const int64_t in_pad = up(a.inputs, LANES), out_pad = up(a.outputs, LANES);
    for (int64_t point = 0; point < POINTS; ++point) {
        const float *in = room.in + point * point_stride(a.inputs);
        float *out = room.out + point * point_stride(a.outputs);
        for (int64_t output = 0; output < a.outputs; output += PANEL) {
            const int64_t wide = std::min<int64_t>(PANEL, out_pad - output);
            const float *panel = packed + (output * POINTS + point * wide) * a.inputs;
            for (int64_t i = 0; i < count; i += ROWS) {
                const float *rows[ROWS];
                for (int r = 0; r < ROWS; ++r) rows[r] = in + std::min(i + r, count - 1) * in_pad;
                float *to = out + i * out_pad + output;
                if (wide > LANES) {
                    Floats sum[ROWS][2];
                    tile<2>(a.inputs, rows, panel, sum);
                    for (int r = 0; r < ROWS; ++r)
                        for (int c = 0; c < 2; ++c) write(to + r * out_pad + c * LANES, sum[r][c]);
                } else {
                    Floats sum[ROWS][1];
                    tile<1>(a.inputs, rows, panel, sum);
                    for (int r = 0; r < ROWS; ++r) write(to + r * out_pad, sum[r][0]);
                }
            }
        }
    }
}

inline int run_convolution(const Product &a) {
    Arena memory;
    float *packed;
    for (int pass = 0; pass < 2; ++pass) {
        memory.take(packed, packed_size(a) * POINTS);
        if (!pass && !memory.allocate()) return 1;
    }
    const int64_t panels = (a.outputs + PANEL - 1) / PANEL;
    const int64_t tiles = tiles_of(a);
    const int64_t block = std::min(TILES, up(std::max<int64_t>(1, tiles / (4 * a.threads)), ROWS));
    int failed = 0;
#pragma omp parallel num_threads(static_cast<int>(a.threads)) reduction(| : failed)
    {
        const NoDenormals none;
        const TileRoom room(a);
        failed = !room.ready;
#pragma omp for schedule(dynamic, 1)
        for (int64_t n = 0; n < panels; ++n) pack_kernels(a, n, packed);
#pragma omp for schedule(dynamic, 1)
        for (int64_t first = 0; first < tiles; first += block) {
            if (!room.ready) continue;
            const int64_t count = std::min(block, tiles - first);
            for (int64_t t = 0; t < count; ++t)
                forward_tile(a, TilePlace(a, first + t), room.zeros, room.in + t * up(a.inputs, LANES));
            multiply_points(a, packed, count, room);
            for (int64_t t = 0; t < count; ++t)
                backward_tile(a, TilePlace(a, first + t), room.out + t * up(a.outputs, LANES));
        }
    }
    return failed;
}

}  // namespace
