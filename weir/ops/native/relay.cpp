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

using Clock = std::chrono::steady_clock;
constexpr auto spin = std::chrono::milliseconds(2);
constexpr auto nap = std::chrono::microseconds(20);
constexpr auto grace = std::chrono::seconds(2);  // for queries still to come when a relay ends

class Relay {
 public:
  Relay() : thread_([this] { serve(); }) {}

  ~Relay() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopped_ = Clock::now();
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

  double spent() { return std::chrono::duration<double>(Clock::duration(spent_.exchange(0))).count(); }

 private:
  void serve() {
    for (Job job; next(job);) {
      if (await(job)) {
        const auto begun = Clock::now();
        weir_attend(&job.call);
        spent_ += (Clock::now() - begun).count();
      }
      job.done->store(job.ticket, std::memory_order_release);  // a stream may wait for it for ever
    }
  }

  // Until its queries have come. False: they will not.
  bool await(const Job& job) const {
    for (const auto start = Clock::now(); !reached(*job.ready, job.ticket);) {
      const auto now = Clock::now();
      if (stop_ && now - stopped_ > grace) return false;
      if (now - start < spin) relax();
      else std::this_thread::sleep_for(nap);
    }
    return true;
  }

  bool next(Job& job) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return stop_ || !jobs_.empty(); });
    if (jobs_.empty()) return false;
    job = jobs_.front();
    jobs_.pop_front();
    return true;
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Job> jobs_;
  std::atomic<bool> stop_{false};
  Clock::time_point stopped_;  // if so
  std::atomic<Clock::rep> spent_{0};  // attending, since it was last asked
  std::thread thread_;
};

}  // namespace
}  // namespace weir

extern "C" {

void* weir_relay_open() { return new weir::Relay; }
void weir_relay_add(void* relay, const weir::Job* job) { static_cast<weir::Relay*>(relay)->add(*job); }
// Seconds that it attended since this was last asked.
double weir_relay_spent(void* relay) { return static_cast<weir::Relay*>(relay)->spent(); }
// Finishes what is queued; a job whose queries do not come counts as done.
void weir_relay_close(void* relay) { delete static_cast<weir::Relay*>(relay); }
}
