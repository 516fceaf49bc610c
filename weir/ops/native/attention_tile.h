// Arithmetic of attention: some rows of q (query x head of a group) meet a tile of 32 keys. What lies
// where in the pages is known here; which tiles, in what order and on which thread is not.
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>

#include "simd.h"

namespace weir {

constexpr int64_t span_keys = 256;  // keys of one online softmax; whole tiles
constexpr int tile_keys = 32;
constexpr float never = -std::numeric_limits<float>::infinity();

enum Type : int32_t { float32, bfloat16, float16 };

// body(p as a pointer to numbers of that type)
template <class Void, class Body>
inline void of_type(int32_t type, Void* p, const Body& body) {
  const auto as = [&](auto number) {
    using T = decltype(number);
    body(static_cast<std::conditional_t<std::is_const_v<Void>, const T, T>*>(p));
  };
  switch (type) {
    case float32: return as(float{});
    case bfloat16: return as(bf16{});
    default: return as(fp16{});
  }
}

// What `weir_attend` gets; equal to ctypes' declaration.
struct Call {
  const void* q;   // [T, heads, dim], tokens `q_stride` numbers apart
  const void* kv;  // [pages, 2, kv_heads, page, dim]
  const int32_t* q_start;
  const int32_t* kv_len;
  const int32_t* first;  // or null: kv_len - n
  const int32_t* table;  // [sequences, table_width]
  void* o;               // [T, heads, dim], of the type of q
  float* lse;            // [T, heads]
  int64_t q_stride, sequences, table_width, heads, kv_heads, dim, page;
  int64_t window;  // 0: none
  float scale;
  float softcap;  // 0: none
  int32_t type;   // of kv
  int32_t q_type;

