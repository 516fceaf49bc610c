// How weights of linear layers are stored, and how a step of them meets x.
//
// A weight [n, k] is stored in panels of 32 rows; a panel is a sequence of steps of `stride` dwords.
// Most are records of 32, one a row, which holds one float32 of its row, or two bfloat16 that follow
// one another along k, or what `Grouped` says. So a panel is read from front to back in whole cache
// lines, and a register holds different outputs, never parts of one sum: an output is one chain of
// additions over k, the same for any number of rows of x.
#pragma once

#include "simd.h"

namespace weir {

constexpr int panel = 32;                  // outputs
constexpr int tile_rows = W == 16 ? 12 : 6;  // of x in a register tile, at most

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How a step multiplies rows [lane, lane + Vectors * W) of a panel: `x` are `dwords` dwords of each row
// of the converted x. `values` are those of one row of the weight in a step.
struct Float32 {
  using Weight = float;
  static constexpr int dwords = 1, depth = 1, stride = panel, max_rows = tile_rows;
  static void values(const uint32_t* at, int64_t row, float* out) { std::memcpy(out, at + row, 4); }
  static void convert(const float* x, int64_t k, uint32_t* out) { std::memcpy(out, x, 4 * k); }
  template <int Rows, int Vectors>
  static void step(const uint32_t* x, const uint32_t* w, int64_t lane, F (&acc)[Rows][Vectors]) {
    F weight[Vectors];
    for (int v = 0; v < Vectors; ++v) weight[v] = load_as<F>(w + lane + v * W);
    for (int r = 0; r < Rows; ++r) {
      const F value = splat(load_as<float>(x + r));
      for (int v = 0; v < Vectors; ++v) acc[r][v] = fma(value, weight[v], acc[r][v]);
    }
  }
};

inline void bf16_values(uint32_t pair, float* out) {
  const uint32_t two[] = {pair << 16, pair & 0xffff0000u};
  std::memcpy(out, two, sizeof two);
}

struct Bfloat16Widened {  // a bfloat16 is the upper half of a float32
  using Weight = bf16;
  static constexpr int dwords = 2, depth = 2, stride = panel, max_rows = tile_rows;
  static void values(const uint32_t* at, int64_t row, float* out) { bf16_values(at[row], out); }
  static void convert(const float* x, int64_t k, uint32_t* out) {
    std::memcpy(out, x, 4 * k);
    if (k % 2) out[k] = 0;
  }
  template <int Rows, int Vectors>
  static void step(const uint32_t* x, const uint32_t* w, int64_t lane, F (&acc)[Rows][Vectors]) {
    U pair[Vectors];
    for (int v = 0; v < Vectors; ++v) pair[v] = load_as<U>(w + lane + v * W);
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
  static constexpr int dwords = 1, depth = 2, stride = panel, max_rows = tile_rows;
  static void values(const uint32_t* at, int64_t row, float* out) { bf16_values(at[row], out); }
  static void convert(const float* x, int64_t k, uint32_t* out) {
    bf16* pairs = reinterpret_cast<bf16*>(out);
    for (int64_t i = 0; i < k; i += W) store(pairs + i, load(x + i, k - i), k - i);
    if (k % 2) pairs[k].bits = 0;
  }
  template <int Rows, int Vectors>
  static void step(const uint32_t* x, const uint32_t* w, int64_t lane, F (&acc)[Rows][Vectors]) {
    __m512bh weight[Vectors];
    for (int v = 0; v < Vectors; ++v) weight[v] = load_as<__m512bh>(w + lane + v * W);
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

// Weights of 4 to 8 bits in groups of 32 along k. A step is a group: first its scales, float16, of
// all rows, then records of codes, bits above the fourth in records of their own. x is rounded to 8
// bits, group by group, so that the products are integers, whose sum over a group is exact. A row of
// x has, for each group, 32 codes, their scale, and what `Scales` says.
constexpr int group = 32;

enum class Scales {
  offset,     // w = scale * code + offset, a dword of both a row; the scaled sum of x
  symmetric,  // w = scale * (code - zero), zero half of the range; the sum of x times -zero
  halves,     // as symmetric, a scale and a sum for each half of the group
};

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
constexpr bool unsigned_bytes = true;
#else
constexpr bool unsigned_bytes = false;  // codes of 8 bits are multiplied less their zero, as signed
#endif

// acc + 4 codes, one a byte, times 4 signed bytes
template <int Bits>
inline I dot4(I acc, U codes, int32_t x) {
#if defined(__AVX512VNNI__)
  return (I)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)codes, _mm512_set1_epi32(x));
#elif defined(__AVXVNNI__)
  return (I)_mm256_dpbusd_avx_epi32((__m256i)acc, (__m256i)codes, _mm256_set1_epi32(x));
#elif defined(__AVX512BW__)
  __m512i w = (__m512i)codes, v = _mm512_set1_epi32(x);
  if (Bits == 8) {
    v = _mm512_mask_sub_epi8(v, _mm512_movepi8_mask(w), _mm512_setzero_si512(), v);
    w = _mm512_abs_epi8(w);
  }
  return acc + (I)_mm512_madd_epi16(_mm512_maddubs_epi16(w, v), _mm512_set1_epi16(1));
#elif defined(__AVX2__)
  __m256i w = (__m256i)codes, v = _mm256_set1_epi32(x);
  if (Bits == 8) v = _mm256_sign_epi8(v, w), w = _mm256_abs_epi8(w);
  return acc + (I)_mm256_madd_epi16(_mm256_maddubs_epi16(w, v), _mm256_set1_epi16(1));
#else
  for (int b = 0; b < 4; ++b)
    acc += ((I)codes << (24 - 8 * b) >> 24) * int32_t(int8_t(uint32_t(x) >> (8 * b)));
  return acc;
#endif
}

template <class Body, int... At>
inline void unrolled(const Body& body, std::integer_sequence<int, At...>) {
  (body(std::integral_constant<int, At>{}), ...);
}

template <int Bits, Scales Form>
struct Grouped {
  using Weight = uint8_t;
  static constexpr int bits = Bits;
  static constexpr bool offset = Form == Scales::offset;
  static constexpr int halves = Form == Scales::halves ? 2 : 1, quads = group / 4;
  static constexpr int scales = Form == Scales::symmetric ? panel / 2 : panel;  // dwords
  static constexpr int dwords = quads + 1 + halves, depth = group, stride = scales + Bits * panel;
  static constexpr int max_rows = tile_rows / 2;
  static constexpr bool of_signed = Bits == 8 && !unsigned_bytes;
  static constexpr int zero = offset || of_signed ? 0 : 1 << (Bits - 1);

