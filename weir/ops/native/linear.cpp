// Linear layers over packed weights.
//
// A weight [n, k] is stored in panels of 32 rows; a panel is a sequence of steps, each of one or more
// records of 32 dwords, one a row. A dword holds one float32 of its row, or two bfloat16 that follow
// one another along k, or what `Grouped` says. So a panel is read from front to back in whole cache
// lines, and a register holds different outputs, never parts of one sum: an output is one chain of
// additions over k, the same for any number of rows of x.
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
constexpr int tile_rows = W == 16 ? 12 : 6;        // of x in a register tile, at most
constexpr int wide = W == 4 ? 2 : panel / W;       // vectors of a tile of few rows
constexpr int block_rows = 96;                     // of x that one item computes: they stay in L2
constexpr int pass_rows = 768;                     // of x that are converted at once
constexpr int64_t block_steps = 1024;              // of a panel that one item keeps in L2
constexpr int64_t ahead_bytes = 6 << 10;           // of a panel that are fetched early
constexpr int64_t item_bytes = 32 << 10;           // of weight that are worth an item

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How a step multiplies: `x` are `dwords` dwords of one row of the converted x.
struct Float32 {
  using Weight = float;
  static constexpr int dwords = 1, depth = 1, records = 1, max_rows = tile_rows;
  static float value(const uint32_t* at, int64_t) { return load_as<float>(at); }
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

inline float bf16_value(uint32_t bits) {
  bits <<= 16;
  return load_as<float>(&bits);
}

struct Bfloat16Widened {  // a bfloat16 is the upper half of a float32
  using Weight = bf16;
  static constexpr int dwords = 2, depth = 2, records = 1, max_rows = tile_rows;
  static float value(const uint32_t* at, int64_t d) { return bf16_value(*at >> (16 * d)); }
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
  static constexpr int dwords = 1, depth = 2, records = 1, max_rows = tile_rows;
  static float value(const uint32_t* at, int64_t d) { return bf16_value(*at >> (16 * d)); }
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

// Weights of 4 or 8 bits in groups of 32 along k: w = scale * code + offset, the code unsigned. A step
// is a group: one record of scales and offsets (float16 both, the scale in the lower half), then
// records of codes. x is rounded to 8 bits, group by group, so that the products are integers, whose
// sum over a group is exact. A row of x has, for each group, 32 codes, its scale and its scaled sum.
constexpr int group = 32;

inline I dot4(I acc, U codes, int32_t x) {  // acc + 4 unsigned bytes times 4 signed ones
#if defined(__AVX512VNNI__)
  return (I)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)codes, _mm512_set1_epi32(x));
#elif defined(__AVXVNNI__)
  return (I)_mm256_dpbusd_avx_epi32((__m256i)acc, (__m256i)codes, _mm256_set1_epi32(x));
#else
  for (int b = 0; b < 4; ++b)
    acc += (I)((codes >> (8 * b)) & 255) * int32_t(int8_t(uint32_t(x) >> (8 * b)));
  return acc;
#endif
}

template <int Bits>
struct Grouped {
  using Weight = uint8_t;
  static constexpr int dwords = group / 4 + 2, depth = group, records = 1 + Bits;
  static constexpr int max_rows = tile_rows / 2;

  static float value(const uint32_t* at, int64_t d) {
    const uint32_t dword = at[(1 + d / (group / Bits)) * panel];
    const int64_t shift = 8 * (d % 4) + (Bits == 4 ? d / 4 % 2 * 4 : 0);
    const F scale = from_fp16(splat_bits(*at & 0xffff)), offset = from_fp16(splat_bits(*at >> 16));
    return scale[0] * float((dword >> shift) & ((1 << Bits) - 1)) + offset[0];
  }

