// How weights of linear layers are stored, and how a step of them meets x.
//
// A weight [n, k] is stored in panels of 32 rows; a panel is a sequence of steps, each of one or more
// records of 32 dwords, one a row. A dword holds one float32 of its row, or two bfloat16 that follow
// one another along k, or what `Grouped` says. So a panel is read from front to back in whole cache
// lines, and a register holds different outputs, never parts of one sum: an output is one chain of
// additions over k, the same for any number of rows of x.
#pragma once

#include "simd.h"

namespace weir {

constexpr int panel = 32;                  // outputs
constexpr int tile_rows = W == 16 ? 12 : 6;  // of x in a register tile, at most

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

}  // namespace weir
