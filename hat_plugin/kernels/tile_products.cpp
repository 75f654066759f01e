// Linear layers, 3x3 convolutions and whole transformer blocks in bf16 by AMX (tile_product.hpp, tile_convolution.hpp,
// tile_block.hpp), and gradients of linear layers, MLPs and convolutions (tile_linear_gradient.hpp,
// tile_feed_forward_gradient.hpp, tile_convolution_gradient.hpp).

#include "tile_block.hpp"
#include "tile_convolution_gradient.hpp"
#include "tile_feed_forward_gradient.hpp"
#include "tile_linear_gradient.hpp"

#if defined(HAT_TILES)

namespace {

template <class X, class O> int run_tiles(const TileProduct &a, const TileProduct *next) {
    return a.taps == 9 ? run_tile_convolution<X, O>(a) : run_tile_product<X, O>(a, next);
}

template <class X> int run_linear_gradient(const TileLinearGradient &g) {
    return g.back.half_x ? run_tile_linear_gradient<X, bf16>(g) : run_tile_linear_gradient<X, float>(g);
}

template <class X> int run_block(const WindowBlock &b) {
    return b.attention.half_bias ? run_window_block<X, bf16>(b) : run_window_block<X, float>(b);
}

}  // namespace

#endif

// Each gives 0 if all went well, 1 if memory ran out, 2 where there is no AMX. The sizes are the caller's to check.
extern "C" int hat_tile_product(const TileProduct *a, const TileProduct *next) {
#if defined(HAT_TILES)
    if (!tiles_are_there()) return 2;
    const bool half_out = (next ? next : a)->half_out;
    if (a->half_x) return half_out ? run_tiles<bf16, bf16>(*a, next) : run_tiles<bf16, float>(*a, next);
    return half_out ? run_tiles<float, bf16>(*a, next) : run_tiles<float, float>(*a, next);
#else
    return (void)a, (void)next, 2;
#endif
}

extern "C" int hat_window_block(const WindowBlock *b) {
#if defined(HAT_TILES)
    if (!tiles_are_there()) return 2;
    return b->queries.half_x ? run_block<bf16>(*b) : run_block<float>(*b);
#else
    return (void)b, 2;
#endif
}

extern "C" int hat_tile_feed_forward_gradient(const TileFeedForwardGradient *g) {
#if defined(HAT_TILES)
    if (!tiles_are_there()) return 2;
    return g->up.half_x ? run_tile_feed_forward_gradient<bf16>(*g) : run_tile_feed_forward_gradient<float>(*g);
#else
    return (void)g, 2;
#endif
}

extern "C" int hat_tile_linear_gradient(const TileLinearGradient *g) {
#if defined(HAT_TILES)
    if (!tiles_are_there()) return 2;
    return g->layer.half_x ? run_linear_gradient<bf16>(*g) : run_linear_gradient<float>(*g);
#else
    return (void)g, 2;
#endif
}

extern "C" int hat_tile_convolution_gradient(const TileConvolutionGradient *g) {
#if defined(HAT_TILES)
    if (!tiles_are_there()) return 2;
    return g->layer.half_x ? run_tile_convolution_gradient<bf16>(*g) : run_tile_convolution_gradient<float>(*g);
#else
    return (void)g, 2;
#endif
}
