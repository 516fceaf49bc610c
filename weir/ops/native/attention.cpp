// Paged attention for decode and chunked prefill.
//
// A query's result depends on its own value and the keys it sees, on nothing else: keys are met in
// spans of 256 cut at absolute positions, each has a softmax of its own, and spans are merged in
// order. Which queries share a unit, how a prompt was chunked, what else is in the batch, the page
// size and the number of threads change no bit. Spans are also what is shared out between threads
// when there are few sequences (flash-decoding).
//
// Bytes: every key and value of a sequence once per 32 rows (query x head of its group).
// FLOP: 4 * queries * heads * head size * keys seen, in float32 whatever the types in memory are, but
// for queries of bfloat16 that go by matrix tiles (attention_matrix.h).
#include <algorithm>
#include <cmath>
#include <vector>

#include "attention_matrix.h"
#include "pool.h"
#include "tape.h"

namespace weir {
namespace {

int64_t round_up(int64_t rows) { return (rows + block_rows - 1) / block_rows * block_rows; }

// Softmax of a unit's rows over some keys. `o` is not yet divided by `sum`, the sum of the weights
// exp(score - top).
struct Partial {
  float *o, *top, *sum;  // [rows, padded], [rows], [rows], rows rounded up to whole blocks
  static int64_t floats(int64_t rows, int64_t padded) { return round_up(rows) * (padded + 2); }
  Partial(float* memory, int64_t rows, int64_t padded)
      : o(memory), top(o + round_up(rows) * padded), sum(top + round_up(rows)) {}
  void clear() {
    std::fill(o, top, 0.0f);
    std::fill(top, sum, never);
    std::fill(sum, sum + (sum - top), 0.0f);
  }
};

// Where the keys of a span lie, then its values, then `Ahead` keys that come next, so that each can be
// fetched before it is read.
template <class T, int64_t Ahead = tile_keys>
class Stream {
 public:
  // `count` keys from `first` on, of which [from, to) are seen; in place of the others stands one
  // that is.
  Stream(const Call& call, const Unit& unit, int64_t first, int64_t count, int64_t from, int64_t to)
      : call_(call), table_(call.table + unit.sequence * call.table_width), head_(unit.head),
        row_(call.dim / numbers<T>) {
    const int64_t value = call.kv_heads * call.page * row_;
    point(from, to, rows_ + from - first);
    std::fill(rows_, rows_ + from - first, rows_[from - first]);
    std::fill(rows_ + to - first, rows_ + count, rows_[to - 1 - first]);
    for (int64_t i = 0; i < count; ++i) rows_[count + i] = rows_[i] + value;
    const int64_t next = std::min(unit.to, to + Ahead);
    point(to, next, rows_ + 2 * count);
    std::fill(rows_ + 2 * count + next - to, rows_ + 2 * count + Ahead, rows_[0]);
  }
  const T* const* operator+(int64_t i) const { return rows_ + i; }

 private:
  void point(int64_t from, int64_t to, const T** out) {
    for (int64_t j = from; j < to;) {
      const int64_t index = j / call_.page, end = std::min(to, (index + 1) * call_.page);
      const int64_t start = (table_[index] * 2 * call_.kv_heads + head_) * call_.page;
      const T* key = static_cast<const T*>(call_.kv) + (start + j - index * call_.page) * row_;
      for (; j < end; ++j, key += row_) *out++ = key;
    }
  }

