// Threads for the kernels: a call is cut into items, and whoever is free takes the next one.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace weir {

inline void relax() {  // once around a loop that waits
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int threads();

// Run body(context, item) for every item in [0, items), on this thread and on whichever workers
// come in time; returns when all are done. Items must not depend on one another.
void run(int64_t items, void (*body)(const void*, int64_t), const void* context);

template <class Body>
inline void parallel(int64_t items, const Body& body) {
  if (items == 1) return body(int64_t{0});
  run(items, [](const void* c, int64_t i) { (*static_cast<const Body*>(c))(i); }, &body);
}

// The same over ranges of [0, n), cut so that each holds at least `grain` of n.
template <class Body>
inline void parallel_ranges(int64_t n, int64_t grain, const Body& body) {
  int64_t most = 4 * int64_t{threads()}, items = n / (grain > 0 ? grain : 1);
  items = items < 1 ? 1 : items > most ? most : items;
  parallel(items, [&](int64_t i) { body(n * i / items, n * (i + 1) / items); });
}

// Memory of one thread that only grows, 64-byte aligned; its content does not survive `get`.
class Scratch {
 public:
  float* get(int64_t floats) {
    if (floats > size_) {
      size_ = floats + floats / 4;
      data_.reset(static_cast<float*>(std::aligned_alloc(64, (4 * size_ + 63) / 64 * 64)));
    }
    return data_.get();
  }

 private:
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  std::unique_ptr<float, Free> data_;
  int64_t size_ = 0;
};

}  // namespace weir
