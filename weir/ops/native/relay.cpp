// Attention for queries that another device sends: jobs are queued ahead, each begins when the device
// says that its queries have come, and says itself when its answer is there. No interpreter takes part.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "attention_tile.h"
#include "pool.h"

extern "C" void weir_attend(const weir::Call* call);

namespace weir {
namespace {

// Equal to ctypes' declaration. Both words lie in memory that the device reads and writes; a word
// has come to `ticket` once it is not behind it, counting in a circle.
struct Job {
  Call call;
  const std::atomic<uint32_t>* ready;
  std::atomic<uint32_t>* done;
  uint32_t ticket;
};

bool reached(const std::atomic<uint32_t>& word, uint32_t ticket) {
  return int32_t(word.load(std::memory_order_acquire) - ticket) >= 0;
}

// Wait for a word; spins for 2 ms, then looks every 20 us. False: given up.
bool await(const std::atomic<uint32_t>& word, uint32_t ticket, const std::atomic<bool>& stop) {
  const auto start = std::chrono::steady_clock::now();
  while (!reached(word, ticket)) {
    if (stop.load(std::memory_order_relaxed)) return false;
    if (std::chrono::steady_clock::now() - start < std::chrono::milliseconds(2))
      relax();
    else
      std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
  return true;
}

class Relay {
 public:
  Relay() : thread_([this] { serve(); }) {}

  ~Relay() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    changed_.notify_one();
    thread_.join();
  }

  void add(const Job& job) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      jobs_.push_back(job);
    }
    changed_.notify_one();
  }

 private:
  void serve() {
    for (Job job; next(job);) {
      if (!await(*job.ready, job.ticket, stop_)) return;
      weir_attend(&job.call);
      job.done->store(job.ticket, std::memory_order_release);
    }
  }

  bool next(Job& job) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return stop_ || !jobs_.empty(); });
    if (stop_) return false;
    job = jobs_.front();
    jobs_.pop_front();
    return true;
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Job> jobs_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace
}  // namespace weir

extern "C" {

void* weir_relay_open() { return new weir::Relay; }
void weir_relay_add(void* relay, const weir::Job* job) { static_cast<weir::Relay*>(relay)->add(*job); }
// Jobs that have not begun never will.
void weir_relay_close(void* relay) { delete static_cast<weir::Relay*>(relay); }
}
