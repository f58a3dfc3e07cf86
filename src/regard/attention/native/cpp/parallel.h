// Work shared between threads: every thread takes the next item until none is left.
//
// Which thread does an item changes no bit of its result: an item depends on the call alone, and what is summed over
// items is summed afterwards in the items' order.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>

#include "vector.h"

// Runs body(context) on up to `threads` threads at once, the calling one among them (entry.cpp).
void regard_on_threads(int threads, void (*body)(void*), void* context);

namespace REGARD_ISA {

// Memory that one thread works in, aligned to a cache line.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(data_); }

  // Room for `count` numbers; what it held before is gone where it has to grow.
  float* floats(int64_t count) {
    if (count > capacity_) {
      std::free(data_);
      capacity_ = (count + 15) / 16 * 16;
      data_ = static_cast<float*>(std::aligned_alloc(64, static_cast<size_t>(capacity_) * sizeof(float)));
      if (data_ == nullptr) {
        capacity_ = 0;
        throw std::bad_alloc();
      }
    }
    return data_;
  }

 private:
  float* data_ = nullptr;
  int64_t capacity_ = 0;
};

// Calls work(worker, item) for every item of 0 … items - 1; each thread makes its own Worker.
template <class Worker, class Make, class Work>
void share(int64_t threads, int64_t items, Make make, Work work) {
  struct Shared {
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
    int64_t items;
    Make& make;
    Work& work;
  } shared{{0}, {false}, items, make, work};
  auto body = [](void* context) {
    auto& all = *static_cast<Shared*>(context);
    int64_t item = all.next.fetch_add(1);
    if (item >= all.items) return;  // nothing left: no worker is made
    try {
      const FlushDenormals flush;
      Worker worker = all.make();
      for (; item < all.items && !all.failed; item = all.next.fetch_add(1)) all.work(worker, item);
      streams_end();
    } catch (const std::bad_alloc&) {  // an exception may not leave a thread of OpenMP
      all.failed = true;
    }
  };
  const int64_t useful = threads < items ? threads : items;
  if (useful > 1)
    regard_on_threads(static_cast<int>(useful), body, &shared);
  else
    body(&shared);
  if (shared.failed) throw std::bad_alloc();
}

}  // namespace REGARD_ISA
