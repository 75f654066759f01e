// Linear layers in bf16 by AMX (tile_product.hpp).

#include "tile_product.hpp"

// 0 if all went well, 1 if memory ran out, 2 where there is no AMX. The sizes are the caller's to check.
extern "C" int hat_tile_product(const TileProduct *a, const TileProduct *next) {
#if defined(HAT_TILES)
    if (!tiles_are_there()) return 2;
    const bool half_out = (next ? next : a)->half_out;
    if (a->half_x) return half_out ? run_tile_product<bf16, bf16>(*a, next) : run_tile_product<bf16, float>(*a, next);
    return half_out ? run_tile_product<float, bf16>(*a, next) : run_tile_product<float, float>(*a, next);
#else
    return (void)a, (void)next, 2;
#endif
}
