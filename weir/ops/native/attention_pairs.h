// The tile of attention_tile.h with products of bfloat16 pairs: keys are met where they lie, values
// are interleaved by pairs of keys, weights are rounded. Only for queries of bfloat16.
#pragma once

#if defined(__AVX512BF16__)

#include "attention_tile.h"
#include "pool.h"

namespace weir {

constexpr int64_t longest_head = 512;

inline bool in_pairs(const Call& call) {
  const bool bf16 = call.q_type == bfloat16 && call.type == bfloat16;
  return bf16 && call.dim % 32 == 0 && call.dim <= longest_head;
}

inline F dot_pairs(F sum, __m512i a, __m512i b) {
  return (F)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

// Products of one row with W keys. q [dim].
__attribute__((always_inline)) inline F dots(const bf16* q, const bf16* const* keys, int64_t dim) {
  F acc[W] = {};
  for (int64_t d = 0; d < dim; d += 32) {
    const __m512i part = _mm512_loadu_si512(q + d);
    for (int i = 0; i < W; ++i) acc[i] = dot_pairs(acc[i], part, _mm512_loadu_si512(keys[i] + d));
  }
  return transpose_sum(acc);
}

// Values of a tile as [tile_keys / 2, dim, 2]: for each dimension those of two keys side by side.
// Meanwhile the keys and values of the next tile are fetched, a few at a time.
inline void interleave(const bf16* const* values, int64_t dim, bf16* out, const bf16* const* next,
                       int64_t value) {
  alignas(64) static constexpr struct Order {
    uint16_t low[32] = {}, high[32] = {};
    constexpr Order() {
      for (int i = 0; i < 16; ++i) {
        low[2 * i] = i, low[2 * i + 1] = 32 + i;
        high[2 * i] = 16 + i, high[2 * i + 1] = 48 + i;
      }
    }
  } order;
  const __m512i low = _mm512_load_si512(order.low), high = _mm512_load_si512(order.high);
  for (int i = 0; i < tile_keys; i += 2, out += 2 * dim)
    for (int64_t d = 0; d < dim; d += 32) {
      for (int n = i; n < i + 2; ++n) {
        __builtin_prefetch(next[n] + d);
        __builtin_prefetch(next[n] + value + d);
      }
      const __m512i a = _mm512_loadu_si512(values[i] + d);
      const __m512i b = _mm512_loadu_si512(values[i + 1] + d);
      _mm512_store_si512(out + 2 * d, _mm512_permutex2var_epi16(a, low, b));
      _mm512_store_si512(out + 2 * d + 32, _mm512_permutex2var_epi16(a, high, b));
    }
}

// o [Rows, padded] = o * factor + p [Rows, tile_keys] @ v, columns [d, d + Vectors * W).
// p: weights of two keys a word. v: as `interleave` leaves them.
template <int Rows, int Vectors>
inline void accumulate_pairs(const int32_t* p, const bf16* v, const float* factor, int64_t dim,
                             float* o) {
  F acc[Rows][Vectors];
  for (int r = 0; r < Rows; ++r)
    for (int c = 0; c < Vectors; ++c) acc[r][c] = load(o + r * dim + c * W) * splat(factor[r]);
  for (int i = 0; i < tile_keys / 2; ++i, v += 2 * dim) {
    __m512i value[Vectors];
    for (int c = 0; c < Vectors; ++c) value[c] = _mm512_load_si512(v + 2 * c * W);
    for (int r = 0; r < Rows; ++r) {
      const __m512i weight = _mm512_set1_epi32(p[r * tile_keys / 2 + i]);
      for (int c = 0; c < Vectors; ++c) acc[r][c] = dot_pairs(acc[r][c], weight, value[c]);
    }
  }
  for (int r = 0; r < Rows; ++r)
    for (int c = 0; c < Vectors; ++c) store(o + r * dim + c * W, acc[r][c]);
}

template <int Most = 4>
void accumulate_rows(const int32_t* p, const bf16* v, const float* factor, int64_t rows, int64_t dim,
                     float* o) {
  int64_t r = 0;
  for (; r + Most <= rows; r += Most) {
    int64_t d = 0;
    for (; d + 4 * W <= dim; d += 4 * W)
      accumulate_pairs<Most, 4>(p + r * tile_keys / 2, v + 2 * d, factor + r, dim, o + r * dim + d);
    for (; d < dim; d += 2 * W)
      accumulate_pairs<Most, 2>(p + r * tile_keys / 2, v + 2 * d, factor + r, dim, o + r * dim + d);
  }
  if constexpr (Most > 1)
    if (r < rows)
      accumulate_rows<Most - 1>(p + r * tile_keys / 2, v, factor + r, rows - r, dim, o + r * dim);
}

// The softmax of a unit's rows over keys [from, to), all of one span, as attention.cpp's.
inline void attend_pairs(const Call& call, const Unit& unit, int64_t from, int64_t to, float* o,
                         float* top, float* sum) {
  alignas(64) static const bf16 zeros[longest_head] = {};
  static thread_local Scratch scratch;
  const int64_t dim = call.dim, group = call.group(), rows = unit.queries * group;
  const int64_t value = value_offset(call);
  const bf16* q = static_cast<const bf16*>(call.q) + unit.token * call.q_stride + unit.head * group * dim;
  float* memory = scratch.get(tile_keys * (dim + rows) + 2 * rows * tile_keys);
  bf16* v = reinterpret_cast<bf16*>(memory);
  float *p = memory + tile_keys * dim, *factor = p + tile_keys * rows;
  int32_t* pairs = reinterpret_cast<int32_t*>(factor + W * rows);
  const bf16 *keys[tile_keys], *values[tile_keys];
  for (int64_t j = from / tile_keys * tile_keys; j < to; j += tile_keys) {
    if (from > j || to < j + tile_keys) {
      std::fill(keys, keys + tile_keys, zeros);
      std::fill(values, values + tile_keys, zeros);
    }
    each_key<bf16>(call, unit, std::max(from, j), std::min(to, j + tile_keys),
                   [&](int64_t at, const bf16* key) { keys[at - j] = key, values[at - j] = key + value; });
    const bf16* next[tile_keys];
    std::fill(next, next + tile_keys, zeros);
    each_key<bf16>(call, unit, j + tile_keys, std::min(unit.to, j + 2 * tile_keys),
                   [&](int64_t at, const bf16* key) { next[at - j - tile_keys] = key; });
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t position = unit.position + r / group, highest = std::min(position, to - 1);
      const int64_t lowest = call.window > 0 ? position - call.window + 1 : 0;
      const bf16* row = q + r / group * call.q_stride + r % group * dim;
      float* weights = p + r * tile_keys;
      score_row(call, j, lowest, highest, weights,
                [&](int i) { return dots(row, keys + i, dim) * splat(call.scale); });
      factor[r] = softmax_row(weights, top + r * W, sum + r * W);
      const __m512bh rounded = _mm512_cvtne2ps_pbh((__m512)load(weights + W), (__m512)load(weights));
      _mm512_storeu_si512(pairs + r * tile_keys / 2, (__m512i)rounded);
    }
    interleave(values, dim, v, next, value);
    accumulate_rows(pairs, v, factor, rows, dim, o);
  }
}

}  // namespace weir

#endif
