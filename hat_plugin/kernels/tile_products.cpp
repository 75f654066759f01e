// Linear layers and 3x3 convolutions in bf16 by AMX (tile_product.hpp, tile_convolution.hpp).

#include "tile_convolution.hpp"

#if defined(HAT_TILES)

namespace {

template <class X, class O> int run_tiles(const TileProduct &a, const TileProduct *next) {
    return a.taps == 9 ? run_tile_convolution<X, O>(a) : run_tile_product<X, O>(a, next);
}

}  // namespace

#endif

// 0 if all went well, 1 if memory ran out, 2 where there is no AMX. The sizes are the caller's to check.
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
