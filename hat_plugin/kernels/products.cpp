// Linear layers (product.hpp), an MLP's gradients (feed_forward_gradient.hpp) and 3x3 convolutions (winograd.hpp,
// winograd_gradient.hpp) on the CPU in fp32.

#include "feed_forward_gradient.hpp"
#include "winograd_gradient.hpp"

// Each gives 0 if all went well, 1 if memory ran out. The sizes are the caller's to check.
extern "C" int hat_product(const Product *a, const Product *next) {
    return a->taps == 9 ? run_convolution(*a) : run_product(*a, next);
}

extern "C" int hat_convolution_gradient(const ConvolutionGradient *g) { return run_convolution_gradient(*g); }

extern "C" int hat_feed_forward_gradient(const FeedForwardGradient *g) { return run_feed_forward_gradient(*g); }

// Lanes of a vector, in bits.
extern "C" int hat_vector_bits() { return BYTES * 8; }
