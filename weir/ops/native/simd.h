// One vector type for every instruction set: the compiler's vector extensions at the widest width
// that the target has, and intrinsics only where the extensions cannot say what is meant.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace weir {

#if defined(__AVX512F__)
constexpr int W = 16;  // floats in a vector
#elif defined(__AVX__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float F __attribute__((vector_size(4 * W)));
typedef int32_t I __attribute__((vector_size(4 * W)));
typedef uint32_t U __attribute__((vector_size(4 * W)));
typedef uint16_t U16 __attribute__((vector_size(2 * W)));
typedef int8_t S8 __attribute__((vector_size(W)));

template <class V, class T>
inline V load_as(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline F load(const float* p) { return load_as<F>(p); }
inline void store(float* p, F v) { std::memcpy(p, &v, sizeof v); }

// The first `bytes` of a vector, as many as it has; the rest is zero.
template <class V>
inline V load_bytes(const void* p, int64_t bytes) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  const uint64_t mask = _bzhi_u64(~uint64_t{0}, uint32_t(bytes));
  if constexpr (sizeof(V) == 64) return (V)_mm512_maskz_loadu_epi8(mask, p);
  if constexpr (sizeof(V) == 32) return (V)_mm256_maskz_loadu_epi8(uint32_t(mask), p);
#endif
  V v = {};
  std::memcpy(&v, p, bytes);
  return v;
}

// The first n floats, at least none and at most W; the rest of the vector is zero.
inline F load_part(const float* p, int64_t n) { return load_bytes<F>(p, 4 * std::clamp<int64_t>(n, 0, W)); }
inline F load(const float* p, int64_t n) { return n >= W ? load(p) : load_part(p, n); }

inline void store(float* p, F v, int64_t n) {
  std::memcpy(p, &v, n >= W ? sizeof v : 4 * n);
}

inline F splat(float x) { return x - F{}; }
inline F as_float(U x) { return (F)x; }
inline U as_bits(F x) { return (U)x; }
inline F select(I mask, F a, F b) { return (F)((mask & (I)a) | (~mask & (I)b)); }
inline F max(F a, F b) { return a > b ? a : b; }  // b where one of them is NaN, as in min
inline F min(F a, F b) { return a < b ? a : b; }

// One rounding wherever the hardware has it: results must not depend on what the optimiser fuses.
inline F fma(F a, F b, F c) {
#if defined(__AVX512F__)
  return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (F)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON)
  return (F)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

inline I lanes() {  // 0, 1, 2, ...
  I lane;
  for (int i = 0; i < W; ++i) lane[i] = i;
  return lane;
}

template <int... Lane>
inline F shuffle(F a, F b) {  // lanes of a are 0 to W - 1, those of b follow
#if defined(__clang__)
  return __builtin_shufflevector(a, b, Lane...);
#else
  return __builtin_shuffle(a, b, I{Lane...});
#endif
}

template <int Step, int... Lane>
inline F swap_lanes(F v, std::integer_sequence<int, Lane...>) {
  return shuffle<(Lane ^ Step)...>(v, v);
}
template <int Step>  // lane l has what lane l ^ Step had
inline F swap_lanes(F v) { return swap_lanes<Step>(v, std::make_integer_sequence<int, W>()); }

// In every lane, what `op` makes of all lanes of v.
template <int Step = W / 2, class Op, int... Lane>
inline F fold(F v, Op op, std::integer_sequence<int, Lane...> lanes) {
  if constexpr (Step == 0)
    return v;
  else
    return fold<Step / 2>(op(v, shuffle<((Lane + Step) % W)...>(v, v)), op, lanes);
}
inline F sum_lanes(F v) {
  return fold(v, [](F a, F b) { return a + b; }, std::make_integer_sequence<int, W>());
}
inline F max_lanes(F v) {
  return fold(v, [](F a, F b) { return max(a, b); }, std::make_integer_sequence<int, W>());
}

