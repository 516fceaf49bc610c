// Attention of a span on matrix tiles, for queries of bfloat16 that share keys with enough others:
// 32 keys meet 16 rows at once. Weights are rounded to bfloat16, as a GPU's kernels do; sums are of
// float32. A row's sums run over dimensions, or keys, in one order whatever its neighbours are.
#pragma once

#include "attention_tile.h"
#include "tiles.h"

namespace weir {

constexpr int64_t most_groups = most_rows / tile_rows;  // in a unit
constexpr int64_t block_keys = 32;  // that one product takes
constexpr int64_t least_group = 16;  // queries a KV head; with fewer, vectors are as fast

#if defined(__AVX512F__)

inline bool on_tiles(const Call& call) {
  return (use == Use::always || (use == Use::supported && has_tiles())) && call.q_type == bfloat16 &&
         call.type != float32 && call.type != float16 && call.group() >= least_group &&
         call.group() <= most_rows && call.dim % 64 == 0 && call.dim <= 256;
}

// What a thread works with.
struct Workbench {
  alignas(64) uint32_t q[most_groups][8][16][16];         // of 32 dimensions: [pairs of them, rows]
  alignas(64) uint32_t block[16 * 256];                   // bfloat16: keys [32, dim], or values as below
  alignas(64) float score[most_groups][span_keys][16];
  alignas(64) uint32_t weight[most_groups][8][16][16];    // of 32 keys: [rows, pairs of keys]
  alignas(64) float o[most_groups][16][256];
};

inline U rounded(F x) {  // to bfloat16, in the upper halves
  const U bits = as_bits(x);
  return (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u;
}

// Numbers [d, d + Vectors * W) of a row as bfloat16 in the lower halves.
template <int Vectors, class T>
inline void halves(const T* row, int64_t d, U* out) {
  if constexpr (std::is_same_v<T, bf16>) {
    for (int i = 0; i < Vectors; ++i) out[i] = widen(load_as<U16>(row + d + i * W));
  } else {
    F numbers[Vectors];
    read<Vectors, true>(row, d, 0, numbers);
    for (int i = 0; i < Vectors; ++i) out[i] = rounded(numbers[i]) >> 16;
  }
}

// To the second cache: memory is asked for evenly all the time, a phase before it is needed.
template <class T>
inline void fetch_row(const T* row, int64_t dim) {
  const char* start = reinterpret_cast<const char*>(row);
  for (int64_t line = 0; line < dim / numbers<T> * int64_t(sizeof(T)); line += 64)
    __builtin_prefetch(start + line, 0, 2);
}

template <class T>
void pack_keys(const T* const* keys, const T* const* next, int64_t dim, uint32_t* block) {
  bf16* out = reinterpret_cast<bf16*>(block);
  for (int64_t key = 0; key < block_keys; ++key, out += dim) {
    fetch_row(next[key], dim);
    for (int64_t d = 0; d < dim; d += step<T> * W) {
      U part[step<T>];
      halves<step<T>>(keys[key], d, part);
      for (int i = 0; i < step<T>; ++i) {
        const U16 narrow = __builtin_convertvector(part[i], U16);
        std::memcpy(out + d + i * W, &narrow, sizeof narrow);
      }
    }
  }
}

// [16, dim] of pairs: one number of two values each.
template <class T>
void pack_values(const T* const* values, const T* const* next, int64_t dim, uint32_t* out) {
  for (int64_t pair = 0; pair < block_keys; pair += 2, out += dim) {
    fetch_row(next[pair + 1], dim);
    for (int64_t d = 0; d < dim; d += step<T> * W) {
      U even[step<T>], odd[step<T>];
      halves<step<T>>(values[pair], d, even);
      halves<step<T>>(values[pair + 1], d, odd);
      for (int i = 0; i < step<T>; ++i) {
        const U both = even[i] | odd[i] << 16;
        std::memcpy(out + d + i * W, &both, sizeof both);
      }
    }
  }
}

// Lanes of a where l's bit `Step` is 0, else those of b `Step` below; and what this leaves of both.
template <int Step, int... Lane>
inline void exchange(U& a, U& b, std::integer_sequence<int, Lane...>) {
  const F x = (F)a, y = (F)b;
  a = (U)shuffle<(Lane & Step ? Lane - Step + W : Lane)...>(x, y);
  b = (U)shuffle<(Lane & Step ? Lane + W : Lane + Step)...>(x, y);
}

// Lane i of a[j] becomes lane j of a[i].
template <int Step = 1>
inline void transpose(U* a) {
  if constexpr (Step < W) {
    for (int i = 0; i < W; ++i)
      if (!(i & Step)) exchange<Step>(a[i], a[i + Step], std::make_integer_sequence<int, W>());
    transpose<2 * Step>(a);
  }
}

// Rows [16] of bfloat16 queries, pair by pair; those beyond `rows` are zero.
inline void pack_queries(const Call& call, const Unit& unit, int64_t rows, Workbench& bench) {
  const int64_t group = call.group();
  for (int64_t first = 0; first < rows; first += 16)
    for (int64_t d = 0; d < call.dim; d += 32) {
      U pairs[W] = {};
      for (int64_t r = first; r < std::min(rows, first + 16); ++r)
        pairs[r - first] = load_as<U>(static_cast<const bf16*>(call.q) + d +
                                      (unit.token + r / group) * call.q_stride +
                                      (unit.head * group + r % group) * call.dim);
      transpose(pairs);
      std::memcpy(bench.q[first / 16][d / 32], pairs, sizeof pairs);
    }
}

// Scores of 16 rows become weights; keys outside a row's [low, high] weigh nothing.
template <class T>
void softmax(const Call& call, const T* const* next, int64_t count, I low, I high, float (*score)[16],
             uint32_t (*weight)[16][16], F& top, F& sum) {
  bool whole = true;
  for (int r = 0; r < W; ++r) whole = whole && low[r] <= 0 && high[r] >= count - 1;
  F best = splat(never);
  for (int32_t key = 0; key < count; ++key) {
    F s = load(score[key]) * splat(call.scale);
    if (call.softcap > 0) s = splat(call.softcap) * tanh(s * splat(1.0f / call.softcap));
    if (!whole) s = select((key >= low) & (key <= high), s, splat(never));
    store(score[key], s);
    best = max(best, s);
  }
  const F base = select(best == splat(never), F{}, best);  // no key: any finite number will do
  sum = F{};
  for (int64_t key = 0; key < count; key += block_keys) {
    U pairs[W];
    for (int i = 0; i < W; ++i) {
      fetch_row(next[key + 2 * i], call.dim);
      const F even = exp(load(score[key + 2 * i]) - base);
      const F odd = exp(load(score[key + 2 * i + 1]) - base);
      sum += even + odd;
      pairs[i] = rounded(even) >> 16 | rounded(odd);
    }
    transpose(pairs);
    std::memcpy(weight[key / block_keys], pairs, sizeof pairs);
  }
  top = best;
}

// The softmax of a unit's rows over `count` keys, a multiple of 32, and the values after them.
// lowest, highest: the keys that a row sees. o [rows, padded]; top, sum [rows].
template <class T>
void attend_tiled(const Call& call, const Unit& unit, const T* const* keys, int64_t count,
                  const int32_t* lowest, const int32_t* highest, float* o, float* top, float* sum) {
  static thread_local Workbench bench;
  const int64_t rows = unit.queries * call.group(), groups = (rows + 15) / 16, dim = call.dim;
  const T* const *values = keys + count, *const *next = values + count;
  Tiles tiles;
  pack_queries(call, unit, rows, bench);
  for (int64_t i = 0; i < count; i += block_keys) {
    pack_keys(keys + i, values + i, dim, bench.block);
    for (int64_t g = 0; g < groups; ++g) {
      tiles.clear<0>();
      tiles.clear<1>();
      for (int64_t d = 0; d < dim; d += 32) {
        tiles.load<4>(bench.q[g][d / 32], tile_bytes);
        tiles.load<2>(bench.block + d / 2, 2 * dim);
        tiles.load<3>(bench.block + 8 * dim + d / 2, 2 * dim);
        tiles.multiply<0, 2, 4>();
        tiles.multiply<1, 3, 4>();
      }
      tiles.store<0>(bench.score[g][i], tile_bytes);
      tiles.store<1>(bench.score[g][i + 16], tile_bytes);
    }
  }
  for (int64_t g = 0; g < groups; ++g) {
    F best, total;
    const I low = load_as<I>(lowest + 16 * g), high = load_as<I>(highest + 16 * g);
    softmax(call, next, count, low, high, bench.score[g], bench.weight[g], best, total);
    const int64_t here = std::min<int64_t>(16, rows - 16 * g);
    store(top + 16 * g, best, here);
    store(sum + 16 * g, total, here);
  }
  std::memset(bench.o, 0, groups * sizeof bench.o[0]);
  for (int64_t i = 0; i < count; i += block_keys) {
    pack_values(values + i, next + i, dim, bench.block);
    for (int64_t g = 0; g < groups; ++g) {
      tiles.load<4>(bench.weight[g][i / block_keys], tile_bytes);
      for (int64_t d = 0; d < dim; d += 32) {
        float* part = bench.o[g][0] + d;
        tiles.load<0>(part, sizeof bench.o[g][0]);
        tiles.load<1>(part + 16, sizeof bench.o[g][0]);
        tiles.load<2>(bench.block + d, 4 * dim);
        tiles.load<3>(bench.block + d + 16, 4 * dim);
        tiles.multiply<0, 4, 2>();
        tiles.multiply<1, 4, 3>();
        tiles.store<0>(part, sizeof bench.o[g][0]);
        tiles.store<1>(part + 16, sizeof bench.o[g][0]);
      }
    }
  }
  for (int64_t r = 0; r < rows; ++r)
    std::memcpy(o + r * call.padded(), bench.o[r / 16][r % 16], dim * sizeof *o);
}

#else

inline bool on_tiles(const Call&) { return false; }

template <class T>
void attend_tiled(const Call&, const Unit&, const T* const*, int64_t, const int32_t*, const int32_t*, float*,
                  float*, float*) {}

#endif

}  // namespace weir
