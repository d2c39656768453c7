// Work shared by the threads of XLA's pool.

#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

// Numbers from 0 to count - 1, of which every thread has a range. It takes them in order; once
// there are none left it takes over the later half of the longest range, so that all end together.
class Ranges {
 public:
  Ranges(int64_t count, int64_t threads) : ranges_(threads) {
    for (int64_t t = 0; t < threads; ++t)
      ranges_[t].bounds = bounds_of(count * t / threads, count * (t + 1) / threads);
  }
  // The next number for a thread, or -1.
  int64_t next(int64_t thread) {
    for (;;) {
      auto& own = ranges_[thread].bounds;
      for (uint64_t held = own; first(held) < end(held);)
        if (own.compare_exchange_weak(held, bounds_of(first(held) + 1, end(held))))
          return first(held);
      Range* longest = nullptr;
      uint64_t held = 0;
      for (Range& range : ranges_) {
        const uint64_t bounds = range.bounds;
        if (size(bounds) > size(held)) longest = &range, held = bounds;
      }
      if (!longest) return -1;
      const int64_t middle = end(held) - (size(held) + 1) / 2;
      if (longest->bounds.compare_exchange_strong(held, bounds_of(first(held), middle)))
        own = bounds_of(middle, end(held));
    }
  }

 private:
  struct alignas(64) Range {
    std::atomic<uint64_t> bounds;
  };
  static uint64_t bounds_of(int64_t first, int64_t end) {
    return uint64_t(first) << 32 | uint64_t(end);
  }
  static int64_t first(uint64_t bounds) { return bounds >> 32; }
  static int64_t end(uint64_t bounds) { return bounds & 0xffffffffu; }
  static int64_t size(uint64_t bounds) { return end(bounds) - first(bounds); }

  std::vector<Range> ranges_;
};

// Calls work(first number, next) on the pool and the calling thread, which do what the number says
// until next() is negative. Numbers from 0 to count - 1 come up once each. What the pool starts
// late finds nothing left to do, so that the caller never waits for a thread to come free.
template <typename Work>
void run(ffi::ThreadPool& pool, int64_t count, const Work& work) {
  struct State {
    const Work& work;
    Ranges ranges;
    std::atomic<int64_t> unfinished;
    std::mutex mutex;
    std::condition_variable ended;

    State(const Work& work, int64_t count, int64_t threads)
        : work(work), ranges(count, threads), unfinished(count) {}

    void start(int64_t thread) {
      const int64_t first = ranges.next(thread);
      if (first < 0) return;  // `work` may be gone
      work(first, [&] {
        const int64_t next = ranges.next(thread);
        if (unfinished.fetch_sub(1) == 1) {
          std::lock_guard<std::mutex> lock(mutex);
          ended.notify_all();
        }
        return next;
      });
    }
  };
  const int64_t threads = std::clamp<int64_t>(count, 1, std::max<int64_t>(pool.num_threads(), 1));
  auto state = std::make_shared<State>(work, count, threads);
  for (int64_t i = 1; i < threads; ++i) pool.Schedule([state, i] { state->start(i); });
  state->start(0);
  std::unique_lock<std::mutex> lock(state->mutex);
  state->ended.wait(lock, [&] { return state->unfinished == 0; });
}

}  // namespace