  static void convert(const float* x, int64_t k, uint32_t* out) {
    for (int64_t i = 0; i < k; i += group, out += dwords) {
      F most = {};
      for (int j = 0; j < group; j += W) {
        const F v = load(x + i + j);
        most = max(most, max(v, -v));
      }
      const float scale = max_lanes(most)[0] / 127.0f, inverse = scale > 0 ? 1.0f / scale : 0.0f;
      const F magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
      int8_t* codes = reinterpret_cast<int8_t*>(out);
      F sum = {};
      for (int j = 0; j < group; j += W) {
        const F whole = fma(load(x + i + j), splat(inverse), magic);
        const S8 code = __builtin_convertvector((I)whole - (I)magic, S8);
        std::memcpy(codes + j, &code, sizeof code);
        sum += whole - magic;
      }
      const float scaled = scale * sum_lanes(sum)[0];
      std::memcpy(out + group / 4, &scale, 4);
      std::memcpy(out + group / 4 + 1, &scaled, 4);
    }
  }

  template <int Rows, int Vectors>
  static void step(const uint32_t* x, const uint32_t* w, F (&acc)[Rows][Vectors]) {
    I sum[Rows][Vectors] = {};
    for (int j = 0; j < Bits; ++j) {
      for (int v = 0; v < Vectors; ++v) {
        const U codes = load_as<U>(w + (1 + j) * panel + v * W);
        for (int r = 0; r < Rows; ++r) {
          const uint32_t* row = x + r * dwords;
          if constexpr (Bits == 4) {
            sum[r][v] = dot4(sum[r][v], codes & 0x0f0f0f0fu, int32_t(row[2 * j]));
            sum[r][v] = dot4(sum[r][v], (codes >> 4) & 0x0f0f0f0fu, int32_t(row[2 * j + 1]));
          } else {
            sum[r][v] = dot4(sum[r][v], codes, int32_t(row[j]));
          }
        }
      }
    }
    for (int v = 0; v < Vectors; ++v) {
      const U pair = load_as<U>(w + v * W);
      const F scale = from_fp16(pair & 0xffff), offset = from_fp16(pair >> 16);
      for (int r = 0; r < Rows; ++r) {
        const uint32_t* row = x + r * dwords;
        const F of_x = splat(load_as<float>(row + group / 4));
        const F of_sum = splat(load_as<float>(row + group / 4 + 1));
        acc[r][v] = fma(__builtin_convertvector(sum[r][v], F) * scale, of_x, acc[r][v]);
        acc[r][v] = fma(offset, of_sum, acc[r][v]);
      }
    }
  }
};

enum Kind : int32_t { float32, bfloat16, codes4, codes8 };

// What `weir_linear` gets; the caller keeps it alive and equal to ctypes' declaration.
struct Linear {
  const void* weight;
  const float* bias;  // [n], or null
  int64_t n, k;
  int32_t kind;
};

// Call f with the class of a kind.
template <class Body>
auto with(int32_t kind, const Body& body) {
  switch (kind) {
    case bfloat16: return body(Bfloat16{});
    case codes4: return body(Grouped<4>{});
    case codes8: return body(Grouped<8>{});
    default: return body(Float32{});
  }
}

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
    for (int v = 0; v < Kind::records * Vectors * W; v += 16)
      __builtin_prefetch(soon + s * Kind::records * panel + v);
    Kind::step(x + s * Rows * Kind::dwords, w + s * Kind::records * panel, acc);
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
  constexpr int Vectors = 2 * Rows <= Kind::max_rows ? wide : 2;
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
  Tiling(int64_t m, int64_t most) : m(m), count(ceil_div(m, most)) {}
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
  static constexpr auto table = tiles<Kind>(std::make_integer_sequence<int, Kind::max_rows>());
  constexpr int stride = Kind::records * panel, ahead = ahead_bytes / 4 / stride;
  const int64_t steps = ceil_div(w.k, Kind::depth), panels = ceil_div(w.n, panel);
  const uint32_t* weight = static_cast<const uint32_t*>(w.weight);
  const Call call{w, residual, out, steps};
  const Tiling tiling(m, Kind::max_rows);
  static thread_local Scratch scratch;
  uint32_t* ready = reinterpret_cast<uint32_t*>(scratch.get(m * steps * Kind::dwords));
  const auto rows_at = [&](int64_t t) { return ready + tiling.start(t) * steps * Kind::dwords; };

  parallel_ranges(tiling.count, ceil_div(1 << 15, Kind::max_rows * w.k), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t row = tiling.start(t);
      convert<Kind>(x + row * w.k, tiling.start(t + 1) - row, w.k, steps, rows_at(t));
    }
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

