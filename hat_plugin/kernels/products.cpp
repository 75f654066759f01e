// Linear layers (product.hpp) and 3x3 convolutions (winograd.hpp) on the CPU in fp32, and their weights' gradients.

#include "product_gradient.hpp"
#include "winograd.hpp"

// Each gives 0 if all went well, 1 if memory ran out. The sizes are the caller's to check.
extern "C" int hat_product(const Product *a, const Product *next) {
    return a->taps == 9 ? run_convolution(*a) : run_product(*a, next);
}

extern "C" int hat_product_gradient(const ProductGradient *g) { return run_product_gradient(*g); }

// Lanes of a vector, in bits.
extern "C" int hat_vector_bits() { return BYTES * 8; }