  int64_t group() const { return heads / kv_heads; }
  int64_t padded() const { return (dim + W - 1) / W * W; }
};

// Queries of one sequence that meet the same keys together, for one kv head. Its rows are
// query x head of the group; keys [from, to) are seen by some of them.
struct Unit {
  int64_t sequence, token, queries, position, from, to, head;
  int64_t first_span() const { return from / span_keys; }
  int64_t spans() const { return to > from ? (to - 1) / span_keys - first_span() + 1 : 0; }
};

// Lane l of the result: the sum of a over pairs `Block` apart where l's bit `Block` is 0, of b else.
template <int Block, int... Lane>
inline F pair_sum(F a, F b, std::integer_sequence<int, Lane...>) {
  return shuffle<(Lane & Block ? Lane + W : Lane)...>(a, b) +
         shuffle<(Lane & Block ? Lane + W - Block : Lane + Block)...>(a, b);
}

// Lane i of the result is the sum of the lanes of a[i].
template <int Block = 1, int Count = W>
inline F transpose_sum(F* a) {
  if constexpr (Count == 1) {
    return a[0];
  } else {
    for (int i = 0; i < Count / 2; ++i)
      a[i] = pair_sum<Block>(a[2 * i], a[2 * i + 1], std::make_integer_sequence<int, W>());
    return transpose_sum<2 * Block, Count / 2>(a);
  }
}

// body(j, pointer to key j) for every key in [from, to); its value lies `value_offset` after it.
template <class T, class Body>
inline void each_key(const Call& call, const Unit& unit, int64_t from, int64_t to, const Body& body) {
  const int32_t* table = call.table + unit.sequence * call.table_width;
  for (int64_t j = from; j < to;) {
    const int64_t index = j / call.page, end = std::min(to, (index + 1) * call.page);
    const int64_t start = (table[index] * 2 * call.kv_heads + unit.head) * call.page;
    const T* key = static_cast<const T*>(call.kv) + (start + j - index * call.page) * call.dim;
    for (; j < end; ++j, key += call.dim) body(j, key);
  }
}

inline int64_t value_offset(const Call& call) { return call.kv_heads * call.page * call.dim; }

template <class T>
void prefetch(const Call& call, const Unit& unit, int64_t from, int64_t to) {
  constexpr int64_t line = 64 / sizeof(T);
  const int64_t value = value_offset(call);
  each_key<T>(call, unit, from, to, [&](int64_t, const T* key) {
    for (int64_t d = 0; d < call.dim; d += line) {
      __builtin_prefetch(key + d);
      __builtin_prefetch(key + value + d);
    }
  });
}

// Keys of [from, to) in the tile that starts at j, and their values, as float32; the others are zero.
// k: [padded / W, tile_keys, W], so that one dot product of W keys has constant strides.
// v: [tile_keys, padded].
template <class T>
void gather(const Call& call, const Unit& unit, int64_t j, int64_t from, int64_t to, float* k, float* v) {
  const int64_t dim = call.dim, padded = call.padded(), value = value_offset(call);
  if (from > j || to < j + tile_keys) std::fill(k, k + 2 * tile_keys * padded, 0.0f);
  each_key<T>(call, unit, std::max(from, j), std::min(to, j + tile_keys), [&](int64_t at, const T* key) {
    const int64_t i = at - j;
    for (int64_t d = 0; d < padded; d += W) {
      store(k + d * tile_keys + i * W, load(key + d, dim - d));
      store(v + i * padded + d, load(key + value + d, dim - d));
    }
  });
}

// Dot products of one row with W keys of a gathered tile.
__attribute__((always_inline)) inline F dots(const float* q, const float* k, int64_t padded) {
  F acc[W] = {};
  for (int64_t d = 0; d < padded; d += W) {
    const F part = load(q + d);
    for (int i = 0; i < W; ++i) acc[i] = fma(part, load(k + d * tile_keys + i * W), acc[i]);
  }
  return transpose_sum(acc);
}

// Scores of one row with the tile that starts at key j: p [tile_keys], -inf for keys outside
// [lowest, highest]. dot(i): the scaled products with its keys i to i + W - 1.
template <class Dot>
inline void score_row(const Call& call, int64_t j, int64_t lowest, int64_t highest, float* p,
                      const Dot& dot) {
  const bool whole = lowest <= j && j + tile_keys - 1 <= highest;
  for (int i = 0; i < tile_keys; i += W) {
    F s = dot(i);
    if (call.softcap > 0) s = splat(call.softcap) * tanh(s * splat(1.0f / call.softcap));
    if (!whole) {
      const I key = lanes() + int32_t(j + i);
      s = select((key >= int32_t(lowest)) & (key <= int32_t(highest)), s, splat(never));
    }
    store(p + i, s);
  }
}

// Scores of one row become weights exp(score - top); returns the factor by which what was summed
// before has to be scaled.
inline float softmax_row(float* p, float* top_, float* sum) {
  F best = load(p);
  for (int i = W; i < tile_keys; i += W) best = max(best, load(p + i));
  const F before = load(top_), top = max(before, max_lanes(best));
  // nothing seen yet: any finite number keeps -inf - top from being NaN
  const F base = select(top == splat(never), F{}, top);
  const F factor = top[0] == before[0] ? splat(1.0f) : exp(before - base);
  F total = load(sum) * factor;
  for (int i = 0; i < tile_keys; i += W) {
    const F weight = exp(load(p + i) - base);
    store(p + i, weight);
    total += weight;
  }
  store(top_, top);
  store(sum, total);
  return factor[0];
}

// o [Rows, padded] = o * factor + p [Rows, tile_keys] @ v, columns [d, d + Vectors * W).
template <int Rows, int Vectors>
inline void accumulate(const float* p, const float* v, const float* factor, int64_t count,
                       int64_t padded, float* o) {
  F acc[Rows][Vectors];
  for (int r = 0; r < Rows; ++r)
    for (int c = 0; c < Vectors; ++c) acc[r][c] = load(o + r * padded + c * W) * splat(factor[r]);
  for (int64_t i = 0; i < count; ++i) {
    F value[Vectors];
    for (int c = 0; c < Vectors; ++c) value[c] = load(v + i * padded + c * W);
    for (int r = 0; r < Rows; ++r) {
      const F weight = splat(p[r * tile_keys + i]);
      for (int c = 0; c < Vectors; ++c) acc[r][c] = fma(weight, value[c], acc[r][c]);
    }
  }
  for (int r = 0; r < Rows; ++r)
    for (int c = 0; c < Vectors; ++c) store(o + r * padded + c * W, acc[r][c]);
}

// The same for all rows and columns, as many at once as the registers hold.
template <int Most>
void accumulate_rows(const float* p, const float* v, const float* factor, int64_t rows, int64_t count,
                     int64_t padded, float* o) {
  int64_t r = 0;
  for (; r + Most <= rows; r += Most) {
    int64_t d = 0;
    for (; d + 4 * W <= padded; d += 4 * W)
      accumulate<Most, 4>(p + r * tile_keys, v + d, factor + r, count, padded, o + r * padded + d);
    for (; d < padded; d += W)
      accumulate<Most, 1>(p + r * tile_keys, v + d, factor + r, count, padded, o + r * padded + d);
  }
  if constexpr (Most > 1)
    if (r < rows)
      accumulate_rows<Most - 1>(p + r * tile_keys, v, factor + r, rows - r, count, padded, o + r * padded);
}

}  // namespace weir
