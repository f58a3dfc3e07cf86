// The activations of feed-forward networks, of numbers that are in registers.
#pragma once

#include "call.h"
#include "vector.h"

namespace REGARD_ISA {

namespace detail {

// 1 / (1 + e^-x). Beyond 2^126 the exponential would be infinite, and the product with x no number.
template <int N>
INLINE void logistic_of(V (&x)[N]) {
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) x[n] = smallest(splat(126.0f), x[n] * -LOG2E);
  exp2_of(x);
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) x[n] = 1.0f / (1.0f + x[n]);
}

// What a standard normal distribution has beyond |x|: e^(-x²/2) times a polynomial in t = 1 / (1 + 0.28 |x|), from its
// ninth power down to t; of those without a constant that of the least largest relative error, 5e-8.
constexpr float TAIL[] = {0.02237142f, -0.08129109f, 0.06541977f, 0.02592377f, 0.04967859f,
                          0.09363898f, 0.10052114f,  0.11205375f, 0.11168371f};

template <int N>
INLINE void normal_tail_of(V (&x)[N]) {
  V t[N], p[N];
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) {
    t[n] = 1.0f / (1.0f + 0.28f * absolute(x[n]));
    x[n] = x[n] * x[n] * (-0.5f * LOG2E);
    p[n] = splat(TAIL[0]);
  }
#pragma GCC unroll 8
  for (int i = 1; i < 9; ++i)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) p[n] = p[n] * t[n] + TAIL[i];
  exp2_of(x);
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) x[n] *= p[n] * t[n];
}

}  // namespace detail

// N vectors at once, each step of all before the next one, as in exp2_of.
template <int N>
INLINE void activate(int64_t kind, V (&x)[N]) {
  V y[N];
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) y[n] = x[n];
  switch (kind) {
    case RELU:
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) x[n] = largest(V{}, x[n]);
      return;
    case GELU:  // x · Φ(x)
      detail::normal_tail_of(y);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) x[n] = x[n] > 0.0f ? x[n] - x[n] * y[n] : x[n] * y[n];
      return;
    case GELU_TANH:  // x · (1 + tanh u) / 2 = x / (1 + e^-2u)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) y[n] = x[n] * (1.5957691216f + 0.0713548163f * (x[n] * x[n]));
      detail::logistic_of(y);
      break;
    case SILU: detail::logistic_of(y); break;
    case TANH:
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) x[n] = tanh_of(x[n]);
      return;
    default: return;
  }
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) x[n] *= y[n];
}

}  // namespace REGARD_ISA
