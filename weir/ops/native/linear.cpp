// Linear layers over packed weights.
//
// A weight [n, k] is stored in panels of 32 rows; a panel is a sequence of steps of 32 dwords. A dword
// holds one float32 of its row, or two bfloat16 that follow one another along k. So each step is two
// cache lines, a panel is read from front to back, and a register holds different outputs, never parts
// of one sum: an output is one chain of additions over k, the same for any number of rows of x.
#include "pool.h"
#include "simd.h"

#include <algorithm>
#include <utility>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace weir {
namespace {

constexpr int panel = 32;                          // outputs
constexpr int max_rows = W == 16 ? 12 : 6;         // of x in a register tile
constexpr int wide = W == 4 ? 2 : panel / W;       // vectors of a tile of few rows
constexpr int block_rows = 96;                     // of x that one item computes: they stay in L2
constexpr int pass_rows = 768;                     // of x that are converted at once
constexpr int64_t block_steps = 1024;              // of a panel that one item keeps in L2
constexpr int64_t ahead = 48;                      // steps of a panel that are fetched early
constexpr int64_t item_bytes = 32 << 10;           // of weight that are worth an item

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How a step multiplies: `x` are `dwords` dwords of one row of the converted x.
struct Float32 {
  using Weight = float;
  static constexpr int dwords = 1, depth = 1;
  static void convert(const float* x, int64_t k, uint32_t* out) { std::memcpy(out, x, 4 * k); }
  template <int Rows, int Vectors>
  static void step(const uint32_t* x, const uint32_t* w, F (&acc)[Rows][Vectors]) {
    F weight[Vectors];
    for (int v = 0; v < Vectors; ++v) weight[v] = load_as<F>(w + v * W);
    for (int r = 0; r < Rows; ++r) {
      const F value = splat(load_as<float>(x + r));
      for (int v = 0; v < Vectors; ++v) acc[r][v] = fma(value, weight[v], acc[r][v]);
    }
  }
};

struct Bfloat16Widened {  // a bfloat16 is the upper half of a float32
  using Weight = bf16;
  static constexpr int dwords = 2, depth = 2;
  static void convert(const float* x, int64_t k, uint32_t* out) {
    std::memcpy(out, x, 4 * k);
    if (k % 2) out[k] = 0;
  }
  template <int Rows, int Vectors>
  static void step(const uint32_t* x, const uint32_t* w, F (&acc)[Rows][Vectors]) {
    U pair[Vectors];
    for (int v = 0; v < Vectors; ++v) pair[v] = load_as<U>(w + v * W);
    for (int r = 0; r < Rows; ++r) {
      const F even = splat(load_as<float>(x + 2 * r)), odd = splat(load_as<float>(x + 2 * r + 1));
      for (int v = 0; v < Vectors; ++v) {
        acc[r][v] = fma(even, as_float(pair[v] << 16), acc[r][v]);
        acc[r][v] = fma(odd, as_float(pair[v] & 0xffff0000u), acc[r][v]);
      }
    }
  }
};

#if defined(__AVX512BF16__)
struct Bfloat16Dot {
  using Weight = bf16;
  static constexpr int dwords = 1, depth = 2;
  static void convert(const float* x, int64_t k, uint32_t* out) {
    bf16* pairs = reinterpret_cast<bf16*>(out);
    for (int64_t i = 0; i < k; i += W) store(pairs + i, load(x + i, k - i), k - i);
    if (k % 2) pairs[k].bits = 0;
  }
  template <int Rows, int Vectors>
  static void step(const uint32_t* x, const uint32_t* w, F (&acc)[Rows][Vectors]) {
    __m512bh weight[Vectors];
    for (int v = 0; v < Vectors; ++v) weight[v] = load_as<__m512bh>(w + v * W);
    for (int r = 0; r < Rows; ++r) {
      const __m512bh pair = (__m512bh)_mm512_set1_epi32(int(x[r]));
      for (int v = 0; v < Vectors; ++v)
        acc[r][v] = (F)_mm512_dpbf16_ps((__m512)acc[r][v], pair, weight[v]);
    }
  }
};
using Bfloat16 = Bfloat16Dot;
#else
using Bfloat16 = Bfloat16Widened;
#endif

// What `weir_linear` gets; the caller keeps it alive and equal to ctypes' declaration.
struct Linear {
  const void* weight;
  const float* bias;  // [n], or null
  int64_t n, k;
  int32_t is_bf16;
};

struct Call {
  const Linear& w;
  const float* residual;  // [m, n], or null
  float* out;
  int64_t steps;
};

// Outputs [row, row + Rows) x [column, column + Vectors * W) over steps [from, to). Between blocks of
// steps the sums rest in `out`; bias and residual come with the last.
template <class Kind, int Rows, int Vectors>
void tile(const Call& call, const uint32_t* x, const uint32_t* w, const uint32_t* soon, int64_t row,
          int64_t column, int64_t from, int64_t to) {
  const int64_t n = call.w.n;
  F acc[Rows][Vectors] = {};
  if (from > 0)
    for (int r = 0; r < Rows; ++r)
      for (int v = 0; v < Vectors; ++v) {
        const int64_t c = column + v * W;
        if (c < n) acc[r][v] = load(call.out + (row + r) * n + c, n - c);
      }
  for (int64_t s = from; s < to; ++s) {
    for (int v = 0; v < Vectors * W; v += 16) __builtin_prefetch(soon + s * panel + v);
    Kind::step(x + s * Rows * Kind::dwords, w + s * panel, acc);
  }
  const bool last = to == call.steps;
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < Vectors; ++v) {
      const int64_t c = column + v * W, at = (row + r) * n + c;
      if (c >= n) continue;
      F y = acc[r][v];
      if (last && call.w.bias) y += load(call.w.bias + c, n - c);
      if (last && call.residual) y += load(call.residual + at, n - c);
      store(call.out + at, y, n - c);
    }
}

