// One vector of floats of the instruction set this file is compiled for, and what the kernels do with it.
//
// Written in the vector extensions of GCC and Clang, so that one source serves every instruction set; only the mask of
// a comparison needs an intrinsic.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace REGARD_ISA {

#if defined(__AVX512F__)
constexpr int L = 16;          // lanes of a vector
constexpr int TILE_ROWS = 8;   // rows of a register tile: 8 × 3 vectors of sums, in 32 registers
constexpr int TILE_VECTORS = 3;
#elif defined(__AVX2__)
constexpr int L = 8;
constexpr int TILE_ROWS = 4;  // 4 × 3 vectors of sums, in 16 registers
constexpr int TILE_VECTORS = 3;
#elif defined(__aarch64__)
constexpr int L = 4;
constexpr int TILE_ROWS = 8;
constexpr int TILE_VECTORS = 3;
#else
constexpr int L = 4;
constexpr int TILE_ROWS = 4;  // without fused multiply-add a product needs a register, too
constexpr int TILE_VECTORS = 2;
#endif

typedef float V __attribute__((vector_size(4 * L)));
typedef int32_t I __attribute__((vector_size(4 * L)));
// The same, where memory is aligned to an element only.
typedef float UnalignedV __attribute__((vector_size(4 * L), aligned(4), may_alias));
typedef int32_t UnalignedI __attribute__((vector_size(4 * L), aligned(4), may_alias));

constexpr float INFINITE = __builtin_inff();
constexpr float LOG2E = 1.44269504088896340736f;
constexpr float LN2 = 0.69314718055994530942f;

#define INLINE inline __attribute__((always_inline))

INLINE V load(const float* p) { return *reinterpret_cast<const UnalignedV*>(p); }
INLINE I load(const int32_t* p) { return *reinterpret_cast<const UnalignedI*>(p); }
INLINE void store(float* p, V v) { *reinterpret_cast<UnalignedV*>(p) = v; }
INLINE void store(int32_t* p, I v) { *reinterpret_cast<UnalignedI*>(p) = v; }
// To memory past the caches; `to` is a multiple of the vector's size. `streams_end` comes after the last one.
INLINE void stream(float* to, V v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(to, reinterpret_cast<__m512>(v));
#elif defined(__AVX__)
  _mm256_stream_ps(to, reinterpret_cast<__m256>(v));
#elif defined(__SSE2__)
  _mm_stream_ps(to, reinterpret_cast<__m128>(v));
#else
  store(to, v);
#endif
}
INLINE void streams_end() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}
// The first n numbers, at most a vector of them, and zeros; and only those to memory.
INLINE V first_of(const float* p, int64_t n) {
  if (n >= L) return load(p);
  V v = {};
  memcpy(&v, p, static_cast<size_t>(n) * sizeof(float));
  return v;
}
INLINE void store_first(float* p, V v, int64_t n) {
  if (n >= L) store(p, v);
  else memcpy(p, &v, static_cast<size_t>(n) * sizeof(float));
}
INLINE V splat(float x) { return V{} + x; }
INLINE I splat(int32_t x) { return I{} + x; }

namespace detail {
template <int... C>
constexpr I lane_numbers(std::integer_sequence<int, C...>) {
  return I{C...};
}
}  // namespace detail
INLINE I lane_numbers() { return detail::lane_numbers(std::make_integer_sequence<int, L>{}); }

INLINE I bits(V v) {
  I i;
  memcpy(&i, &v, sizeof i);
  return i;
}
INLINE V floats(I i) {
  V v;
  memcpy(&v, &i, sizeof v);
  return v;
}

INLINE V select(I where, V yes, V no) { return where ? yes : no; }
INLINE I select(I where, I yes, I no) { return where ? yes : no; }
// A NaN in the second argument comes out.
INLINE V largest(V a, V b) { return a > b ? a : b; }
INLINE V smallest(V a, V b) { return a < b ? a : b; }
INLINE V absolute(V v) { return floats(bits(v) & 0x7fffffff); }

// One bit a lane, the lowest for lane 0: where the sign bit of a comparison's result is set.
INLINE uint32_t mask_of(I where) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask(reinterpret_cast<__m512i>(where));
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(where)));
#elif defined(__SSE2__)
  return static_cast<uint32_t>(_mm_movemask_ps(reinterpret_cast<__m128>(where)));
