// The GELU of a vector, and its slope.

#pragma once

#include "vectors.hpp"

namespace {

// erf(x / sqrt(2)) by a rational function fitted here on [-5.6, 5.6], to 2e-8; beyond, fp32 has 1.
inline Floats error_function(Floats x) {
    const Floats y = smaller(all(5.6f), larger(all(-5.6f), x));
    const Floats u = y * y;
    Floats p = all(4.429087981e-08f), q = all(1.180214135e-06f);
    p = p * u + 1.271302011e-05f;
    q = q * u + 7.510116376e-05f;
    p = p * u + 3.476969047e-04f;
    q = q * u + 1.912965221e-03f;
    p = p * u + 9.414490626e-03f;
    q = q * u + 2.893996077e-02f;
    p = p * u + 6.875177677e-02f;
    q = q * u + 2.528332870e-01f;
    p = p * u + 7.978844431e-01f;
    q = q * u + 1.0f;
    return quotient(y * p, q);
}

// x * (1 + erf(x / sqrt(2))) / 2.
inline Floats gelu(Floats x) {
    const Floats half = 0.5f * x;
    return half + half * error_function(x);
}

// The same, and its slope.
inline Floats gelu(Floats x, Floats &slope) {
    const Floats below = 0.5f + 0.5f * error_function(x);  // the part of a normal distribution that is below x
    const Floats y = smaller(all(5.6f), larger(all(-5.6f), x));
    slope = below + 0.398942280f * x * power_of_two(-0.721347520f * y * y);
    return x * below;
}

// (1 + erf(x / sqrt(2))) / 2 to 3e-5 by a polynomial fitted here on [-4.2, 4.2], where it is made to end in 0 and 1.
inline Floats rough_part_below(Floats x) {
    const Floats y = smaller(all(4.2f), larger(all(-4.2f), x));
    const Floats u = y * y;
    Floats p = all(-9.017534358e-10f);
    p = p * u + 7.941341002e-08f;
    p = p * u - 3.037932025e-06f;
    p = p * u + 6.689070209e-05f;
    p = p * u - 9.506575471e-04f;
    p = p * u + 9.298229443e-03f;
    p = p * u - 6.552820212e-02f;
    p = p * u + 3.984658730e-01f;
    return y * p + 0.5f;
}

// The same to 1e-4, for results that are rounded to bf16.
inline Floats rough_gelu(Floats x) { return x * rough_part_below(x); }

// The same, and its slope.
inline Floats rough_gelu(Floats x, Floats &slope) {
    const Floats below = rough_part_below(x);
    slope = below + 0.398942280f * x * rough_power_of_two(-0.721347520f * x * x);
    return x * below;
}

}  // namespace
