// Laying out weights: into panels, and single rows out of them again.
#include "linear_kinds.h"
#include "pool.h"
#include "tape.h"

namespace weir {
namespace {

template <class Kind>
void pack(const typename Kind::Weight* weight, int64_t n, int64_t k, typename Kind::Weight* out) {
  using Weight = typename Kind::Weight;
  constexpr int depth = Kind::depth;
  const int64_t steps = ceil_div(k, depth);
  parallel_ranges(ceil_div(n, panel), 4, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p)
      for (int64_t s = 0; s < steps; ++s)
        for (int64_t c = 0; c < panel; ++c)
          for (int64_t d = 0; d < depth; ++d) {
            const int64_t row = p * panel + c, column = s * depth + d;
            out[((p * steps + s) * panel + c) * depth + d] =
                row < n && column < k ? weight[row * k + column] : Weight{};
          }
  });
}

// codes [n, k] and the float16 scales of each group of a row → panels.
template <class Kind>
void pack_codes(const uint8_t* codes, const uint16_t* scales, int64_t n, int64_t k, uint32_t* out) {
  constexpr int each = 2 * Kind::scales / panel, high = Kind::bits - 4, fields = high ? 8 / high : 1;
  const int64_t groups = k / group;
  parallel_ranges(ceil_div(n, panel), 4, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin * panel * groups; at < end * panel * groups; ++at) {
      const int64_t p = at / (panel * groups), g = at / panel % groups, c = at % panel;
      uint32_t* step = out + (p * groups + g) * Kind::stride;
      const int64_t row = p * panel + c;
      uint16_t* into = reinterpret_cast<uint16_t*>(step) + c * each;
      for (int i = 0; i < each; ++i) into[i] = row < n ? scales[(row * groups + g) * each + i] : 0;
      uint32_t records[Kind::bits] = {};
      for (int quad = 0; row < n && quad < group / 4; ++quad) {
        const uint32_t four = load_as<uint32_t>(codes + row * k + g * group + 4 * quad);
        if (Kind::bits == 8) {
          records[quad] = four;
        } else {
          records[quad / 2] |= (four & 0x0f0f0f0fu) << (quad % 2 * 4);
          if (high) records[4 + quad / fields] |= (four >> 4 & 0x0f0f0f0fu) << (quad % fields * high);
        }
      }
      for (int i = 0; i < Kind::bits; ++i) step[Kind::scales + i * panel + c] = records[i];
    }
  });
}

// Row `row` of a weight as float32 [k].
template <class Kind>
void unpack_row(const Linear& w, int64_t row, float* out) {
  const int64_t steps = ceil_div(w.k, Kind::depth);
  const uint32_t* at = static_cast<const uint32_t*>(w.weight) + row / panel * steps * Kind::stride;
  float values[Kind::depth];
  for (int64_t s = 0; s < steps; ++s, at += Kind::stride) {
    Kind::values(at, row % panel, values);
    const int64_t begin = s * Kind::depth, end = std::min<int64_t>(w.k, begin + Kind::depth);
    std::copy(values, values + end - begin, out + begin);
  }
}

}  // namespace
}  // namespace weir

extern "C" {

// Bytes of a packed weight [n, k].
int64_t weir_packed_bytes(int64_t n, int64_t k, int32_t kind) {
  using namespace weir;
  return with(kind, [&](auto as) {
    return 4 * as.stride * ceil_div(n, panel) * ceil_div(k, as.depth);
  });
}

// weight [n, k], float32 or bfloat16 → out, `weir_packed_bytes` of it.
void weir_pack(const void* weight, int64_t n, int64_t k, int32_t kind, void* out) {
  using namespace weir;
  if (kind == bfloat16)
    pack<Bfloat16>(static_cast<const bf16*>(weight), n, k, static_cast<bf16*>(out));
  else
    pack<Float32>(static_cast<const float*>(weight), n, k, static_cast<float*>(out));
}

// codes [n, k], below 2^bits of the kind, and for each group of 32 its float16 scales as in `Scales`,
// [n, k / 32, 2] or, symmetric, [n, k / 32] → out.
void weir_pack_codes(const uint8_t* codes, const uint16_t* scales, int64_t n, int64_t k, int32_t kind,
                     void* out) {
  using namespace weir;
  with(kind, [&](auto as) {
    if constexpr (as.depth == group)
      pack_codes<decltype(as)>(codes, scales, n, k, static_cast<uint32_t*>(out));
  });
}

// Rows `ids` [count] of the weight → out float32 [count, k].
void weir_rows(const weir::Linear* w, const int64_t* ids, int64_t count, float* out) {
  using namespace weir;
  launch([=] {
    with(w->kind, [&](auto as) {
      parallel_ranges(count, 16, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          unpack_row<decltype(as)>(*w, ids[i], out + i * w->k);
      });
    });
  });
}

// Whether codes meet 8-bit products in hardware; without them bfloat16 is faster.
int32_t weir_has_byte_products() {
#if defined(__AVX512BW__) || defined(__AVX2__)
  return 1;
#else
  return 0;
#endif
}
}
