// The pool never waits for a worker that has not come: a busy machine costs speed, not progress.
//
// One 64-bit ticket holds the generation of the current job and its next item. Taking an item is a
// compare-and-swap on it, so a worker that is late by a whole job takes nothing.
#include "pool.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "simd.h"

namespace weir {
namespace {

using Body = void (*)(const void*, int64_t);
using Clock = std::chrono::steady_clock;
constexpr uint32_t closed = 0xffffffff;        // no item of a ticket is this large
std::atomic<int64_t> idle_microseconds{150};  // of a worker, then it sleeps

std::chrono::microseconds patience() { return std::chrono::microseconds(idle_microseconds.load()); }

class Pool {
 public:
  explicit Pool(int threads) : wanted_(threads) {}

  int threads() const { return wanted_; }

  void resize(int threads) {
    std::lock_guard<std::mutex> busy(callers_);
    wanted_ = threads;
    if (int(workers_.size()) < threads) return;
    {
      std::lock_guard<std::mutex> lock(sleep_);
      stop_ = true;
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
    workers_.clear();
    stop_ = false;
  }

  void run(int64_t items, Body body, const void* context) {
    std::unique_lock<std::mutex> busy(callers_, std::try_to_lock);
    if (!busy || wanted_ == 1 || items == 1) {  // results do not depend on who computes them
      for (int64_t i = 0; i < items; ++i) body(context, i);
      return;
    }
    while (int(workers_.size()) < wanted_ - 1) workers_.emplace_back([this] { serve(); });
    publish(uint32_t(items), body, context);
    work(generation_);
    for (auto start = Clock::now(); finished_.load(std::memory_order_acquire) < items;)
      if (Clock::now() - start < patience()) relax();
      else std::this_thread::yield();
  }

 private:
  void publish(uint32_t items, Body body, const void* context) {
    uint64_t base = uint64_t(++generation_) << 32;
    ticket_.store(base | closed);  // first, so that nobody takes an old item with the new body
    items_.store(items);
    body_.store(body);
    context_.store(context);
    finished_.store(0);
    ticket_.store(base);
    int asleep = sleeping_.load();
    if (asleep == 0) return;
    { std::lock_guard<std::mutex> lock(sleep_); }
    if (int(items) - 1 >= asleep) return wake_.notify_all();
    for (uint32_t i = 1; i < items; ++i) wake_.notify_one();
  }

  // The ticket comes first: what is read after it is that job's, or the ticket has changed and
  // nothing is taken.
  void work(uint32_t generation) {
    uint64_t ticket = ticket_.load();
    if (uint32_t(ticket) == closed) return;
    const uint32_t items = items_.load();
    const Body body = body_.load();
    const void* context = context_.load();
    while (ticket >> 32 == generation && uint32_t(ticket) < items) {
      if (!ticket_.compare_exchange_weak(ticket, ticket + 1)) continue;
      body(context, uint32_t(ticket));
      finished_.fetch_add(1, std::memory_order_release);
      ticket = ticket_.load();
    }
  }

  void serve() {
    uint32_t seen = 0;
    while (await(seen)) work(seen);
  }

  // Until there is a job newer than `seen`, which becomes it. False: the pool shrinks.
  bool await(uint32_t& seen) {
    bool found = false;
    const auto fresh = [&] {
      const uint64_t ticket = ticket_.load();
      found = ticket >> 32 != seen && uint32_t(ticket) != closed;
      if (found) seen = uint32_t(ticket >> 32);
      return found;
    };
    for (auto start = Clock::now(); !fresh() && Clock::now() - start < patience();) relax();
    if (!found) {
      std::unique_lock<std::mutex> lock(sleep_);
      ++sleeping_;
      wake_.wait(lock, [&] { return stop_ || fresh(); });
      --sleeping_;
    }
    return !stop_;
  }

  std::mutex callers_;  // held by the caller whose job the workers serve
  std::vector<std::thread> workers_;
  std::atomic<int> wanted_;
  uint32_t generation_ = 0;

  alignas(64) std::atomic<uint64_t> ticket_{closed};
  std::atomic<uint32_t> items_{0};
  std::atomic<Body> body_{nullptr};
  std::atomic<const void*> context_{nullptr};
  alignas(64) std::atomic<int64_t> finished_{0};

  std::mutex sleep_;
  std::condition_variable wake_;
  std::atomic<int> sleeping_{0};
  std::atomic<bool> stop_{false};
};

Pool* fresh_pool(int threads);
Pool* pool = fresh_pool(1);

// Workers do not survive fork: the child gets a pool of its own, and the old one is left alone.
Pool* fresh_pool(int threads) {
  static const int registered =
      pthread_atfork(nullptr, nullptr, [] { pool = new Pool(pool->threads()); });
  (void)registered;
  return new Pool(threads);
}

}  // namespace

int threads() { return pool->threads(); }

void run(int64_t items, Body body, const void* context) { pool->run(items, body, context); }

}  // namespace weir

extern "C" {

void weir_set_patience(int64_t microseconds) { weir::idle_microseconds = microseconds; }

void weir_set_threads(int threads) { weir::pool->resize(threads < 1 ? 1 : threads); }

// Read every byte once; the value only keeps the compiler honest.
float weir_read(const float* data, int64_t floats) {
  using namespace weir;
  std::atomic<uint32_t> folded{0};
  parallel_ranges(floats / (4 * W), 1 << 14, [&](int64_t begin, int64_t end) {
    U a = {}, b = {}, c = {}, d = {};
    for (const float* p = data + 4 * W * begin; p < data + 4 * W * end; p += 4 * W) {
      a ^= as_bits(load(p)), b ^= as_bits(load(p + W));
      c ^= as_bits(load(p + 2 * W)), d ^= as_bits(load(p + 3 * W));
    }
    a ^= b ^ c ^ d;
    for (int i = 0; i < W; ++i) folded ^= a[i];
  });
  return float(folded.load());
}
}
