// Threads to work on: those of the OpenMP runtime that torch uses, where there is one.
//
// A second set of threads would fight with torch's, which go on spinning for a while after their work: that cost 30 to
// 90 % in measurements. A process that was forked while the runtime had threads cannot use it any more; there, and
// where torch has no such runtime, threads of our own are made for the call and end with it.
#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace {

using Gomp = void (*)(void (*)(void*), void*, unsigned, unsigned);

std::atomic<Gomp> gomp{nullptr};
std::atomic<bool> forked{false};

void on_own_threads(int threads, void (*body)(void*), void* context) {
  std::vector<std::thread> others;
  try {
    for (int i = 1; i < threads; ++i) others.emplace_back(body, context);
  } catch (const std::exception&) {
    // The system gives no more threads: those that are there, and this one, do all of the work.
  }
  body(context);
  for (std::thread& other : others) other.join();
}

}  // namespace

void regard_on_threads(int threads, void (*body)(void*), void* context) {
  const Gomp parallel = gomp.load(std::memory_order_acquire);
  if (parallel != nullptr && !forked)
    parallel(body, context, static_cast<unsigned>(threads), 0);
  else
    on_own_threads(threads, body, context);
}

// The address of GOMP_parallel, or null.
void regard_use_openmp(void* address) {
  static const int once = pthread_atfork(nullptr, nullptr, [] { forked = true; });
  (void)once;
  gomp.store(reinterpret_cast<Gomp>(address), std::memory_order_release);
}
