// What is done to one row of floats; its result depends on that row alone.
#pragma once

#include <cmath>

#include "simd.h"

namespace weir {

// x / rms(x) * weight; out may be x.
inline void normalise(const float* x, const float* weight, int64_t n, float eps, float* out) {
  F squares = {};
  for (int64_t i = 0; i < n; i += W) {
    const F v = load(x + i, n - i);
    squares = fma(v, v, squares);
  }
  const F inverse = splat(1.0f / std::sqrt(sum_lanes(squares)[0] / float(n) + eps));
  for (int64_t i = 0; i < n; i += W)
    store(out + i, load(x + i, n - i) * inverse * load(weight + i, n - i), n - i);
}

enum Activation : int32_t { silu, gelu_tanh, relu };

inline F activate(F x, int32_t activation) {
  switch (activation) {
    case silu: return x / (splat(1.0f) + exp(-x));
    case gelu_tanh: {
      const F inner = x * fma(x * x, splat(0.044715f * 0.7978845608f), splat(0.7978845608f));
      return x * splat(0.5f) * (splat(1.0f) + tanh(inner));
    }
    default: return select(x < F{}, F{}, x);
  }
}

// act(x[:n]) * x[n:] → out [n]
inline void gate(const float* x, int64_t n, int32_t activation, float* out) {
  for (int64_t i = 0; i < n; i += W)
    store(out + i, activate(load(x + i, n - i), activation) * load(x + n + i, n - i), n - i);
}

}  // namespace weir
