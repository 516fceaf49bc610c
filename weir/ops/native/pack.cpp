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

// codes [n, k] and pairs [n, k / 32] → panels, 8 codes of a row or 4 to a dword.
template <int Bits>
void pack_codes(const uint8_t* codes, const uint32_t* pairs, int64_t n, int64_t k, uint32_t* out) {
  constexpr int records = Grouped<Bits>::records;
  const int64_t groups = k / group;
  parallel_ranges(ceil_div(n, panel), 4, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p)
      for (int64_t g = 0; g < groups; ++g)
        for (int64_t c = 0; c < panel; ++c) {
          const int64_t row = p * panel + c;
          uint32_t* at = out + (p * groups + g) * records * panel + c;
          at[0] = row < n ? pairs[row * groups + g] : 0;
          for (int j = 0; j < Bits; ++j) {
            uint32_t dword = 0, next = 0;
            const uint8_t* from = codes + row * k + g * group + j * (group / Bits);
            if (row < n) std::memcpy(&dword, from, 4);
            if (row < n && Bits == 4) std::memcpy(&next, from + 4, 4);
            at[(1 + j) * panel] = dword | next << 4;
          }
        }
  });
}

// Row `row` of a weight as float32 [k].
template <class Kind>
void unpack_row(const Linear& w, int64_t row, float* out) {
  const int64_t steps = ceil_div(w.k, Kind::depth), stride = Kind::records * panel;
  const uint32_t* at =
      static_cast<const uint32_t*>(w.weight) + (row / panel) * steps * stride + row % panel;
  for (int64_t s = 0; s < steps; ++s, at += stride)
    for (int64_t d = 0; d < Kind::depth && s * Kind::depth + d < w.k; ++d)
      out[s * Kind::depth + d] = Kind::value(at, d);
}

}  // namespace
}  // namespace weir

extern "C" {

// Bytes of a packed weight [n, k].
int64_t weir_packed_bytes(int64_t n, int64_t k, int32_t kind) {
  using namespace weir;
  return with(kind, [&](auto as) {
    return 4 * as.records * panel * ceil_div(n, panel) * ceil_div(k, as.depth);
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

// codes [n, k] and, for each group of 32, float16 scale and offset [n, k / 32, 2] → out.
void weir_pack_codes(const uint8_t* codes, const void* pairs, int64_t n, int64_t k, int32_t kind,
                     void* out) {
  using namespace weir;
  (kind == codes4 ? pack_codes<4> : pack_codes<8>)(
      codes, static_cast<const uint32_t*>(pairs), n, k, static_cast<uint32_t*>(out));
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
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
  return 1;
#else
  return 0;
#endif
}
}
