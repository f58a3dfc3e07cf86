// The kernels for one instruction set, in a namespace of its name: compiled once for each, with -DREGARD_ISA=<name>.
#include "kernels.h"

#include <chrono>

#include "backward.h"
#include "decode.h"
#include "linear.h"
#include "observe.h"
#include "push.h"

namespace REGARD_ISA {

// Which keys at least one row sees, (B, Lk), where the intervals of an entry leave out a key between others that are
// seen; null where there is none such. What no row sees may be NaN.
const uint8_t* holes_of(const Call& call, Scratch& memory) {
  if (call.range_kind != INTERVALS) return nullptr;
  bool holes = false;
  auto* seen = reinterpret_cast<uint8_t*>(memory.floats(call.B * call.Lk / 4 + call.Lk + 3));
  auto* change = reinterpret_cast<int32_t*>(seen + rounded_up(call.B * call.Lk, 4));
  for (int64_t b = 0; b < call.B; ++b) {
    for (int64_t j = 0; j <= call.Lk; ++j) change[j] = 0;
    for (int64_t row = 0; row < call.Lq; ++row) {
      int64_t first, stop;
      keys_of(call, b, row, first, stop);
      if (stop > first) ++change[first], --change[stop];
    }
    int64_t covered = 0, last = -1;
    for (int64_t j = 0; j < call.Lk; ++j) {
      covered += change[j];
      seen[b * call.Lk + j] = covered > 0;
      if (covered <= 0) continue;
      holes |= last >= 0 && last != j - 1;
      last = j;
    }
  }
  return holes ? seen : nullptr;
}

void run_attend(const Call& call) {
  Scratch memory;
  const uint8_t* visible = holes_of(call, memory);
  if (call.Lq <= FEW_ROWS && !visible) Decoder(call, nullptr).run();
  else attend(call, visible);
}

void run_attend_observed(const Call& call, const Seen& seen) {
  Scratch memory;
  const uint8_t* visible = holes_of(call, memory);
  if (call.Lq <= FEW_ROWS && !visible) Decoder(call, &seen).run();
  else attend_observed(call, seen, visible);
}

void run_backward(const Call& call, const Gradients& gradients) {
  Scratch memory;
  backward(call, gradients, holes_of(call, memory));
}

void run_push(const Call& call, const Push& to) {
  Scratch memory;
  push(call, to, holes_of(call, memory));
}

// Sums that do not wait for each other, all in registers.
double fma_gflops(double seconds) {
  using clock = std::chrono::steady_clock;
  constexpr int SUMS = L == 16 ? 24 : 12, ROUNDS = 20000;
  V sums[SUMS];
#pragma GCC unroll 24
  for (int i = 0; i < SUMS; ++i) sums[i] = splat(static_cast<float>(i));
  V a = splat(0.999f), b = splat(0.001f);
  double best = 0;
  const auto began = clock::now();
  do {
    const auto from = clock::now();
    for (int round = 0; round < ROUNDS; ++round) {
      asm volatile("" : "+m"(a), "+m"(b));  // or the loop would be computed beforehand
      const V x = a, y = b;
#pragma GCC unroll 24
      for (int i = 0; i < SUMS; ++i) sums[i] = sums[i] * x + y;
    }
    const std::chrono::duration<double> took = clock::now() - from;
    const double rate = 2.0 * SUMS * L * ROUNDS / took.count() / 1e9;
    best = rate > best ? rate : best;
  } while (std::chrono::duration<double>(clock::now() - began).count() < seconds);
  V total = V{};
#pragma GCC unroll 24
  for (int i = 0; i < SUMS; ++i) total += sums[i];
  asm volatile("" : "+m"(total));
  return best;
}

const Kernels& kernels() {
  static const Kernels table{run_attend, run_attend_observed, run_backward, run_push, linear, fma_gflops};
  return table;
}

}  // namespace REGARD_ISA
