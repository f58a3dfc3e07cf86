// What Python calls: the C functions of the library, and the choice of an instruction set.
//
// Compiled for the plainest processor, like everything that runs before the choice. CMakeLists.txt defines
// REGARD_HAS_<name> for every instruction set that kernel.cpp was compiled for.
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "kernels.h"

void regard_use_openmp(void* address);  // threads.cpp

#define EXPORT extern "C" __attribute__((visibility("default")))

// Raised whenever a function that Python calls changes; library.py refuses a library of another number.
constexpr int32_t ABI = 5;

#define DECLARE(name)       \
  namespace name {          \
  const Kernels& kernels(); \
  }
#ifdef REGARD_HAS_avx512
DECLARE(avx512)
#endif
#ifdef REGARD_HAS_avx2
DECLARE(avx2)
#endif
#ifdef REGARD_HAS_neon
DECLARE(neon)
#endif
#ifdef REGARD_HAS_baseline
DECLARE(baseline)
#endif

namespace {

struct Isa {
  const char* name;
  const Kernels& (*kernels)();
  bool (*runs)();  // on this processor, under this system
};

bool always() { return true; }

#if defined(__x86_64__)
// Not every __builtin_cpu_supports knows f16c; the registers it works on are those of avx2.
bool runs_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
bool runs_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && runs_f16c();
}
bool runs_avx512() {
  return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

// Best first.
const Isa ISAS[] = {
#ifdef REGARD_HAS_avx512
    {"avx512", avx512::kernels, runs_avx512},
#endif
#ifdef REGARD_HAS_avx2
    {"avx2", avx2::kernels, runs_avx2},
#endif
#ifdef REGARD_HAS_neon
    {"neon", neon::kernels, always},
#endif
#ifdef REGARD_HAS_baseline
    {"baseline", baseline::kernels, always},
#endif
};

const Isa* find(const char* name) {
  for (const Isa& isa : ISAS)
    if (name != nullptr && std::strcmp(isa.name, name) == 0) return &isa;
  return nullptr;
}

// The one that REGARD_ISA names, or else the best; library.py says what is wrong with a name that cannot be had.
const Isa* choose() {
  const Isa* forced = find(std::getenv("REGARD_ISA"));
  if (forced != nullptr && forced->runs()) return forced;
  for (const Isa& isa : ISAS)
    if (isa.runs()) return &isa;
  return nullptr;  // not reached: the last one always runs
}

std::atomic<const Isa*> in_use{choose()};

template <class F>
int32_t guarded(F f) {
  try {
    f();
    return 0;
  } catch (const std::bad_alloc&) {
    return -1;
  }
}

}  // namespace

// The kernels of the instruction set in use.
const Kernels& kernels_in_use() { return in_use.load(std::memory_order_acquire)->kernels(); }

EXPORT int32_t regard_abi() { return ABI; }

// The instruction sets compiled in, best first, with commas between.
EXPORT const char* regard_isas() {
  static const std::string names = [] {
    std::string all;
    for (const Isa& isa : ISAS) all += (all.empty() ? "" : ",") + std::string(isa.name);
    return all;
  }();
  return names.c_str();
}

// 1: compiled in, and this processor runs it.
EXPORT int32_t regard_isa_supported(const char* name) {
  const Isa* isa = find(name);
  return isa != nullptr && isa->runs();
}

EXPORT const char* regard_isa() { return in_use.load(std::memory_order_acquire)->name; }

// For tests and benchmarks. 0: done; -1: unknown; -2: this processor cannot.
EXPORT int32_t regard_use_isa(const char* name) {
  const Isa* isa = find(name);
  if (isa == nullptr) return -1;
  if (!isa->runs()) return -2;
  in_use.store(isa, std::memory_order_release);
  return 0;
}

// The fused multiply-adds that one thread does, in GFLOP/s, the best of so many seconds.
EXPORT double regard_fma_gflops(double seconds) { return kernels_in_use().fma_gflops(seconds); }

// The address of the OpenMP runtime's GOMP_parallel, or null to use threads of our own.
EXPORT void regard_set_openmp(void* address) { regard_use_openmp(address); }

// Each returns 0, or -1 where there was not enough memory.
EXPORT int32_t regard_attend(const Call* call) {
  return guarded([&] { kernels_in_use().attend(*call); });
}
EXPORT int32_t regard_attend_observed(const Call* call, const Seen* seen) {
  return guarded([&] { kernels_in_use().attend_observed(*call, *seen); });
}
EXPORT int32_t regard_backward(const Call* call, const Gradients* gradients) {
  return guarded([&] { kernels_in_use().backward(*call, *gradients); });
}
EXPORT int32_t regard_push(const Call* call, const Push* push) {
  return guarded([&] { kernels_in_use().push(*call, *push); });
}
EXPORT int32_t regard_linear(const Linear* call) {
  return guarded([&] { kernels_in_use().linear(*call); });
}