#else
  uint32_t found = 0;
  for (int lane = 0; lane < L; ++lane) found |= static_cast<uint32_t>(where[lane] < 0) << lane;
  return found;
#endif
}

// The same of a >= b: in AVX-512 a comparison gives bits, and is one instruction where it stays so.
INLINE uint32_t lanes_at_least(V a, V b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), _CMP_GE_OQ);
#else
  return mask_of(a >= b);
#endif
}
INLINE bool any_of(I i) { return mask_of(i) != 0; }

// The numbers at base[index], a lane each.
INLINE V gather(const float* base, I index) {
#if defined(__AVX512F__)
  const auto none = _mm512_setzero_ps();  // GCC 12 warns of its own header in the form without
  return reinterpret_cast<V>(_mm512_mask_i32gather_ps(none, 0xffff, reinterpret_cast<__m512i>(index), base, 4));
#elif defined(__AVX2__)
  return reinterpret_cast<V>(_mm256_i32gather_ps(base, reinterpret_cast<__m256i>(index), 4));
#else
  V v;
  for (int lane = 0; lane < L; ++lane) v[lane] = base[index[lane]];
  return v;
#endif
}
INLINE I gather(const int32_t* base, I index) { return bits(gather(reinterpret_cast<const float*>(base), index)); }

namespace detail {
// 2^f for f in [-1/2, 1/2], from the highest power down to f's: of the polynomials with p(0) = 1, that of the least
// largest relative error.
constexpr float POWERS[] = {1.3264727198e-03f, 9.6715126396e-03f, 5.5507337433e-02f, 2.4022242085e-01f,
                            6.9314697760e-01f};

#if defined(__AVX512DQ__)
// The forms with a mask of all lanes: GCC 12 warns of its own header in the others.
INLINE V less_nearest(V x) {
  return reinterpret_cast<V>(_mm512_maskz_reduce_ps(0xffff, reinterpret_cast<__m512>(x), 0));
}
INLINE V scaled(V p, V whole) {
  return reinterpret_cast<V>(
      _mm512_maskz_scalef_ps(0xffff, reinterpret_cast<__m512>(p), reinterpret_cast<__m512>(whole)));
}
#endif
}  // namespace detail

// 2^x to 1.6e-7 of its value for x below 126; exactly 1 for 0 and exactly 0 below -127, -inf included (where denormal
// numbers are flushed: see FlushDenormals). NaN stays NaN.
//
// N of them at once, a step of all before the next one: each waits for its own last step, and a core that is shared
// looks too few instructions ahead to find others to do meanwhile.
template <int N>
INLINE void exp2_of(V (&x)[N]) {
  V f[N], p[N];
#if defined(__AVX512DQ__)
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) f[n] = detail::less_nearest(x[n]);
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) x[n] -= f[n];
#else
  constexpr float shift = 12582912.0f;  // 1.5 · 2^23: adding it rounds to an integer, which its last bits then hold
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) {
    const V low = largest(splat(-127.0f), x[n]);
    x[n] = low + shift, f[n] = low - (x[n] - shift);
  }
#endif
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) p[n] = splat(detail::POWERS[0]);
#pragma GCC unroll 4
  for (int i = 1; i < 5; ++i)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) p[n] = p[n] * f[n] + detail::POWERS[i];
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) p[n] = p[n] * f[n] + 1.0f;
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n)
#if defined(__AVX512DQ__)
    x[n] = detail::scaled(p[n], x[n]);
#else
    x[n] = floats(bits(p[n]) + (bits(x[n]) << 23));
#endif
}
INLINE V exp2_of(V x) {
  V one[1] = {x};
  exp2_of(one);
  return one[0];
}

// Keys whose exponentials are taken at once for a panel of N vectors, of an even number of keys: as many as there are
// registers for.
constexpr int AT_ONCE = L == 16 ? 2 : 1;

