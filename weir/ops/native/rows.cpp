// Operations on one row at a time: norms, rotary embedding, activations. A row's result depends on
// that row alone; rows are shared out between threads where there are enough of them.
#include "pool.h"
#include "rows.h"
#include "tape.h"

namespace weir {
namespace {

constexpr int64_t item_floats = 16 << 10;  // fewer are not worth another thread

template <class Body>
void each_row(int64_t rows, int64_t width, const Body& body) {
  parallel_ranges(rows, item_floats / (width < item_floats ? width : item_floats),
                  [&](int64_t begin, int64_t end) {
                    for (int64_t r = begin; r < end; ++r) body(r);
                  });
}

void rotate(float* x, const float* cos_sin, int64_t half) {
  for (int64_t i = 0; i < half; i += W) {
    const int64_t left = half - i;
    const F a = load(x + i, left), b = load(x + half + i, left);
    const F cosine = load(cos_sin + i, left), sine = load(cos_sin + half + i, left);
    store(x + i, fma(a, cosine, -(b * sine)), left);
    store(x + half + i, fma(b, cosine, a * sine), left);
  }
}

}  // namespace
}  // namespace weir

extern "C" {

using namespace weir;

void weir_rms_norm(const float* x, const float* weight, int64_t rows, int64_t n, float eps,
                   float* out) {
  launch([=] {
    each_row(rows, n, [&](int64_t r) { normalise(x + r * n, weight, n, eps, out + r * n); });
  });
}

void weir_layer_norm(const float* x, const float* weight, const float* bias, int64_t rows, int64_t n,
                     float eps, float* out) {
  launch([=] {
    each_row(rows, n, [&](int64_t r) {
      const float* in = x + r * n;
      F total = {}, squares = {};
      for (int64_t i = 0; i < n; i += W) total += load(in + i, n - i);
      const float mean = sum_lanes(total)[0] / float(n);
      for (int64_t i = 0; i < n; i += W) {
        const F v = select(lanes() < int32_t(n - i), load(in + i, n - i) - splat(mean), F{});
        squares = fma(v, v, squares);
      }
      const F inverse = splat(1.0f / std::sqrt(sum_lanes(squares)[0] / float(n) + eps));
      for (int64_t i = 0; i < n; i += W) {
        const F v = (load(in + i, n - i) - splat(mean)) * inverse;
        store(out + r * n + i, fma(v, load(weight + i, n - i), load(bias + i, n - i)), n - i);
      }
    });
  });
}

// Heads [tokens, heads, size] whose tokens lie `stride` floats apart; see `rope_` in ops/rope.py.
void weir_rope(float* x, int64_t tokens, int64_t stride, int64_t heads, int64_t size,
               const int64_t* pos, const float* cos_sin, int64_t dim, const float* norm,
               float eps) {
  launch([=] {
    each_row(tokens, heads * size, [&](int64_t t) {
      for (float* head = x + t * stride; head < x + t * stride + heads * size; head += size) {
        if (norm) normalise(head, norm, size, eps, head);
        rotate(head, cos_sin + pos[t] * dim, dim / 2);
      }
    });
  });
}

// act(x[:, :n]) * x[:, n:] for x [rows, 2n] → out [rows, n]
void weir_gated(const float* x, int64_t rows, int64_t n, int32_t activation, float* out) {
  launch([=] {
    each_row(rows, 2 * n, [&](int64_t r) { gate(x + r * 2 * n, n, activation, out + r * n); });
  });
}

void weir_activate(float* x, int64_t n, int32_t activation) {
  launch([=] {
    parallel_ranges(n, item_floats, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i += W)
        store(x + i, activate(load(x + i, end - i), activation), end - i);
    });
  });
}
}
