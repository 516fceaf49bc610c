// Linear layers over packed weights (linear_kinds.h). A row of x is normalised or gated, if that is
// asked, on its way into the kernel: the result is the same as by a call of its own.
#include "linear_kinds.h"
#include "pool.h"
#include "rows.h"
#include "tape.h"

#include <algorithm>
#include <utility>

namespace weir {
namespace {

constexpr int wide = W == 4 ? 2 : panel / W;       // vectors of a tile of few rows
constexpr int block_rows = 96;                     // of x that one item computes: they stay in L2
constexpr int pass_rows = 768;                     // of x that are converted at once
constexpr int64_t block_steps = 1024;              // of a panel that one item keeps in L2
constexpr int64_t ahead_bytes = 6 << 10;           // of a panel that are fetched early
constexpr int64_t item_bytes = 32 << 10;           // of weight that are worth an item

// Rows [m, k] to be multiplied, and what is done to a row first.
struct Input {
  const float* x;     // [m, k], or [m, 2k] where it is gated
  const float* norm;  // [k]: `normalise` with it; or null
  float eps;
  int32_t gate;  // `gate` with this activation; or -1

  const float* row(int64_t r, int64_t k, float* scratch) const {
    if (gate >= 0) {
      weir::gate(x + r * 2 * k, k, gate, scratch);
    } else if (norm) {
      normalise(x + r * k, norm, k, eps, scratch);
    } else {
      return x + r * k;
    }
    return scratch;
  }
};

struct Call {
  const Linear& w;
  const float* residual;  // [m, width], or null
  float* out;
  int64_t width, steps;  // `width`: floats from a row of out, and of the residual, to the next
};

// Outputs [row, row + Rows) x [first + lane, first + lane + Vectors * W) over steps [from, to); `w` is
// the panel of outputs from `first` on. Between blocks of steps the sums rest in `out`; bias and
// residual come with the last.
template <class Kind, int Rows, int Vectors>
void tile(const Call& call, const uint32_t* x, const uint32_t* w, const uint32_t* soon, int64_t row,
          int64_t first, int64_t lane, int64_t from, int64_t to) {
  constexpr int stride = Kind::stride, share = stride * Vectors * W / panel;  // of what is fetched
  const int64_t n = call.w.n, column = first + lane;
  F acc[Rows][Vectors] = {};
  if (from > 0)
    for (int r = 0; r < Rows; ++r)
      for (int v = 0; v < Vectors; ++v) {
        const int64_t c = column + v * W;
        if (c < n) acc[r][v] = load(call.out + (row + r) * call.width + c, n - c);
      }
  for (int64_t s = from; s < to; ++s) {
    for (int i = 0; i < share; i += 16)
      __builtin_prefetch(soon + s * stride + lane * stride / panel + i);
    Kind::step(x + s * Rows * Kind::dwords, w + s * stride, lane, acc);
  }
  const bool last = to == call.steps;
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < Vectors; ++v) {
      const int64_t c = column + v * W, at = (row + r) * call.width + c;
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
                int64_t row, int64_t first, int64_t from, int64_t to) {
  constexpr int Vectors = 2 * Rows <= Kind::max_rows ? wide : 2;
  for (int v = 0; v < panel / W; v += Vectors)
    tile<Kind, Rows, Vectors>(call, x, w, soon, row, first, v * W, from, to);
}

template <class Kind, int... Rows>
constexpr auto tiles(std::integer_sequence<int, Rows...>) {
  struct Table { decltype(&tile_panel<Kind, 1>) of[sizeof...(Rows)]; };
  return Table{{tile_panel<Kind, Rows + 1>...}};
}

// Rows [0, m) of x cut into tiles whose sizes differ by at most one.
struct Tiling {
  int64_t m, count;
  Tiling(int64_t m, int64_t most) : m(m), count(ceil_div(m, most)) {}
  int64_t start(int64_t tile) const { return m * tile / count; }
};

// Rows [first, last), interleaved: for each step the dwords of every row.
template <class Kind>
void convert(const Input& input, int64_t first, int64_t last, int64_t k, int64_t steps, uint32_t* out) {
  static thread_local Scratch scratch;
  const int64_t rows = last - first;
  float* changed = scratch.get(k + steps * Kind::dwords);
  uint32_t* row = reinterpret_cast<uint32_t*>(changed + k);
  for (int64_t r = 0; r < rows; ++r) {
    Kind::convert(input.row(first + r, k, changed), k, rows == 1 ? out : row);
    for (int64_t s = 0; rows > 1 && s < steps; ++s)
      std::memcpy(out + (s * rows + r) * Kind::dwords, row + s * Kind::dwords, 4 * Kind::dwords);
  }
}

template <class Kind>
void multiply(const Linear& w, const Input& input, int64_t start, int64_t m, const float* residual,
              float* out, int64_t width) {
  static constexpr auto table = tiles<Kind>(std::make_integer_sequence<int, Kind::max_rows>());
  constexpr int stride = Kind::stride, ahead = ahead_bytes / 4 / stride;
  const int64_t steps = ceil_div(w.k, Kind::depth), panels = ceil_div(w.n, panel);
  const uint32_t* weight = static_cast<const uint32_t*>(w.weight);
  const Call call{w, residual, out, width, steps};
  const Tiling tiling(m, Kind::max_rows);
  static thread_local Scratch scratch;
  uint32_t* ready = reinterpret_cast<uint32_t*>(scratch.get(m * steps * Kind::dwords));
  const auto rows_at = [&](int64_t t) { return ready + tiling.start(t) * steps * Kind::dwords; };

  parallel_ranges(tiling.count, ceil_div(1 << 15, Kind::max_rows * w.k), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      convert<Kind>(input, start + tiling.start(t), start + tiling.start(t + 1), w.k, steps, rows_at(t));
  });