  // Codes 4 * quad to 4 * quad + 3, one a byte; `record(i)` has some dwords of the i-th.
  template <int quad, class Record>
  static auto codes(const Record& record) {
    if constexpr (Bits == 8) {
      return record(quad) ^ (of_signed ? 0x80808080u : 0u);
    } else {
      auto found = record(quad / 2) >> (quad % 2 * 4) & 0x0f0f0f0fu;
      if constexpr (Bits > 4) {
        constexpr int width = Bits - 4, fields = 8 / width, shift = 4 - quad % fields * width;
        const auto high = record(4 + quad / fields);
        found |= (shift > 0 ? high << shift : high >> -shift) & ((1u << width) - 1) * 0x10101010u;
      }
      return found;
    }
  }

  template <class Body>
  static void each_quad(const Body& body) {
    unrolled(body, std::make_integer_sequence<int, quads>());
  }

  static void values(const uint32_t* at, int64_t row, float* out) {
    float scale[2] = {};
    for (int half = 0; half < (Form == Scales::symmetric ? 1 : 2); ++half)
      scale[half] = from_fp16(splat_bits(half_at(at, row, half)))[0];
    each_quad([&](auto quad) {
      const uint32_t four = codes<quad()>([&](int i) { return at[scales + i * panel + row]; });
      for (int b = 0; b < 4; ++b) {
        const uint8_t code = four >> (8 * b);
        const float level = of_signed ? int8_t(code) : int(code) - zero;
        *out++ = offset ? scale[0] * level + scale[1] : scale[quad() * halves / quads] * level;
      }
    });
  }

