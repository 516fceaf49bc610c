// Paged attention for decode and chunked prefill.
//
// A query's result depends on its own value and the keys it sees, on nothing else: keys are met in
// tiles of 32 and spans of 256 cut at absolute positions, each span has its own online softmax, and
// spans are merged in order. Which queries share a tile, how a prompt was chunked, what else is in the
// batch, the page size and the number of threads change no bit. Spans are also what is shared out
// between threads when there are few sequences (flash-decoding).
//
// Bytes: every key and value of a sequence once per 32 rows (query x head of its group).
// FLOP: 4 * queries * heads * head size * keys seen.
//
// Queries of bfloat16 come from a GPU, whose attention rounds weights to bfloat16 too: where the
// hardware multiplies pairs of those, one pass over keys and values does no more than that.
#include <algorithm>
#include <cmath>
#include <vector>

#include "attention_pairs.h"
#include "attention_tile.h"
#include "pool.h"

namespace weir {
namespace {

constexpr int64_t tile_rows = 32;

// Running softmax of a unit's rows. `o` is not yet divided by the sum of the weights, which lies
// over the lanes of `sum`; `top` is the highest score, in every lane.
struct Partial {
  float *o, *top, *sum;  // [rows, padded], [rows, W], [rows, W]
  static int64_t floats(int64_t rows, int64_t padded) { return rows * (padded + 2 * W); }
  Partial(float* memory, int64_t rows, int64_t padded)
      : o(memory), top(o + rows * padded), sum(top + rows * W) {}
  void clear() {
    std::fill(o, top, 0.0f);
    std::fill(sum, sum + (sum - top), 0.0f);
    std::fill(top, sum, never);
  }
};

// The rows' softmax over keys [from, to), all of one span.
template <class T>
void attend_span(const Call& call, const Unit& unit, const float* q, int64_t from, int64_t to,
                 Partial partial) {
  static thread_local Scratch scratch;
  const int64_t padded = call.padded(), group = call.group(), rows = unit.queries * group;
  float* k = scratch.get(tile_keys * (2 * padded + rows) + rows);
  float *v = k + tile_keys * padded, *p = v + tile_keys * padded, *factor = p + tile_keys * rows;
  partial.clear();
  for (int64_t j = from / tile_keys * tile_keys; j < to; j += tile_keys) {
    const int64_t count = std::min<int64_t>(tile_keys, to - j);
    gather<T>(call, unit, j, from, to, k, v);
    prefetch<T>(call, unit, j + tile_keys, std::min(unit.to, j + 2 * tile_keys));
    for (int64_t i = 0; i < unit.queries; ++i) {
      const int64_t position = unit.position + i, highest = std::min(position, to - 1);
      const int64_t lowest = call.window > 0 ? position - call.window + 1 : 0;
      for (int64_t r = i * group; r < (i + 1) * group; ++r)
        score_row(call, j, lowest, highest, p + r * tile_keys,
                  [&](int at) { return dots(q + r * padded, k + at * W, padded); });
    }
    for (int64_t r = 0; r < rows; ++r)
      factor[r] = softmax_row(p + r * tile_keys, partial.top + r * W, partial.sum + r * W);
    accumulate_rows<W == 16 ? 4 : 2>(p, v, factor, rows, count, padded, partial.o);
  }
}

void attend_span(const Call& call, const Unit& unit, const float* q, int64_t index, Partial partial) {
  const int64_t start = (unit.first_span() + index) * span_keys;
  const int64_t from = std::max(unit.from, start), to = std::min(unit.to, start + span_keys);
#if defined(__AVX512BF16__)
  if (in_pairs(call)) {
    partial.clear();
    return attend_pairs(call, unit, from, to, partial.o, partial.top, partial.sum);
  }
#endif
  switch (call.type) {
    case float32: return attend_span<float>(call, unit, q, from, to, partial);
    case bfloat16: return attend_span<bf16>(call, unit, q, from, to, partial);
    default: return attend_span<fp16>(call, unit, q, from, to, partial);
  }
}

// Add the softmax over more keys to `total`.
void merge(Partial total, Partial part, int64_t rows, int64_t padded) {
  for (int64_t r = 0; r < rows; ++r) {
    if (sum_lanes(load(part.sum + r * W))[0] == 0) continue;  // saw no key
    const F before = load(total.top + r * W), other = load(part.top + r * W);
    const F top = max(before, other), old = exp(before - top), fresh = exp(other - top);
    for (int64_t d = r * padded; d < (r + 1) * padded; d += W)
      store(total.o + d, fma(load(total.o + d), old, load(part.o + d) * fresh));
    store(total.sum + r * W, load(total.sum + r * W) * old + load(part.sum + r * W) * fresh);
    store(total.top + r * W, top);
  }
}

// q of the unit's rows, scaled and padded with zeros: [rows, padded].
template <class T>
void scale_queries(const Call& call, const Unit& unit, const T* from, float* out) {
  const int64_t group = call.group(), padded = call.padded();
  for (int64_t i = 0; i < unit.queries; ++i)
    for (int64_t g = 0; g < group; ++g, out += padded) {
      const T* q = from + (unit.token + i) * call.q_stride + (unit.head * group + g) * call.dim;
      for (int64_t d = 0; d < padded; d += W)
        store(out + d, load(q + d, call.dim - d) * splat(call.scale));
    }
}

void scale_queries(const Call& call, const Unit& unit, float* out) {
  of_type(call.q_type, call.q, [&](auto* q) { scale_queries(call, unit, q, out); });
}

template <class T>
void finish(const Call& call, const Unit& unit, Partial total, T* o) {
  const int64_t group = call.group(), padded = call.padded();
  for (int64_t r = 0; r < unit.queries * group; ++r) {
    const int64_t at = (unit.token + r / group) * call.heads + unit.head * group + r % group;
    const float top = total.top[r * W], sum = sum_lanes(load(total.sum + r * W))[0];
    const F inverse = splat(sum == 0 ? 0.0f : 1.0f / sum);
    for (int64_t d = 0; d < call.dim; d += W)
      store(o + at * call.dim + d, load(total.o + r * padded + d) * inverse, call.dim - d);
    call.lse[at] = sum == 0 ? never : top + std::log(sum);
  }
}

void finish(const Call& call, const Unit& unit, Partial total) {
  of_type(call.q_type, call.o, [&](auto* o) { finish(call, unit, total, o); });
}

std::vector<Unit> cut(const Call& call) {
  std::vector<Unit> units;
  const int64_t most = std::max<int64_t>(1, tile_rows / call.group());
  for (int64_t s = 0; s < call.sequences; ++s) {
    const int64_t n = call.q_start[s + 1] - call.q_start[s], length = call.kv_len[s];
    const int64_t first = call.first ? call.first[s] : length - n;
    for (int64_t i = (n - 1) / most * most; n > 0 && i >= 0; i -= most) {  // the longest first
      const int64_t queries = std::min(most, n - i), position = first + i;
      const int64_t from = call.window > 0 ? std::max<int64_t>(0, position - call.window + 1) : 0;
      const int64_t to = std::min(length, position + queries);
      for (int64_t head = 0; head < call.kv_heads; ++head)
        units.push_back({s, call.q_start[s] + i, queries, position, from, to, head});
    }
  }
  return units;
}

// Enough units for every thread: each goes through its spans alone.
void attend_units(const Call& call, const std::vector<Unit>& units, int64_t items) {
  parallel(items, [&](int64_t item) {
    static thread_local Scratch scratch;
    for (size_t u = item; u < units.size(); u += items) {
      const Unit& unit = units[u];
      const int64_t padded = call.padded(), rows = unit.queries * call.group();
      const int64_t size = Partial::floats(rows, padded);
      float* q = scratch.get(rows * padded + 2 * size);
      Partial total(q + rows * padded, rows, padded), part(q + rows * padded + size, rows, padded);
      scale_queries(call, unit, q);
      total.clear();
      for (int64_t i = 0; i < unit.spans(); ++i) {
        attend_span(call, unit, q, i, part);
        merge(total, part, rows, padded);
      }
      finish(call, unit, total);
    }
  });
}

// Few units: their spans are shared out, then merged in the same order.
void attend_spans(const Call& call, const std::vector<Unit>& units) {
  struct Item { const Unit* unit; int64_t span, at; };
  static thread_local Scratch scratch;
  const int64_t padded = call.padded(), group = call.group();
  std::vector<Item> items;
  int64_t floats = 0;
  for (const Unit& unit : units)
    for (int64_t i = 0; i < unit.spans(); ++i) {
      items.push_back({&unit, i, floats});
      floats += Partial::floats(unit.queries * group, padded);
    }
  float* memory = scratch.get(floats);
  parallel(int64_t(items.size()), [&](int64_t n) {
    static thread_local Scratch queries;
    const Item& item = items[n];
    const int64_t rows = item.unit->queries * group;
    float* q = queries.get(rows * padded);
    scale_queries(call, *item.unit, q);
    attend_span(call, *item.unit, q, item.span, Partial(memory + item.at, rows, padded));
  });
  static thread_local Scratch totals;
  const Item* next = items.data();
  for (const Unit& unit : units) {
    const int64_t rows = unit.queries * group;
    Partial total(totals.get(Partial::floats(rows, padded)), rows, padded);
    total.clear();
    for (int64_t i = 0; i < unit.spans(); ++i, ++next)
      merge(total, Partial(memory + next->at, rows, padded), rows, padded);
    finish(call, unit, total);
  }
}

template <class T>
void write_heads(T* kv, const float* k, const float* v, int64_t k_stride, int64_t v_stride,
                 const int64_t* slots, int64_t tokens, int64_t heads, int64_t dim, int64_t page) {
  parallel_ranges(tokens, (1 << 14) / (heads * dim) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t h = 0; h < heads; ++h) {
        T* key = kv + ((slots[t] / page * 2 * heads + h) * page + slots[t] % page) * dim;
        T* value = key + heads * page * dim;
        for (int64_t d = 0; d < dim; d += W) {
          store(key + d, load(k + t * k_stride + h * dim + d, dim - d), dim - d);
          store(value + d, load(v + t * v_stride + h * dim + d, dim - d), dim - d);
        }
      }
  });
}

}  // namespace
}  // namespace weir

extern "C" {

void weir_attend(const weir::Call* call) {
  using namespace weir;
  const std::vector<Unit> units = cut(*call);
  int64_t keys = 0, spans = 0;
  for (const Unit& unit : units) keys += std::max<int64_t>(0, unit.to - unit.from), spans += unit.spans();
  const int64_t wanted = 4 * threads();
  if (keys * call->dim < 1 << 13)
    attend_units(*call, units, 1);
  else if (int64_t(units.size()) >= wanted || int64_t(units.size()) >= spans)
    attend_units(*call, units, int64_t(units.size()));
  else
    attend_spans(*call, units);
}

// k, v [tokens, heads, dim], tokens `k_stride` and `v_stride` floats apart → kv [pages, 2, heads, page, dim]
void weir_write(void* kv, int32_t type, const float* k, int64_t k_stride, const float* v,
                int64_t v_stride, const int64_t* slots, int64_t tokens, int64_t heads, int64_t dim,
                int64_t page) {
  using namespace weir;
  of_type(type, kv, [&](auto* store) {
    write_heads(store, k, v, k_stride, v_stride, slots, tokens, heads, dim, page);
  });
}
}
