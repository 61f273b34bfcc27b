// Threads that compute together.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace openlora {

// A fixed number of threads, the caller's own among them. Waiting spins for some microseconds, since between the phases
// of a step the others are as good as there, and then sleeps, so that on a busy machine a waiting thread does not hold
// the core that the awaited one needs.
class Team {
 public:
  explicit Team(int size) : size_(size) {
    for (int member = 1; member < size; ++member) threads_.emplace_back([this, member] { serve(member); });
  }

  ~Team() {
    body_ = nullptr;
    release(round_);
    for (std::thread& thread : threads_) thread.join();
  }

  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }

  // Calls body(member) once in every thread, 0 ≤ member < size; returns when all have.
  void run(const std::function<void(int)>& body) {
    if (size_ > 1) {
      body_ = &body;
      release(round_);
    }
    body(0);
    barrier();
  }

  // Inside a body: returns when every member has called it.
  void barrier() {
    if (size_ == 1) return;
    const std::uint32_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
      arrived_.store(0, std::memory_order_relaxed);
      release(phase_);
    } else {
      await(phase_, phase);
    }
  }

  // The part of `count` things that is member's, in order and nearly equal.
  struct Range {
    int begin, end;
  };
  Range share(int count, int member) const {
    return {static_cast<int>(std::int64_t{count} * member / size_),
            static_cast<int>(std::int64_t{count} * (member + 1) / size_)};
  }

 private:
  using Counter = std::atomic<std::uint32_t>;

  static void release(Counter& counter) {
    counter.fetch_add(1, std::memory_order_release);
    counter.notify_all();
  }

  static void await(Counter& counter, std::uint32_t old) {
    for (int spin = 0; spin < kSpins; ++spin) {
      if (counter.load(std::memory_order_acquire) != old) return;
#if defined(__x86_64__)
      _mm_pause();
#endif
    }
    while (counter.load(std::memory_order_acquire) == old) counter.wait(old, std::memory_order_acquire);
  }

  void serve(int member) {
    for (std::uint32_t round = 0;; ++round) {
      await(round_, round);
      if (!body_) return;
      (*body_)(member);
      barrier();
    }
  }

  static constexpr int kSpins = 2400;  // pauses of some 140 cycles: about 100 µs

  const int size_;
  const std::function<void(int)>* body_ = nullptr;
  alignas(64) Counter round_{0};
  alignas(64) Counter phase_{0};
  alignas(64) std::atomic<int> arrived_{0};
  std::vector<std::thread> threads_;
};

}  // namespace openlora