// codes [n, k] and pairs [n, k / 32] → panels, 8 codes of a row or 4 to a dword.
template <int Bits>
void pack_codes(const uint8_t* codes, const uint32_t* pairs, int64_t n, int64_t k, uint32_t* out) {
  constexpr int records = Grouped<Bits>::records;
  const int64_t groups = k / group;
  parallel_ranges(ceil_div(n, panel), 4, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p)
      for (int64_t g = 0; g < groups; ++g)
        for (int64_t c = 0; c < panel; ++c) {
          const int64_t row = p * panel + c;
          uint32_t* at = out + (p * groups + g) * records * panel + c;
          at[0] = row < n ? pairs[row * groups + g] : 0;
          for (int j = 0; j < Bits; ++j) {
            uint32_t dword = 0, next = 0;
            const uint8_t* from = codes + row * k + g * group + j * (group / Bits);
            if (row < n) std::memcpy(&dword, from, 4);
            if (row < n && Bits == 4) std::memcpy(&next, from + 4, 4);
            at[(1 + j) * panel] = dword | next << 4;
          }
        }
  });
}

// Row `row` of a weight as float32 [k].
template <class Kind>
void unpack_row(const Linear& w, int64_t row, float* out) {
  const int64_t steps = ceil_div(w.k, Kind::depth), stride = Kind::records * panel;
  const uint32_t* at =
      static_cast<const uint32_t*>(w.weight) + (row / panel) * steps * stride + row % panel;
  for (int64_t s = 0; s < steps; ++s, at += stride)
    for (int64_t d = 0; d < Kind::depth && s * Kind::depth + d < w.k; ++d)
      out[s * Kind::depth + d] = Kind::value(at, d);
}

}  // namespace
}  // namespace weir

extern "C" {

// Bytes of a packed weight [n, k].
int64_t weir_packed_bytes(int64_t n, int64_t k, int32_t kind) {
  using namespace weir;
  return with(kind, [&](auto as) {
    return 4 * as.records * panel * ceil_div(n, panel) * ceil_div(k, as.depth);
  });
}

// weight [n, k], float32 or bfloat16 → out, `weir_packed_bytes` of it.
void weir_pack(const void* weight, int64_t n, int64_t k, int32_t kind, void* out) {
  using namespace weir;
  if (kind == bfloat16)
    pack<Bfloat16>(static_cast<const bf16*>(weight), n, k, static_cast<bf16*>(out));
  else
    pack<Float32>(static_cast<const float*>(weight), n, k, static_cast<float*>(out));
}

// codes [n, k] and, for each group of 32, float16 scale and offset [n, k / 32, 2] → out.
void weir_pack_codes(const uint8_t* codes, const void* pairs, int64_t n, int64_t k, int32_t kind,
                     void* out) {
  using namespace weir;
  (kind == codes4 ? pack_codes<4> : pack_codes<8>)(
      codes, static_cast<const uint32_t*>(pairs), n, k, static_cast<uint32_t*>(out));
}

// Rows `ids` [count] of the weight → out float32 [count, k].
void weir_rows(const weir::Linear* w, const int64_t* ids, int64_t count, float* out) {
  using namespace weir;
  with(w->kind, [&](auto as) {
    parallel_ranges(count, 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        unpack_row<decltype(as)>(*w, ids[i], out + i * w->k);
    });
  });
}

// out [m, n] = x [m, k] @ weight.T + bias + residual [m, n] or null.
void weir_linear(const weir::Linear* w, const float* x, int64_t m, const float* residual, float* out) {
  using namespace weir;
  with(w->kind, [&](auto as) {
    for (int64_t row = 0; row < m; row += pass_rows) {
      const int64_t rows = std::min<int64_t>(pass_rows, m - row);
      const float* add = residual ? residual + row * w->n : nullptr;
      multiply<decltype(as)>(*w, x + row * w->k, rows, add, out + row * w->n);
    }
  });
}

// Whether codes meet 8-bit products in hardware; without them bfloat16 is faster.
int32_t weir_has_byte_products() {
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
  return 1;
#else
  return 0;
#endif
}
}
