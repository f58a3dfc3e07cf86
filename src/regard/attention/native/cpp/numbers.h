// Numbers of every type that comes in, as float32, and back.
#pragma once

#include "call.h"
#include "vector.h"

namespace REGARD_ISA {

INLINE float from_bfloat16(uint16_t x) {
  const uint32_t u = static_cast<uint32_t>(x) << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}

INLINE uint16_t to_bfloat16(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  const uint32_t rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;  // to nearest, ties to even
  return static_cast<uint16_t>((u & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

// The exponent is moved by a multiplication, which also makes denormal numbers right.
INLINE float from_float16(uint16_t x) {
  uint32_t u = static_cast<uint32_t>(x & 0x7fff) << 13;
  float f;
  memcpy(&f, &u, 4);
  f *= 0x1p112f;
  memcpy(&u, &f, 4);
  u |= (x & 0x7c00) == 0x7c00 ? 0x7f800000u : 0u;
  u |= static_cast<uint32_t>(x & 0x8000) << 16;
  memcpy(&f, &u, 4);
  return f;
}

INLINE uint16_t to_float16(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  const uint32_t sign = (u >> 16) & 0x8000;
  u &= 0x7fffffff;
  if (u > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  if (u >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // rounds to more than the largest number
  if (u < 0x38800000) {  // denormal: adding 1/2 leaves the number's multiple of 2^-24 in the last bits, rounded
    float a;
    memcpy(&a, &u, 4);
    a += 0.5f;
    memcpy(&u, &a, 4);
    return static_cast<uint16_t>(sign | (u - 0x3f000000));
  }
  return static_cast<uint16_t>(sign | ((u - 0x38000000 + 0xfff + ((u >> 13) & 1)) >> 13));
}

INLINE int64_t size_of(int64_t type) { return type == FLOAT32 ? 4 : type == BOOLEAN ? 1 : 2; }

// Where the numbers of a row of a tensor begin.
INLINE const char* row_at(const Tensor4& t, int64_t type, int64_t b, int64_t h, int64_t row) {
  return static_cast<const char*>(t.data) + size_of(type) * (b * t.batch + h * t.head + row * t.row);
}
INLINE char* row_to(const Tensor4& t, int64_t type, int64_t b, int64_t h, int64_t row) {
  return static_cast<char*>(t.data) + size_of(type) * (b * t.batch + h * t.head + row * t.row);
}

namespace detail {
template <class T, float From(T)>
INLINE void read_as(float* to, const char* from, int64_t stride, int64_t n) {
  const T* x = reinterpret_cast<const T*>(from);
  if (stride == 1)
    for (int64_t i = 0; i < n; ++i) to[i] = From(x[i]);
  else
    for (int64_t i = 0; i < n; ++i) to[i] = From(x[i * stride]);
}
template <class T, T To(float)>
INLINE void write_as(char* to, const float* from, int64_t stride, int64_t n) {
  T* x = reinterpret_cast<T*>(to);
  if (stride == 1)
    for (int64_t i = 0; i < n; ++i) x[i] = To(from[i]);
  else
    for (int64_t i = 0; i < n; ++i) x[i * stride] = To(from[i]);
}
INLINE float same(float x) { return x; }
INLINE float truth(uint8_t x) { return x ? 1.0f : 0.0f; }
}  // namespace detail

// n numbers of a tensor, `stride` apart, as floats.
inline void read_numbers(float* to, const char* from, int64_t type, int64_t stride, int64_t n) {
  if (type == FLOAT32) detail::read_as<float, detail::same>(to, from, stride, n);
  else if (type == BFLOAT16) detail::read_as<uint16_t, from_bfloat16>(to, from, stride, n);
  else if (type == FLOAT16) detail::read_as<uint16_t, from_float16>(to, from, stride, n);
  else detail::read_as<uint8_t, detail::truth>(to, from, stride, n);
}

inline void write_numbers(char* to, const float* from, int64_t type, int64_t stride, int64_t n) {
  if (type == FLOAT32) detail::write_as<float, detail::same>(to, from, stride, n);
  else if (type == BFLOAT16) detail::write_as<uint16_t, to_bfloat16>(to, from, stride, n);
  else detail::write_as<uint16_t, to_float16>(to, from, stride, n);
}

INLINE int64_t rounded_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
INLINE constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace REGARD_ISA