// All 32 outputs of a panel, in as many vectors at once as the registers hold.
template <class Kind, int Rows>
void tile_panel(const Call& call, const uint32_t* x, const uint32_t* w, const uint32_t* soon,
                int64_t row, int64_t column, int64_t from, int64_t to) {
  constexpr int Vectors = 2 * Rows <= max_rows ? wide : 2;
  for (int v = 0; v < panel / W; v += Vectors)
    tile<Kind, Rows, Vectors>(call, x, w + v * W, soon + v * W, row, column + v * W, from, to);
}

template <class Kind, int... Rows>
constexpr auto tiles(std::integer_sequence<int, Rows...>) {
  struct Table { decltype(&tile_panel<Kind, 1>) of[sizeof...(Rows)]; };
  return Table{{tile_panel<Kind, Rows + 1>...}};
}

// Rows [0, m) of x cut into tiles whose sizes differ by at most one.
struct Tiling {
  int64_t m, count;
  explicit Tiling(int64_t m) : m(m), count(ceil_div(m, max_rows)) {}
  int64_t start(int64_t tile) const { return m * tile / count; }
};

// Rows of a tile, interleaved: for each step the dwords of every row.
template <class Kind>
void convert(const float* x, int64_t rows, int64_t k, int64_t steps, uint32_t* out) {
  const int64_t width = steps * Kind::dwords;
  if (rows == 1) return Kind::convert(x, k, out);
  static thread_local Scratch scratch;
  uint32_t* row = reinterpret_cast<uint32_t*>(scratch.get(width));
  for (int64_t r = 0; r < rows; ++r) {
    Kind::convert(x + r * k, k, row);
    for (int64_t s = 0; s < steps; ++s)
      for (int d = 0; d < Kind::dwords; ++d)
        out[(s * rows + r) * Kind::dwords + d] = row[s * Kind::dwords + d];
  }
}

