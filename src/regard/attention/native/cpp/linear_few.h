// A few rows times a matrix, as a model that writes text does it for every piece: the time is that of reading the
// matrix once, so it is read as one stream, in the order of memory.
//
// What a number is, to the bit, depends on its row and its line of the matrix alone, not on how many rows there are.
#pragma once

#include "activation.h"
#include "call.h"
#include "parallel.h"

namespace REGARD_ISA {

constexpr int TOGETHER = 4;           // rows that share each number of the matrix while it is in a register
constexpr int64_t DISTANT = 2048;     // numbers of the matrix that are fetched ahead for three rows or more
constexpr int64_t PORTION = 1 << 16;  // numbers of the matrix that a thread takes at a time, at least

// sums[r · L] = row r of x · line, lane by lane. Two sums a row, since each waits for its last addition.
template <int R, bool FETCH>
INLINE void multiply_line(const float* x, int64_t stride, const float* line, int64_t in, V* sums) {
  V even[R], odd[R];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) even[r] = odd[r] = V{};
  int64_t c = 0;
  for (; c + 2 * L <= in; c += 2 * L) {
    // Into the second cache: the first is full of x. A processor that is busy multiplying does not look far ahead.
    if constexpr (FETCH)
      for (int64_t at = 0; at < 2 * L; at += 16) __builtin_prefetch(line + c + at + DISTANT, 0, 2);
    const V a = load(line + c), b = load(line + c + L);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      even[r] += a * load(x + r * stride + c);
      odd[r] += b * load(x + r * stride + c + L);
    }
  }
  if (c < in) {
    const V a = load(line + c);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) even[r] += a * load(x + r * stride + c);
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) sums[r * L] = even[r] + odd[r];
}

// Lines [from, from + n) of the matrix, n <= L, times R rows from `row` on.
template <int R, bool FETCH>
INLINE void multiply_lines(const Linear& call, int64_t row, int64_t from, int64_t n, V (&found)[R]) {
  V sums[R][L];
  const float* x = call.x + row * call.in;
  for (int64_t i = 0; i < L; ++i)
    if (i < n)
      multiply_line<R, FETCH>(x, call.in, call.weight + (from + i) * call.in, call.in, &sums[0][i]);
    else
      for (int r = 0; r < R; ++r) sums[r][i] = V{};
  const V bias = call.bias == nullptr ? V{} : first_of(call.bias + from, n);
  for (int r = 0; r < R; ++r) found[r] = sums_of(sums[r]) + bias;
}

// Results [from, from + n) of R rows from `row` on.
template <int R, bool FETCH>
__attribute__((noinline)) void make_results(const Linear& call, int64_t row, int64_t from, int64_t n) {
  V found[R];
  multiply_lines<R, FETCH>(call, row, from, n, found);
  activate(call.activation, found);
  if (call.gated) {
    V factors[R];
    multiply_lines<R, FETCH>(call, row, call.lines + from, n, factors);
    for (int r = 0; r < R; ++r) found[r] *= factors[r];
  }
  for (int r = 0; r < R; ++r) store_first(call.out + (row + r) * call.lines + from, found[r], n);
}

// The first rows bring lines into the second cache, from which the others read them.
INLINE void multiply_block(const Linear& call, int64_t from, int64_t n) {
  int64_t row = 0;
  for (; row + TOGETHER <= call.rows; row += TOGETHER)
    row == 0 ? make_results<TOGETHER, true>(call, row, from, n) : make_results<TOGETHER, false>(call, row, from, n);
  switch (call.rows - row) {
    case 3: return row == 0 ? make_results<3, true>(call, row, from, n) : make_results<3, false>(call, row, from, n);
    case 2: return make_results<2, false>(call, row, from, n);
    case 1: return make_results<1, false>(call, row, from, n);
  }
}

inline void linear_of_few(const Linear& call) {
  const int64_t blocks = (call.lines + L - 1) / L;
  const int64_t portion = 1 + PORTION / (call.in * L), items = (blocks + portion - 1) / portion;
  struct Nothing {};
  share<Nothing>(
      call.threads, items, [] { return Nothing{}; },
      [&](Nothing&, int64_t item) {
        for (int64_t block = item * portion; block < blocks && block < (item + 1) * portion; ++block) {
          const int64_t from = block * L, left = call.lines - from;
          multiply_block(call, from, left < L ? left : L);
        }
      });
}

}  // namespace REGARD_ISA