  const int64_t blocks = ceil_div(m, block_rows);
  const int64_t grain = ceil_div(item_bytes, 4 * stride * steps * ceil_div(m, blocks));
  const int64_t groups = std::clamp<int64_t>(panels / grain, 1, ceil_div(8 * threads(), blocks));
  parallel(blocks * groups, [&](int64_t item) {
    const int64_t block = item / groups, group = item % groups;
    const int64_t first = tiling.count * block / blocks, last = tiling.count * (block + 1) / blocks;
    for (int64_t from = 0; from < steps; from += block_steps) {
      const int64_t to = std::min(steps, from + block_steps);
      for (int64_t p = panels * group / groups; p < panels * (group + 1) / groups; ++p)
        for (int64_t t = first; t < last; ++t) {
          const int64_t row = tiling.start(t), rows = tiling.start(t + 1) - row;
          const uint32_t* at = weight + p * steps * stride;
          // the first tile meets the panel in memory; the last has time to fetch the next panel
          const uint32_t* soon = at + stride * (t > first && t == last - 1 ? steps : ahead);
          table.of[rows - 1](call, rows_at(t), at, soon, row, p * panel, from, to);
        }
    }
  });
}

}  // namespace
}  // namespace weir

extern "C" {

// out [m, n] = x [m, k] @ weight.T + bias + residual [m, n] or null, rows of both `width` floats apart;
// `norm`, `eps` and `gate` as in `Input`.
void weir_linear(const weir::Linear* w, const float* x, int64_t m, const float* norm, float eps,
                 int32_t gate, const float* residual, float* out, int64_t width) {
  using namespace weir;
  launch([=] {
    const Input input{x, norm, eps, gate};
    with(w->kind, [&](auto as) {
      for (int64_t row = 0; row < m; row += pass_rows) {
        const int64_t rows = std::min<int64_t>(pass_rows, m - row);
        const float* add = residual ? residual + row * width : nullptr;
        multiply<decltype(as)>(*w, input, row, rows, add, out + row * width, width);
      }
    });
  });
}
}
