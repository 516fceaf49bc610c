// Arithmetic of attention: some rows of q (query x head of a group) meet the keys and values of one
// span, which are read where they lie. Which span, and on which thread, is not known here.
//
// Rows are taken in blocks of a power of two. Scores and weights of a block lie as they are computed:
// a vector holds W / Rows keys of each of its rows, so with 8 rows of 16 lanes [keys / 2, 8, 2]. A
// row's sums run over dimensions, or keys, in one order whatever its block is.
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>

#include "coded.h"

namespace weir {

constexpr int64_t most_rows = 32;   // of a unit, but for larger groups
constexpr int64_t span_keys = 256;  // keys of one softmax; whole tiles
constexpr int64_t tile_keys = 64;   // of one kind of step at a time, whose rows stay in the first cache
constexpr int block_rows = W / 2;   // rows that share what was read; registers hold their sums
constexpr float never = -std::numeric_limits<float>::infinity();

enum Type : int32_t { float32, bfloat16, float16, int8, int4 };

// body(p as a pointer to numbers, or groups of numbers, of that type)
template <class Void, class Body>
inline void of_type(int32_t type, Void* p, const Body& body) {
  const auto as = [&](auto number) {
    using T = decltype(number);
    body(static_cast<std::conditional_t<std::is_const_v<Void>, const T, T>*>(p));
  };
  switch (type) {
    case float32: return as(float{});
    case bfloat16: return as(bf16{});
    case float16: return as(fp16{});
    case int8: return as(Int8{});
    default: return as(Int4{});
  }
}

// What `weir_attend` gets; equal to ctypes' declaration.
struct Call {
  const void* q;   // [T, heads, dim], tokens `q_stride` numbers apart
  const void* kv;  // [pages, 2, kv_heads, page, dim / numbers of T]
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
  int64_t padded() const { return (dim + 2 * W - 1) / (2 * W) * (2 * W); }
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

// Vectors from number d on of a row of keys or values, which has `dim`; if not `Whole`, perhaps fewer.
template <int Vectors, bool Whole, class T>
inline void read(const T* row, int64_t d, int64_t dim, F* out) {
  if constexpr (numbers<T> > 1)
    for (int i = 0; i < Vectors; i += step<T>, d += step<T> * W)
      read<std::min(Vectors, step<T>)>(row[d / numbers<T>], d % numbers<T>, out + i);
  else
    for (int i = 0; i < Vectors; ++i, d += W) out[i] = Whole ? load(row + d) : load_part(row + d, dim - d);
}

template <int Vectors, class T>
inline void fetch(const T* row, int64_t d) {
  const char* start = reinterpret_cast<const char*>(row + d / numbers<T>);
  for (int64_t line = 0; line < int64_t(Vectors * W * sizeof(T) / numbers<T>); line += 64)
    __builtin_prefetch(start + line);
}

// sum [Rows, Keys] += q [Rows, padded] @ keys, over dimensions [d, d + step W).
template <int Rows, int Keys, bool Whole, class T>
inline void multiply(const float* q, int64_t padded, const T* const* keys, int64_t d, int64_t dim, F* sum) {
  constexpr int vectors = step<T>, many = std::min({Rows, Keys, 8 / vectors});  // in registers
  for (int first = 0; first < Keys; first += many) {
    F key[many][vectors];
    for (int i = 0; i < many; ++i) {
      read<vectors, Whole>(keys[first + i], d, dim, key[i]);
      fetch<vectors>(keys[first + i + tile_keys], d);
    }
    for (int r = 0; r < Rows; ++r)
      for (int c = 0; c < vectors; ++c) {
        const F part = load(q + r * padded + d + c * W);
        for (int i = 0; i < many; ++i) {
          F& s = sum[r * Keys + first + i];
          s = fma(part, key[i][c], s);
        }
      }
  }
}

// Products of Rows rows of q [padded] with W / Rows keys: lane r * W / Rows + i is row r's and key i's.
// Whole: `dim` is a multiple of what is read at once.
template <int Rows, bool Whole, class T>
inline F products(const float* q, int64_t padded, const T* const* keys, int64_t dim) {
  F sum[W];
  for (F& s : sum) s = F{};
  int64_t d = 0;
  for (; d + step<T> * W <= dim; d += step<T> * W)
    multiply<Rows, W / Rows, true>(q, padded, keys, d, dim, sum);
  if constexpr (!Whole) multiply<Rows, W / Rows, false>(q, padded, keys, d, dim, sum);
  return transpose_sum(sum);
}

// Scores of Rows rows with `count` keys, a multiple of W.
template <int Rows, class T>
void score(const float* q, int64_t padded, const T* const* keys, int64_t count, int64_t dim, float* p) {
  constexpr int Keys = W / Rows;
  const bool whole = dim % (step<T> * W) == 0;
  for (int64_t i = 0; i < count; i += Keys)
    store(p + i * Rows, whole ? products<Rows, true>(q, padded, keys + i, dim)
                              : products<Rows, false>(q, padded, keys + i, dim));
}

// o [Rows, padded] += p @ `count` values, a multiple of W; columns [d, d + 2 W Blocks).
template <int Rows, int Blocks, bool Whole, class T>
void accumulate(const float* p, const T* const* values, int64_t count, int64_t d, int64_t dim, float* o,
                int64_t padded) {
  constexpr int Keys = W / Rows;
  F sum[Rows][2 * Blocks];
  for (int r = 0; r < Rows; ++r)
    for (int c = 0; c < 2 * Blocks; ++c) sum[r][c] = load(o + r * padded + d + c * W);
  for (int64_t first = 0; first < count; first += Keys, p += W)
    for (int i = 0; i < Keys; ++i) {
      F value[2 * Blocks];
      read<2 * Blocks, Whole>(values[first + i], d, dim, value);
      fetch<2 * Blocks>(values[first + i + tile_keys], d);
      for (int r = 0; r < Rows; ++r) {
        const F weight = splat(p[r * Keys + i]);
        for (int c = 0; c < 2 * Blocks; ++c) sum[r][c] = fma(weight, value[c], sum[r][c]);
      }
    }
  for (int r = 0; r < Rows; ++r)
    for (int c = 0; c < 2 * Blocks; ++c) store(o + r * padded + d + c * W, sum[r][c]);
}

template <int Rows, class T>
void accumulate(const float* p, const T* const* values, int64_t count, int64_t dim, float* o,
                int64_t padded) {
  constexpr int most = std::min(4, block_rows / Rows);
  int64_t d = 0;
  for (; d + 2 * W * most <= dim; d += 2 * W * most)
    accumulate<Rows, most, true>(p, values, count, d, dim, o, padded);
  for (; d + 2 * W <= dim; d += 2 * W) accumulate<Rows, 1, true>(p, values, count, d, dim, o, padded);
  if (d < dim) accumulate<Rows, 1, false>(p, values, count, d, dim, o, padded);
}

// body(r, the number of rows from r on that a kernel takes, as a constant); past the last row there
// may be up to block_rows - 1 more.
template <int Most = block_rows, class Body>
inline void each_block(int64_t rows, const Body& body, int64_t r = 0) {
  for (; rows - r > Most / 2; r += Most) body(r, std::integral_constant<int, Most>());
  if constexpr (Most > 1)
    if (r < rows) each_block<Most / 2>(rows, body, r);
}

// Folds the lanes of v that are of one row, `Step` and its multiples apart; every lane has the result.
template <int Step, int Keys, class Op>
inline F fold_keys(F v, const Op& op) {
  if constexpr (Step >= Keys)
    return v;
  else
    return fold_keys<2 * Step, Keys>(op(v, swap_lanes<Step>(v)), op);
}

// What W keys of each row add up to, but for those that are odd and even: [Rows] vectors. The order
// is one tree over the keys whatever lane they lie in.
template <int Rows>
inline F sum_group(F* v) {
  const auto add = [](F a, F b) { return a + b; };
  for (int i = 0; i < Rows; ++i) v[i] = fold_keys<2, W / Rows>(v[i], add);
  for (int count = Rows; count > 1; count /= 2)
    for (int i = 0; i < count / 2; ++i) v[i] = v[2 * i] + v[2 * i + 1];
  return v[0];
}

// Scores p of `count` keys, a multiple of W, become weights exp(score - top), 0 for keys outside a
// row's [lowest, highest]. top, sum: of each row the highest score and the sum of its weights.
template <int Rows>
void softmax(float softcap, int64_t count, const int32_t* lowest, const int32_t* highest, float* p,
             float* top, float* sum) {
  constexpr int Keys = W / Rows;
  I low, high;
  bool whole = true;
  for (int l = 0; l < W; ++l) {
    low[l] = lowest[l / Keys], high[l] = highest[l / Keys];
    whole = whole && low[l] <= 0 && high[l] >= count - 1;
  }
  F best = splat(never);
  I key = lanes() & (Keys - 1);
  for (int64_t i = 0; i < count * Rows; i += W, key += Keys) {
    F s = load(p + i);
    if (softcap > 0) s = splat(softcap) * tanh(s * splat(1.0f / softcap));
    if (!whole) s = select((key >= low) & (key <= high), s, splat(never));
    store(p + i, s);
    best = max(best, s);
  }
  best = fold_keys<1, Keys>(best, [](F a, F b) { return max(a, b); });
  // no key: any finite number keeps -inf - top from being NaN
  const F base = select(best == splat(never), F{}, best);
  F total = {};
  for (int64_t i = 0; i < count * Rows; i += Rows * W) {
    F weight[Rows];
    for (int v = 0; v < Rows; ++v) {
      weight[v] = exp(load(p + i + v * W) - base);
      store(p + i + v * W, weight[v]);
    }
    total += sum_group<Rows>(weight);
  }
  if constexpr (Keys > 1) total += swap_lanes<1>(total);
  for (int r = 0; r < Rows; ++r) top[r] = best[r * Keys], sum[r] = total[r * Keys];
}

}  // namespace weir