  static uint32_t half_at(const uint32_t* at, int64_t row, int half) {
    constexpr int each = 2 * scales / panel;
    return reinterpret_cast<const uint16_t*>(at)[row * each + half];
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
      int8_t* bytes = reinterpret_cast<int8_t*>(out);
      F sum[halves] = {};
      for (int j = 0; j < group; j += W) {
        const F whole = fma(load(x + i + j), splat(inverse), magic);
        const S8 code = __builtin_convertvector((I)whole - (I)magic, S8);
        std::memcpy(bytes + j, &code, sizeof code);
        sum[j * halves / group] += whole - magic;
      }
      std::memcpy(out + quads, &scale, 4);
      for (int half = 0; half < halves; ++half) {
        const float total = sum_lanes(sum[half])[0], scaled = scale * total;
        if (offset) std::memcpy(out + quads + 1, &scaled, 4);
        else out[quads + 1 + half] = uint32_t(-zero * int32_t(total));
      }
    }
  }

  template <int Rows, int Vectors>
  static void step(const uint32_t* x, const uint32_t* w, int64_t lane, F (&acc)[Rows][Vectors]) {
    I sum[Rows][Vectors];
    each_quad([&](auto quad) {
      constexpr int part = quads / halves;
      for (int r = 0; quad % part == 0 && r < Rows; ++r)
        for (int v = 0; v < Vectors; ++v)
          sum[r][v] = offset ? I{} : int32_t(x[r * dwords + quads + 1 + quad / part]) - I{};
      for (int v = 0; v < Vectors; ++v) {
        const uint32_t* at = w + scales + lane + v * W;
        const U four = codes<quad()>([&](int i) { return load_as<U>(at + i * panel); });
        for (int r = 0; r < Rows; ++r)
          sum[r][v] = dot4<Bits>(sum[r][v], four, int32_t(x[r * dwords + quad]));
      }
      if constexpr (quad % part == part - 1) add(x, w, lane, quad / part, sum, acc);
    });
  }

  // acc + sums over a half times the scales of both sides
  template <int Rows, int Vectors>
  static void add(const uint32_t* x, const uint32_t* w, int64_t lane, int half,
                  const I (&sum)[Rows][Vectors], F (&acc)[Rows][Vectors]) {
    for (int v = 0; v < Vectors; ++v) {
      F scale, plus = {};
      if constexpr (Form == Scales::symmetric) {
        scale = load(reinterpret_cast<const fp16*>(w) + lane + v * W);
      } else {
        const U pair = load_as<U>(w + lane + v * W);
        scale = from_fp16(half ? pair >> 16 : pair & 0xffff);
        if (offset) plus = from_fp16(pair >> 16);
      }
      for (int r = 0; r < Rows; ++r) {
        const uint32_t* row = x + r * dwords + quads;
        const F of_x = splat(load_as<float>(row));
        acc[r][v] = fma(__builtin_convertvector(sum[r][v], F) * scale, of_x, acc[r][v]);
        if (offset) acc[r][v] = fma(plus, splat(load_as<float>(row + 1)), acc[r][v]);
      }
    }
  }
};

enum Kind : int32_t { float32, bfloat16, codes4, codes5, symmetric4, symmetric5, symmetric6, symmetric8 };

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
    case codes4: return body(Grouped<4, Scales::offset>{});
    case codes5: return body(Grouped<5, Scales::offset>{});
    case symmetric4: return body(Grouped<4, Scales::symmetric>{});
    case symmetric5: return body(Grouped<5, Scales::symmetric>{});
    case symmetric6: return body(Grouped<6, Scales::halves>{});
    case symmetric8: return body(Grouped<8, Scales::symmetric>{});
    default: return body(Float32{});
  }
}

}  // namespace weir