template <class Kind>
void multiply(const Linear& w, const float* x, int64_t m, const float* residual, float* out) {
  static constexpr auto table = tiles<Kind>(std::make_integer_sequence<int, max_rows>());
  const int64_t steps = ceil_div(w.k, Kind::depth), panels = ceil_div(w.n, panel);
  const uint32_t* weight = static_cast<const uint32_t*>(w.weight);
  const Call call{w, residual, out, steps};
  const Tiling tiling(m);
  static thread_local Scratch scratch;
  uint32_t* ready = reinterpret_cast<uint32_t*>(scratch.get(m * steps * Kind::dwords));
  const auto rows_at = [&](int64_t t) { return ready + tiling.start(t) * steps * Kind::dwords; };

  parallel_ranges(tiling.count, ceil_div(1 << 15, max_rows * w.k), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t row = tiling.start(t);
      convert<Kind>(x + row * w.k, tiling.start(t + 1) - row, w.k, steps, rows_at(t));
    }
  });

  const int64_t blocks = ceil_div(m, block_rows);
  const int64_t grain = ceil_div(item_bytes, 4 * panel * steps * ceil_div(m, blocks));
  const int64_t groups = std::clamp<int64_t>(panels / grain, 1, ceil_div(8 * threads(), blocks));
  parallel(blocks * groups, [&](int64_t item) {
    const int64_t block = item / groups, group = item % groups;
    const int64_t first = tiling.count * block / blocks, last = tiling.count * (block + 1) / blocks;
    for (int64_t from = 0; from < steps; from += block_steps) {
      const int64_t to = std::min(steps, from + block_steps);
      for (int64_t p = panels * group / groups; p < panels * (group + 1) / groups; ++p)
        for (int64_t t = first; t < last; ++t) {
          const int64_t row = tiling.start(t), rows = tiling.start(t + 1) - row;
          const uint32_t* at = weight + p * steps * panel;
          // the first tile meets the panel in memory; the last has time to fetch the next panel
          const uint32_t* soon = at + panel * (t > first && t == last - 1 ? steps : ahead);
          table.of[rows - 1](call, rows_at(t), at, soon, row, p * panel, from, to);
        }
    }
  });
}

template <class Kind>
void pack(const typename Kind::Weight* weight, int64_t n, int64_t k, typename Kind::Weight* out) {
  using Weight = typename Kind::Weight;
  constexpr int depth = Kind::depth;
  const int64_t steps = ceil_div(k, depth);
  parallel_ranges(ceil_div(n, panel), 4, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p)
      for (int64_t s = 0; s < steps; ++s)
        for (int64_t c = 0; c < panel; ++c)
          for (int64_t d = 0; d < depth; ++d) {
            const int64_t row = p * panel + c, column = s * depth + d;
            out[((p * steps + s) * panel + c) * depth + d] =
                row < n && column < k ? weight[row * k + column] : Weight{};
          }
  });
}

}  // namespace
}  // namespace weir

extern "C" {

// Bytes of a packed weight [n, k].
int64_t weir_packed_bytes(int64_t n, int64_t k, int32_t is_bf16) {
  using namespace weir;
  return 4 * panel * ceil_div(n, panel) * ceil_div(k, is_bf16 ? Bfloat16::depth : Float32::depth);
}

// weight [n, k], float32 or bfloat16 → out, `weir_packed_bytes` of it.
void weir_pack(const void* weight, int64_t n, int64_t k, int32_t is_bf16, void* out) {
  using namespace weir;
  if (is_bf16)
    pack<Bfloat16>(static_cast<const bf16*>(weight), n, k, static_cast<bf16*>(out));
  else
    pack<Float32>(static_cast<const float*>(weight), n, k, static_cast<float*>(out));
}

// out [m, n] = x [m, k] @ weight.T + bias + residual [m, n] or null.
void weir_linear(const weir::Linear* w, const float* x, int64_t m, const float* residual, float* out) {
  using namespace weir;
  for (int64_t row = 0; row < m; row += pass_rows) {
    const int64_t rows = std::min<int64_t>(pass_rows, m - row);
    const float* add = residual ? residual + row * w->n : nullptr;
    (w->is_bf16 ? multiply<Bfloat16> : multiply<Float32>)(
        *w, x + row * w->k, rows, add, out + row * w->n);
  }
}
}
