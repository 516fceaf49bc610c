// Matrix tiles of x86 (AMX): eight registers of 16 rows of 64 bytes, and products of bfloat16 that are
// summed in float32. Where the CPU has none, the same in plain C++, by which tests check what uses them.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AMX_BF16__) && defined(__linux__)
#define WEIR_TILES 1
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace weir {

constexpr int64_t tile_rows = 16;
constexpr int64_t tile_bytes = 64;  // of a row: 16 numbers of float32, 32 of bfloat16

enum class Use : int32_t { never, supported, always };  // always: in plain C++ if need be
inline Use use = Use::supported;

#if defined(WEIR_TILES)

// Linux gives a process the state of tiles when it asks.
inline bool has_tiles() {
  static const bool granted = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18) == 0;
  return granted;
}

// The calling thread's tiles, all of full size, for as long as this lives.
struct Tiles {
  Tiles() {
    struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } shape = {};
    shape.palette = 1;
    for (int i = 0; i < 8; ++i) shape.bytes[i] = tile_bytes, shape.rows[i] = tile_rows;
    asm volatile("ldtilecfg %0" ::"m"(shape));
  }
  ~Tiles() { asm volatile("tilerelease"); }
  Tiles(const Tiles&) = delete;

  template <int N> void clear() { asm volatile("tilezero %%tmm%c0" ::"i"(N)); }
  template <int N> void load(const void* p, int64_t stride) {  // bytes from row to row
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(N) : "memory");
  }
  template <int N> void store(void* p, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(N) : "memory");
  }
  // Sum [16, 16] += A [16, 32] @ B [32, 16]; row i of B has rows 2 i and 2 i + 1, number by number.
  template <int Sum, int A, int B> void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(A), "i"(B));
  }
};

#else

inline bool has_tiles() { return false; }

struct Tiles {
  template <int N> void clear() { std::memset(tile[N], 0, sizeof tile[N]); }
  template <int N> void load(const void* p, int64_t stride) {
    for (int i = 0; i < tile_rows; ++i)
      std::memcpy(tile[N][i], static_cast<const char*>(p) + i * stride, tile_bytes);
  }
  template <int N> void store(void* p, int64_t stride) {
    for (int i = 0; i < tile_rows; ++i)
      std::memcpy(static_cast<char*>(p) + i * stride, tile[N][i], tile_bytes);
  }
  template <int Sum, int A, int B> void multiply() {
    for (int m = 0; m < tile_rows; ++m)
      for (int k = 0; k < 16; ++k)
        for (int n = 0; n < 16; ++n)
          put<Sum>(m, n, at(A, m, k, 0) * at(B, k, n, 0) + at(A, m, k, 1) * at(B, k, n, 1));
  }

 private:
  float at(int n, int row, int pair, int which) const {
    const uint32_t both = tile[n][row][pair], bits = which ? both & 0xffff0000u : both << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
  }
  template <int N> void put(int row, int column, float more) {
    float x;
    std::memcpy(&x, &tile[N][row][column], sizeof x);
    x += more;
    std::memcpy(&tile[N][row][column], &x, sizeof x);
  }
  uint32_t tile[8][16][16];
};

#endif

}  // namespace weir