// e^x to about 1 ulp for x <= 88; exactly 0 below -87.3, exactly 1 at 0, NaN for NaN.
inline F exp(F x) {
  const F low = splat(-87.3f);
  const I gone = x < low;
  const F magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  F y = max(low, min(splat(88.0f), x));
  F n = fma(y, splat(1.44269504f), magic);
  I power = (I)n << 23;
  n -= magic;
  y = fma(n, splat(-0.693359375f), y);
  y = fma(n, splat(2.12194440e-4f), y);
  F p = splat(1.9875691500e-4f);
  p = fma(p, y, splat(1.3981999507e-3f));
  p = fma(p, y, splat(8.3334519073e-3f));
  p = fma(p, y, splat(4.1665795894e-2f));
  p = fma(p, y, splat(1.6666665459e-1f));
  p = fma(p, y, splat(5.0000001201e-1f));
  p = fma(p * y, y, y) + splat(1.0f);
  return (F)(((I)p + power) & ~gone);
}

inline F tanh(F x) { return splat(1.0f) - splat(2.0f) / (exp(x + x) + splat(1.0f)); }

// Reduced types in memory. Arithmetic is float32 everywhere but in the bf16 dot product.
struct bf16 { uint16_t bits; };
struct fp16 { uint16_t bits; };

inline U widen(U16 x) {
#if defined(__AVX512F__)
  return (U)_mm512_cvtepu16_epi32((__m256i)x);
#elif defined(__AVX2__)
  return (U)_mm256_cvtepu16_epi32((__m128i)x);
#else
  return __builtin_convertvector(x, U);
#endif
}

inline I widen(S8 x) {
#if defined(__AVX512F__)
  return (I)_mm512_cvtepi8_epi32((__m128i)x);
#elif defined(__AVX2__)
  int64_t all;
  std::memcpy(&all, &x, sizeof all);
  return (I)_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(all));
#else
  return __builtin_convertvector(x, I);
#endif
}

inline F from_bits(bf16, U16 x) { return as_float(widen(x) << 16); }

inline void store(bf16* p, F v) {  // to nearest, ties to even; a NaN stays one
  U x = as_bits(v);
  U rounded = (x + 0x7fff + ((x >> 16) & 1)) >> 16;
  U nan = (U)(v != v);
  U16 out = __builtin_convertvector((nan & ((x >> 16) | 0x40)) | (~nan & rounded), U16);
  std::memcpy(p, &out, sizeof out);
}

inline U splat_bits(uint32_t x) { return x - U{}; }

inline F from_fp16(U h) {  // float16 bits in the lower halves
#if defined(__AVX512F__)
  return (F)_mm512_cvtph_ps(_mm512_cvtepi32_epi16((__m512i)h));
#endif
  U magnitude = (h & 0x7fff) << 13;
  U finite = as_bits(as_float(magnitude) * splat(0x1p112f));  // right for subnormals too
  U special = (U)(magnitude >= 0x0f800000u);
  return as_float(finite | (special & 0x7f800000u) | (special & magnitude) | (h & 0x8000) << 16);
}

inline F from_bits(fp16, U16 x) {
#if defined(__AVX512F__)
  return (F)_mm512_cvtph_ps((__m256i)x);
#endif
  return from_fp16(widen(x));
}

inline void store(fp16* p, F v) {  // to nearest, ties to even; too large becomes infinity
  U x = as_bits(v);
  U a = x & 0x7fffffffu;
  U normal = (a + 0xfff + ((a >> 13) & 1) - (112u << 23)) >> 13;
  U tiny = as_bits(as_float(a) + splat(0.5f)) - 0x3f000000u;
  U special = 0x7c00 | ((U)(a > 0x7f800000u) & 0x200);
  U is_tiny = (U)(a < 0x38800000u), is_special = (U)(a >= 0x47800000u);
  U h = (is_special & special) | (~is_special & ((is_tiny & tiny) | (~is_tiny & normal)));
  U16 out = __builtin_convertvector(h | ((x >> 16) & 0x8000), U16);
  std::memcpy(p, &out, sizeof out);
}

template <class T>
inline F load(const T* p) { return from_bits(T{}, load_as<U16>(p)); }

// As above for elements of a reduced type.
template <class T>
inline F load_part(const T* p, int64_t n) {
  return from_bits(T{}, load_bytes<U16>(p, 2 * std::clamp<int64_t>(n, 0, W)));
}

template <class T>
inline F load(const T* p, int64_t n) { return n >= W ? load(p) : load_part(p, n); }

template <class T>
inline void store(T* p, F v, int64_t n) {
  if (n >= W) return store(p, v);
  T part[W];
  store(part, v);
  std::memcpy(p, part, sizeof(T) * n);
}

}  // namespace weir