  const Call& call_;
  const int32_t* table_;
  int64_t head_, row_;
  const T* rows_[2 * span_keys + Ahead];
};

// The keys from `first` on that a row of the unit sees of [from, to); past the last row as that one.
struct Seen {
  int32_t lowest, highest;
  Seen(const Call& call, const Unit& unit, int64_t row, int64_t first, int64_t from, int64_t to) {
    const int64_t position = unit.position + std::min(row / call.group(), unit.queries - 1);
    lowest = std::max(from, call.window > 0 ? position - call.window + 1 : 0) - first;
    highest = std::min(position, to - 1) - first;
  }
};

// `attend_span` by matrix tiles.
template <class T>
void attend_matrix(const Call& call, const Unit& unit, int64_t from, int64_t to, Partial partial) {
  const int64_t first = from / block_keys * block_keys;
  const int64_t count = (to - first + block_keys - 1) / block_keys * block_keys;
  const Stream<T, span_keys> keys(call, unit, first, count, from, to);
  int32_t lowest[most_rows], highest[most_rows];
  for (int64_t r = 0; r < most_rows; ++r) {
    const Seen seen(call, unit, r, first, from, to);
    lowest[r] = seen.lowest, highest[r] = seen.highest;
  }
  attend_tiled(call, unit, keys + 0, count, lowest, highest, partial.o, partial.top, partial.sum);
}

// The rows' softmax over keys [from, to), all of one span.
template <class T>
void attend_span(const Call& call, const Unit& unit, const float* q, int64_t from, int64_t to,
                 Partial partial) {
  if constexpr (std::is_same_v<T, bf16> || numbers<T> > 1)
    if (on_tiles(call)) return attend_matrix<T>(call, unit, from, to, partial);
  static thread_local Scratch scratch;
  const int64_t padded = call.padded(), rows = unit.queries * call.group();
  const int64_t first = from / W * W, count = (to - first + W - 1) / W * W;
  const Stream<T> keys(call, unit, first, count, from, to);
  float* p = scratch.get(round_up(rows) * span_keys);
  partial.clear();
  for (int64_t i = 0; i < count; i += tile_keys)
    each_block(rows, [&](int64_t r, auto block) {
      score<block()>(q + r * padded, padded, keys + i, std::min(tile_keys, count - i), call.dim,
                     p + r * span_keys + i * block());
    });
  each_block(rows, [&](int64_t r, auto block) {
    int32_t lowest[block()], highest[block()];
    for (int b = 0; b < block(); ++b) {
      const Seen seen(call, unit, r + b, first, from, to);
      lowest[b] = seen.lowest, highest[b] = seen.highest;
    }
    softmax<block()>(call.softcap, count, lowest, highest, p + r * span_keys, partial.top + r,
                     partial.sum + r);
  });
  for (int64_t i = 0; i < count; i += tile_keys)
    each_block(rows, [&](int64_t r, auto block) {
      accumulate<block()>(p + r * span_keys + i * block(), keys + (count + i),
                          std::min(tile_keys, count - i), call.dim, partial.o + r * padded, padded);
    });
}

void attend_span(const Call& call, const Unit& unit, const float* q, int64_t index, Partial partial) {
  const int64_t start = (unit.first_span() + index) * span_keys;
  const int64_t from = std::max(unit.from, start), to = std::min(unit.to, start + span_keys);
  of_type(call.type, call.kv, [&](auto* kv) {
    attend_span<std::remove_cv_t<std::remove_pointer_t<decltype(kv)>>>(call, unit, q, from, to, partial);
  });
}

// Add the softmax over more keys to `total`.
void merge(Partial total, Partial part, int64_t rows, int64_t padded) {
  for (int64_t r = 0; r < rows; ++r) {
    if (part.sum[r] == 0) continue;  // saw no key
    const float top = std::max(total.top[r], part.top[r]);
    const F old = exp(splat(total.top[r] - top)), fresh = exp(splat(part.top[r] - top));
    for (int64_t d = r * padded; d < (r + 1) * padded; d += W)
      store(total.o + d, fma(load(total.o + d), old, load(part.o + d) * fresh));
    total.sum[r] = total.sum[r] * old[0] + part.sum[r] * fresh[0];
    total.top[r] = top;
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
        store(out + d, load(q + d, std::max<int64_t>(0, call.dim - d)) * splat(call.scale));
    }
  std::fill(out, out + (round_up(unit.queries * group) - unit.queries * group) * padded, 0.0f);
}

void scale_queries(const Call& call, const Unit& unit, float* out) {
  of_type(call.q_type, call.q, [&](auto* q) {
    if constexpr (numbers<std::remove_cv_t<std::remove_pointer_t<decltype(q)>>> == 1)
      scale_queries(call, unit, q, out);
  });
}

template <class T>
void finish(const Call& call, const Unit& unit, Partial total, T* o) {
  const int64_t group = call.group(), padded = call.padded();
  for (int64_t r = 0; r < unit.queries * group; ++r) {
    const int64_t at = (unit.token + r / group) * call.heads + unit.head * group + r % group;
    const float top = total.top[r], sum = total.sum[r];
    const F inverse = splat(sum == 0 ? 0.0f : 1.0f / sum);
    for (int64_t d = 0; d < call.dim; d += W)
      store(o + at * call.dim + d, load(total.o + r * padded + d) * inverse, call.dim - d);
    call.lse[at] = sum == 0 ? never : top + std::log(sum);
  }
}

void finish(const Call& call, const Unit& unit, Partial total) {
  of_type(call.q_type, call.o, [&](auto* o) {
    if constexpr (numbers<std::remove_pointer_t<decltype(o)>> == 1) finish(call, unit, total, o);
  });
}

std::vector<Unit> cut(const Call& call) {
  std::vector<Unit> units;
  const int64_t most = std::max<int64_t>(1, most_rows / call.group());
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
      float* q = scratch.get(round_up(rows) * padded + 2 * size);
      Partial total(q + round_up(rows) * padded, rows, padded), part(total.o + size, rows, padded);
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
    float* q = queries.get(round_up(rows) * padded);
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
void write_row(T* row, const float* x, int64_t dim) {
  if constexpr (numbers<T> > 1)
    for (int64_t d = 0; d < dim; d += numbers<T>) store(row[d / numbers<T>], x + d);
  else
    for (int64_t d = 0; d < dim; d += W) store(row + d, load(x + d, dim - d), dim - d);
}

template <class T>
void write_heads(T* kv, const float* k, const float* v, int64_t k_stride, int64_t v_stride,
                 const int64_t* slots, int64_t tokens, int64_t heads, int64_t dim, int64_t page) {
  const int64_t row = dim / numbers<T>;
  parallel_ranges(tokens, (1 << 14) / (heads * dim) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t h = 0; h < heads; ++h) {
        T* key = kv + ((slots[t] / page * 2 * heads + h) * page + slots[t] % page) * row;
        write_row(key, k + t * k_stride + h * dim, dim);
        write_row(key + heads * page * row, v + t * v_stride + h * dim, dim);
      }
  });
}

void attend(const Call& call) {
  const std::vector<Unit> units = cut(call);
  int64_t keys = 0, spans = 0;
  for (const Unit& unit : units) keys += std::max<int64_t>(0, unit.to - unit.from), spans += unit.spans();
  const int64_t wanted = 4 * threads();
  if (keys * call.dim < 1 << 13)
    attend_units(call, units, 1);
  else if (int64_t(units.size()) >= wanted || int64_t(units.size()) >= spans)
    attend_units(call, units, int64_t(units.size()));
  else
    attend_spans(call, units);
}

}  // namespace
}  // namespace weir

extern "C" {

void weir_use_tiles(int32_t use) { weir::use = weir::Use(use); }

void weir_attend(const weir::Call* call) {
  weir::launch([call = *call] { weir::attend(call); });
}

// k, v [tokens, heads, dim], tokens `k_stride` and `v_stride` floats apart → kv [pages, 2, heads, page,
// dim / numbers of a T]
void weir_write(void* kv, int32_t type, const float* k, int64_t k_stride, const float* v,
                int64_t v_stride, const int64_t* slots, int64_t tokens, int64_t heads, int64_t dim,
                int64_t page) {
  using namespace weir;
  launch([=] {
    of_type(type, kv, [&](auto* store) {
      write_heads(store, k, v, k_stride, v_stride, slots, tokens, heads, dim, page);
    });
  });
}
}
