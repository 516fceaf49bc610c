// Eight tiles of 16 rows of 64 bytes and products of bf16 pairs: AMX on x86, or the same in plain
// C++, slowly, so that what is built on them is tested on any machine (WEIR_EMULATE_TILES).
#pragma once

#include "simd.h"

#if defined(__AMX_BF16__) && defined(__linux__) && !defined(WEIR_NO_TILES) && !defined(WEIR_EMULATE_TILES)
#include <sys/syscall.h>
#include <unistd.h>
#define WEIR_TILES 1
#define tile_zero(tile) _tile_zero(tile)
#define tile_load(tile, from, stride) _tile_loadd(tile, from, stride)
#define tile_store(tile, to, stride) _tile_stored(tile, to, stride)
#define tile_multiply(sum, a, b) _tile_dpbf16ps(sum, a, b)
#elif defined(WEIR_EMULATE_TILES)
#define WEIR_TILES 1
#endif

namespace weir {

#if defined(WEIR_TILES)
constexpr bool has_tiles = W == 16;
#else
constexpr bool has_tiles = false;
#endif

#if defined(WEIR_EMULATE_TILES)
struct Tile { uint32_t row[16][16]; };
inline thread_local Tile tiles[8];

constexpr int64_t tile_group = 1;
inline bool tiles_allowed() { return true; }
struct Tiles {};

inline void tile_zero(int tile) { tiles[tile] = {}; }
inline void tile_load(int tile, const void* from, int64_t stride) {
  for (int i = 0; i < 16; ++i) std::memcpy(tiles[tile].row[i], static_cast<const char*>(from) + i * stride, 64);
}
inline void tile_store(int tile, void* to, int64_t stride) {
  for (int i = 0; i < 16; ++i) std::memcpy(static_cast<char*>(to) + i * stride, tiles[tile].row[i], 64);
}
// sum [16, 16] += a [16, 32] @ b [32, 16], of which a row has 16 pairs: of row i and column n of b
// is the pair i, n, its lower half first.
inline void tile_multiply(int sum, int a, int b) {
  const auto number = [](uint32_t bits) { float x; std::memcpy(&x, &bits, 4); return x; };
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < 16; ++n) {
      float total = number(tiles[sum].row[m][n]);
      for (int k = 0; k < 16; ++k) {
        const uint32_t x = tiles[a].row[m][k], y = tiles[b].row[k][n];
        total += number(x << 16) * number(y << 16);
        total += number(x & 0xffff0000u) * number(y & 0xffff0000u);
      }
      std::memcpy(&tiles[sum].row[m][n], &total, 4);
    }
}
#elif defined(WEIR_TILES)
constexpr int64_t tile_group = 4;  // queries of a KV head from which tiles are used

// Whether the system lets this process have tiles; it must be asked.
inline bool tiles_allowed() {
  constexpr long ask = 0x1023, data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool allowed = syscall(SYS_arch_prctl, ask, data) == 0;
  return allowed;
}

// Tiles that are this thread's while it lives; others may set them up in another way in between.
struct Tiles {
  Tiles() {
    alignas(64) uint8_t shape[64] = {1};  // palette; then bytes of a row, then rows, of each tile
    for (int tile = 0; tile < 8; ++tile) shape[16 + 2 * tile] = 64, shape[48 + tile] = 16;
    _tile_loadconfig(shape);
  }
  ~Tiles() { _tile_release(); }
};
#endif

}  // namespace weir