// The natural logarithm of a normal number, infinity or NaN, to 2e-7 of its value: exactly 0 for 1.
INLINE V log_of(V x) {
  const I exponent = (bits(x) - 0x3f3504f3) >> 23;  // of x / m, where m is in [√½, √2)
  const V m = floats(bits(x) - (exponent << 23));
  const V s = (m - 1.0f) / (m + 1.0f), square = s * s;  // log m = 2 artanh s
  V p = splat(2.0f / 9.0f);
  p = p * square + 2.0f / 7.0f;
  p = p * square + 2.0f / 5.0f;
  p = p * square + 2.0f / 3.0f;
  const V result = (s * square) * p + 2.0f * s + __builtin_convertvector(exponent, V) * LN2;
  return select(x < INFINITE, result, x);
}

// tanh to 2e-7 of its value: by its series near 0, where 1 - 2 / (e^2x + 1) loses digits.
INLINE V tanh_of(V x) {
  const V a = absolute(x);
  const V t = exp2_of(a * (-2.0f * LOG2E));
  const V far = (1.0f - t) / (1.0f + t);
  const V s = x * x;
  V p = splat(-1382.0f / 155925.0f);
  p = p * s + 62.0f / 2835.0f;
  p = p * s - 17.0f / 315.0f;
  p = p * s + 2.0f / 15.0f;
  p = p * s - 1.0f / 3.0f;
  const V near = a + a * s * p;
  const V result = select(a < 0.3f, near, far);
  return floats(bits(result) | (bits(x) & static_cast<int32_t>(0x80000000)));
}

namespace detail {
typedef float Half __attribute__((vector_size(2 * L), aligned(4), may_alias));

template <int From, int... C>
INLINE void store_part(float* to, V v, std::integer_sequence<int, C...>) {
  *reinterpret_cast<Half*>(to) = __builtin_shufflevector(v, v, (From + C)...);
}
}  // namespace detail

// The first and the second half of a vector, each to a place of its own.
INLINE void store_halves(float* first, float* second, V v) {
  detail::store_part<0>(first, v, std::make_integer_sequence<int, L / 2>{});
  detail::store_part<L / 2>(second, v, std::make_integer_sequence<int, L / 2>{});
}

namespace detail {

template <int H, int... C>
INLINE void exchange(V& a, V& b, std::integer_sequence<int, C...>) {
  const V first = __builtin_shufflevector(a, b, ((C & H) ? L + C - H : C)...);
  b = __builtin_shufflevector(a, b, ((C & H) ? L + C : C + H)...);
  a = first;
}

template <int H>
INLINE void transpose_by(V (&m)[L]) {
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i)
    if (!(i & H)) exchange<H>(m[i], m[i + H], std::make_integer_sequence<int, L>{});
  if constexpr (H > 1) transpose_by<H / 2>(m);
}

}  // namespace detail

// Rows become columns: an L × L block in registers.
INLINE void transpose(V (&m)[L]) { detail::transpose_by<L / 2>(m); }

namespace detail {
template <int H>
INLINE void add_by(V (&m)[L]) {
#pragma GCC unroll 8
  for (int i = 0; i < H; ++i) {
    exchange<H>(m[i], m[i + H], std::make_integer_sequence<int, L>{});
    m[i] += m[i + H];
  }
  if constexpr (H > 1) add_by<H / 2>(m);
}
}  // namespace detail

// The sums of L vectors, one a lane.
INLINE V sums_of(V (&m)[L]) {
  detail::add_by<L / 2>(m);
  return m[0];
}

INLINE float sum_of(V v) {
  float lanes[L];
  store(lanes, v);
#pragma GCC unroll 4
  for (int half = L / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

INLINE float largest_of(V v) {
  float lanes[L];
  store(lanes, v);
  float top = lanes[0];
  for (int i = 1; i < L; ++i) top = lanes[i] > top ? lanes[i] : top;
  return top;
}

// While it lives, this thread takes results too small for a normal number as 0: arithmetic on them is a hundred times
// slower, and weights of 1e-38 change nothing.
class FlushDenormals {
 public:
#if defined(__SSE2__)
  FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8000); }
  ~FlushDenormals() { _mm_setcsr(before_); }
#elif defined(__aarch64__)
  FlushDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    asm volatile("msr fpcr, %0" : : "r"(before_ | (uint64_t{1} << 24)));
  }
  ~FlushDenormals() { asm volatile("msr fpcr, %0" : : "r"(before_)); }
#endif
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
#if defined(__SSE2__)
  unsigned before_;
#elif defined(__aarch64__)
  uint64_t before_;
#endif
};

}  // namespace REGARD_ISA
