// A span's scores and weighted sums on matrix tiles, for bfloat16 and coded KV: 16 rows of q meet 32
// keys at once. Numbers of q and weights are three bf16 each and codes are bf16 as they are, with
// their scales and offsets outside of the products: it is all as exact as in attention_tile.h.
#pragma once

#include "attention_tile.h"
#include "tiles.h"

namespace weir {

template <class T>
constexpr bool tiled = has_tiles && !std::is_same_v<T, float> && !std::is_same_v<T, fp16>;

constexpr int64_t tile_rows = 16, group_keys = 32;

// Whether a call is computed on tiles: with fewer rows what it takes to fill them is more than they
// spare. It may not depend on how many queries a unit has.
template <class T>
bool on_tiles([[maybe_unused]] const Call& call) {
#if defined(WEIR_TILES)
  if constexpr (tiled<T>) return call.dim % (4 * W) == 0 && call.group() >= tile_group && tiles_allowed();
#endif
  return false;
}

#if defined(WEIR_TILES)

constexpr int parts = 3;  // bf16 that make up a float32

// Pairs of bf16, each rounded to nearest, a in the lower halves.
inline U halves(F a, F b) {
  return (as_bits(a) + 0x8000) >> 16 | ((as_bits(b) + 0x8000) & 0xffff0000u);
}

// The pairs of a and b, cut into `parts` whose sum they are.
inline void cut_pairs(F a, F b, U* out) {
  for (int part = 0; part < parts; ++part) {
    const F x = as_float(as_bits(a) & 0xffff0000u), y = as_float(as_bits(b) & 0xffff0000u);
    out[part] = halves(x, y);
    a -= x, b -= y;
  }
}

template <int Block, int... Lane>
inline void exchange(U& a, U& b, std::integer_sequence<int, Lane...>) {
  const F x = as_float(a), y = as_float(b);
  a = as_bits(shuffle<(Lane & Block ? Lane + W - Block : Lane)...>(x, y));
  b = as_bits(shuffle<(Lane & Block ? Lane + W : Lane + Block)...>(x, y));
}

// Lane i of a[j] becomes lane j of a[i].
template <int Block = 1>
inline void transpose(U* a) {
  if constexpr (Block < W) {
    for (int i = 0; i < W; ++i)
      if (!(i & Block)) exchange<Block>(a[i], a[i + Block], std::make_integer_sequence<int, W>());
    transpose<2 * Block>(a);
  }
}

template <int First, int... Lane>
inline F every_second(F a, F b, std::integer_sequence<int, Lane...>) {
  return shuffle<(2 * Lane + First)...>(a, b);
}
template <int First, int... Lane>
inline F by_turns(F a, F b, std::integer_sequence<int, Lane...>) {
  return shuffle<((Lane + First) / 2 + Lane % 2 * W)...>(a, b);
}

// Dimensions [d, d + 32) of a row as 16 pairs: neighbours where they lie so, else those 16 apart.
inline U pairs(const bf16* row, int64_t d) { return load_as<U>(row + d); }
template <class T>
inline U pairs(const T* row, int64_t d) {
  F x[2];
  codes<2>(row[d / numbers<T>], d % numbers<T>, x);
  return halves(x[0], x[1]);
}
template <class T>
inline void paired(F x, F y, F& a, F& b) {
  constexpr auto lanes = std::make_integer_sequence<int, W>();
  constexpr bool neighbours = numbers<T> == 1;
  a = neighbours ? every_second<0>(x, y, lanes) : x;
  b = neighbours ? every_second<1>(x, y, lanes) : y;
}

// Dimensions [d, d + 64) of two rows as pairs of both, in four vectors whose dimensions are in order
// or, of bf16, the even and the odd of 32.
inline void across(const bf16* first, const bf16* second, int64_t d, U* out) {
  for (int i = 0; i < 4; i += 2, d += 2 * W) {
    const U a = load_as<U>(first + d), b = load_as<U>(second + d);
    out[i] = (a & 0xffff) | b << 16;
    out[i + 1] = a >> 16 | (b & 0xffff0000u);
  }
}
template <class T>
inline void across(const T* first, const T* second, int64_t d, U* out) {
  F a[4], b[4];
  codes<4>(first[d / numbers<T>], 0, a);
  codes<4>(second[d / numbers<T>], 0, b);
  for (int i = 0; i < 4; ++i) out[i] = halves(a[i], b[i]);
}

// x times the scale of a group of codes of a row, and y times its offset.
inline F scaled(const bf16*, int64_t, F x, F) { return x; }
inline F scaled(const Int8* row, int64_t group, F x, F) { return x * splat(from_bf16(row[group].scale)); }
inline F scaled(const Int4* row, int64_t group, F x, F y) {
  return fma(y, splat(from_bf16(row[group].low)), x * splat(from_bf16(row[group].scale)));
}

inline void keep(uint32_t* to, U x) { std::memcpy(to, &x, sizeof x); }

// q [rows, padded] → [dim / 32, parts, 16 pairs, 16 rows], and what each row's numbers add up to in
// every group of codes [dim / 64, 16].
template <class T>
void tile_queries(const float* q, int64_t padded, int64_t rows, int64_t dim, uint32_t* out, float* sums) {
  std::fill(sums, sums + dim / group_numbers * W, 0.0f);
  for (int64_t d = 0; d < dim; d += 2 * W) {
    U part[parts][W] = {};
    for (int64_t r = 0; r < rows; ++r) {
      F a, b;
      U cut[parts];
      const F x = load(q + r * padded + d), y = load(q + r * padded + d + W);
      sums[d / group_numbers * W + r] += sum_lanes(x + y)[0];
      paired<T>(x, y, a, b);
      cut_pairs(a, b, cut);
      for (int i = 0; i < parts; ++i) part[i][r] = cut[i];
    }
    for (int i = 0; i < parts; ++i) {
      transpose(part[i]);
      for (int k = 0; k < W; ++k, out += W) keep(out, part[i][k]);
    }
  }
}

// Where 16 rows lie, `stride` bytes apart: in memory, or copied to `buffer` as pairs.
template <class T>
inline const void* tile_keys_of(const T* const* keys, int64_t dim, uint32_t* buffer, int64_t& stride) {
  stride = 2 * dim;
  bool together = std::is_same_v<T, bf16>;
  for (int i = 1; i < tile_rows && together; ++i) together = keys[i] == keys[i - 1] + dim;
  if (together) return keys[0];
  for (int i = 0; i < tile_rows; ++i)
    for (int64_t d = 0; d < dim; d += 2 * W) keep(buffer + (i * dim + d) / 2, pairs(keys[i], d));
  return buffer;
}

// Scores p [count, 16] of 16 rows with `count` keys, a multiple of 32.
template <class T>
void tile_scores(const uint32_t* q, const float* sums, const T* const* keys, int64_t count, int64_t dim,
                 uint32_t* buffer, float* p) {
  constexpr int64_t one = tile_rows * W;
  const int64_t most = numbers<T> > 1 ? group_numbers : dim;  // dimensions that have a scale in common
  alignas(64) float some[2 * one];
  for (int64_t i = 0; i < count; i += group_keys) {
    for (int64_t j = i; j < i + group_keys; ++j)
      for (int64_t d = 0; d < dim; d += 4 * W) fetch<4>(keys[j + tile_keys], d);
    int64_t stride;
    const auto* a = static_cast<const char*>(tile_keys_of(keys + i, dim, buffer, stride));
    const auto* b =
        static_cast<const char*>(tile_keys_of(keys + i + tile_rows, dim, buffer + one * dim / 32, stride));
    const uint32_t* with = q;
    for (int64_t group = 0; group * most < dim; ++group) {
      tile_zero(0);
      tile_zero(1);
      for (int64_t d = 0; d < most; d += 2 * W, a += 64, b += 64, with += parts * one) {
        tile_load(2, a, stride);
        tile_load(3, b, stride);
        tile_load(4, with, 64);
        tile_load(5, with + one, 64);
        tile_load(6, with + 2 * one, 64);
        tile_multiply(0, 2, 4);
        tile_multiply(1, 3, 4);
        tile_multiply(0, 2, 5);
        tile_multiply(1, 3, 5);
        tile_multiply(0, 2, 6);
        tile_multiply(1, 3, 6);
      }
      tile_store(0, some, 64);
      tile_store(1, some + one, 64);
      for (int64_t j = 0; j < group_keys; ++j) {
        float* to = p + (i + j) * tile_rows;
        const F x = scaled(keys[i + j], group, load(some + j * W), load(sums + group * W));
        store(to, group ? load(to) + x : x);
      }
    }
  }
}

// Weights p [count, 16] → [count / 32, parts, 16 rows, 16 pairs of keys], times the scales of a group
// of codes. Returns what the offsets of that group add up to for each row.
template <class T>
F tile_weights(const float* p, const T* const* values, int64_t count, int64_t group, uint32_t* out) {
  F offsets = {};
  for (int64_t i = 0; i < count; i += group_keys) {
    U part[parts][W];
    for (int k = 0; k < W; ++k, p += 2 * tile_rows, values += 2) {
      const F x = load(p), y = load(p + tile_rows), none = {};
      U cut[parts];
      cut_pairs(scaled(values[0], group, x, none), scaled(values[1], group, y, none), cut);
      offsets += scaled(values[0], group, none, x) + scaled(values[1], group, none, y);
      for (int n = 0; n < parts; ++n) part[n][k] = cut[n];
    }
    for (int n = 0; n < parts; ++n) {
      transpose(part[n]);
      for (int r = 0; r < W; ++r, out += W) keep(out, part[n][r]);
    }
  }
  return offsets;
}

// sums [4, 16 rows, 16] = weights @ dimensions [d, d + 64) of `count` values
template <class T>
void tile_sums(const uint32_t* weights, const T* const* values, int64_t count, int64_t d, int64_t dim,
               uint32_t* buffer, float* sums) {
  constexpr int64_t one = tile_rows * W;
  tile_zero(0);
  tile_zero(1);
  tile_zero(2);
  tile_zero(3);
  for (int64_t i = 0; i < count; i += group_keys, weights += parts * one) {
    for (int64_t j = i; j < i + group_keys && d == 0; ++j)
      for (int64_t at = 0; at < dim; at += 4 * W) fetch<4>(values[j + tile_keys], at);
    for (int k = 0; k < W; ++k) {
      U both[4];
      across(values[i + 2 * k], values[i + 2 * k + 1], d, both);
      for (int c = 0; c < 4; ++c) keep(buffer + c * one + k * W, both[c]);
    }
    for (int part = 0; part < parts; ++part) {
      tile_load(4, weights + part * one, 64);
      tile_load(5, buffer, 64);
      tile_load(6, buffer + one, 64);
      tile_multiply(0, 4, 5);
      tile_multiply(1, 4, 6);
      tile_load(5, buffer + 2 * one, 64);
      tile_load(6, buffer + 3 * one, 64);
      tile_multiply(2, 4, 5);
      tile_multiply(3, 4, 6);
    }
  }
  tile_store(0, sums, 64);
  tile_store(1, sums + one, 64);
  tile_store(2, sums + 2 * one, 64);
  tile_store(3, sums + 3 * one, 64);
}

// A row of `sums` → 64 numbers in order, more by an offset.
template <class T>
inline void untangle(const float* sums, int64_t row, float offset, float* out) {
  constexpr auto lanes = std::make_integer_sequence<int, W>();
  for (int c = 0; c < 4; c += 2, out += 2 * W) {
    const F a = load(sums + (c * tile_rows + row) * W) + splat(offset);
    const F b = load(sums + ((c + 1) * tile_rows + row) * W) + splat(offset);
    store(out, numbers<T> == 1 ? by_turns<0>(a, b, lanes) : a);
    store(out + W, numbers<T> == 1 ? by_turns<W>(a, b, lanes) : b);
  }
}

// Memory for one call of what follows, in floats.
inline int64_t tile_floats(int64_t dim) {
  return span_keys * tile_rows + (parts + 2) * dim * W / 2 + parts * span_keys / 2 * W +
         8 * tile_rows * W + dim / 4;
}

// At most 16 rows of q [rows, padded] over `count` keys and the values after them, a multiple of 32:
// o [rows, padded], and `top` and `sum` as of `softmax`.
template <class T>
void attend_tiles(const float* q, int64_t padded, int64_t rows, const T* const* keys, int64_t count,
                  int64_t dim, float softcap, const int32_t* lowest, const int32_t* highest, float* memory,
                  float* o, float* top, float* sum) {
  [[maybe_unused]] const Tiles mine;
  float* p = memory;
  uint32_t* queries = reinterpret_cast<uint32_t*>(p + span_keys * tile_rows);
  uint32_t* weights = queries + parts * dim * W / 2;
  uint32_t* buffer = weights + parts * span_keys / 2 * W;
  float* sums = reinterpret_cast<float*>(buffer + std::max<int64_t>(dim * W, 4 * tile_rows * W));
  float* row_sums = sums + 4 * tile_rows * W;
  float tops[W], totals[W];
  tile_queries<T>(q, padded, rows, dim, queries, row_sums);
  tile_scores(queries, row_sums, keys, count, dim, buffer, p);
  softmax<W>(softcap, count, lowest, highest, p, tops, totals);
  std::copy(tops, tops + rows, top);
  std::copy(totals, totals + rows, sum);
  F offsets = {};
  for (int64_t d = 0; d < dim; d += 4 * W) {
    if (numbers<T> > 1 || d == 0) offsets = tile_weights(p, keys + count, count, d / (4 * W), weights);
    tile_sums(weights, keys + count, count, d, dim, buffer, sums);
    for (int64_t r = 0; r < rows; ++r) untangle<T>(sums, r, offsets[r], o + r * padded + d);
  }
}

#endif

}  // namespace weir
