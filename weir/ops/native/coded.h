// Keys and values of 8 and 4 bits in groups of 64; the format is ops/coded.py's.
#pragma once

#include <cmath>

#include "simd.h"

namespace weir {

constexpr int64_t group_numbers = 64;

struct Int8 {
  uint16_t scale;
  int8_t codes[64];
};

struct Int4 {
  uint16_t low, scale;
  uint16_t words[16];  // nibble n of word j is number 16 n + j
};

template <class T>
constexpr int64_t numbers = std::is_same_v<T, Int8> || std::is_same_v<T, Int4> ? group_numbers : 1;
template <class T>
constexpr int step = numbers<T> > 1 ? 4 : 2;  // vectors to read at once

inline float from_bf16(uint16_t bits) {
  const uint32_t wide = uint32_t{bits} << 16;
  float x;
  std::memcpy(&x, &wide, sizeof x);
  return x;
}

inline uint16_t to_bf16(float x) {
  bf16 out[W];
  store(out, splat(x));
  return out[0].bits;
}

// Numbers [at, at + Vectors * W) of a group.
template <int Vectors>
inline void read(const Int8& group, int64_t at, F* out) {
  const F scale = as_float(splat_bits(uint32_t{group.scale} << 16));
  for (int i = 0; i < Vectors; ++i)
    out[i] = __builtin_convertvector(widen(load_as<S8>(group.codes + at + i * W)), F) * scale;
}

template <int Vectors>
inline void read(const Int4& group, int64_t at, F* out) {
  const U both = splat_bits(load_as<uint32_t>(&group.low));
  const F low = as_float(both << 16), scale = as_float(both & 0xffff0000u);
#if defined(__AVX512F__)
  const F table = fma(__builtin_convertvector(lanes(), F), scale, low);
  const U words = widen(load_as<U16>(group.words)) >> uint32_t(at / 4);
  for (int i = 0; i < Vectors; ++i)  // the index is the last four bits
    out[i] = (F)_mm512_permutexvar_ps((__m512i)(words >> 4 * i), (__m512)table);
#else
  for (int i = 0; i < Vectors; ++i, at += W) {
    const U words = widen(load_as<U16>(group.words + at % 16)) >> uint32_t(at / 16 * 4);
    out[i] = fma(__builtin_convertvector((I)(words & 15), F), scale, low);
  }
#endif
}

// The nearest of the steps from `least` to `most`; 0 for what is not a number.
inline float nearest(float steps, float least, float most) {
  return std::nearbyint(std::min(std::max(steps == steps ? steps : 0.0f, least), most));
}

inline float spoilt(const float* x) {  // 0, or NaN if x holds what is not finite
  float sum = 0;
  for (int64_t i = 0; i < group_numbers; ++i) sum += x[i] * 0;
  return sum;
}

inline void store(Int8& group, const float* x) {
  float most = 0;
  for (int64_t i = 0; i < group_numbers; ++i) most = std::max(most, std::fabs(x[i]));
  group.scale = to_bf16(most / 127 + spoilt(x));
  const float scale = from_bf16(group.scale), step = scale == 0 ? 1 : scale;
  for (int64_t i = 0; i < group_numbers; ++i) group.codes[i] = int8_t(nearest(x[i] / step, -127, 127));
}

inline void store(Int4& group, const float* x) {
  float least = x[0], most = x[0];
  for (int64_t i = 1; i < group_numbers; ++i) least = std::min(least, x[i]), most = std::max(most, x[i]);
  group.low = to_bf16(least + spoilt(x));
  const float low = from_bf16(group.low);
  group.scale = to_bf16((most - low) / 15);
  const float scale = from_bf16(group.scale), step = scale == 0 ? 1 : scale;
  std::fill(group.words, group.words + 16, 0);
  for (int64_t i = 0; i < group_numbers; ++i)
    group.words[i % 16] |= uint16_t(nearest((x[i] - low) / step, 0, 15)) << i / 16 * 4;
}

}  // namespace weir
