// The two products of a few rows of queries, read together, with many rows of keys or values.
#pragma once

#include "products.h"

namespace REGARD_ISA {

constexpr int64_t AHEAD = 8;  // rows of values that are fetched before they are wanted

// sums[r · LD + i] = row r (columns numbers) · key j + i, lane by lane. Keys from n on are the last one. The keys that
// stand L later are fetched meanwhile.
template <int R, int K, int LD>
__attribute__((noinline)) void add_products(const float* query, int64_t columns, const float* key, int64_t stride,
                                            int64_t j, int64_t n, V* sums) {
  const float* at[K];
#pragma GCC unroll 8
  for (int i = 0; i < K; ++i) at[i] = key + (j + i < n ? j + i : n - 1) * stride;
  V sum[R][K];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int i = 0; i < K; ++i) sum[r][i] = V{};
  const int64_t ahead = L * stride;
  for (int64_t c = 0; c < columns; c += L) {
    V k[K];
#pragma GCC unroll 8
    for (int i = 0; i < K; ++i) k[i] = load(at[i] + c), __builtin_prefetch(at[i] + c + ahead);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const V x = load(query + r * columns + c);
#pragma GCC unroll 8
      for (int i = 0; i < K; ++i) sum[r][i] += k[i] * x;
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int i = 0; i < K; ++i) sums[r * LD + i] = sum[r][i];
}

// s (R, n), rows `width` apart: query (R, columns) with n <= L keys. Up to L numbers of a row of s are written.
template <int R>
void multiply_few(const float* query, int64_t columns, const float* key, int64_t stride, int64_t n, float* s,
                  int64_t width) {
  constexpr int K = L / R, STEP = K > 8 ? 8 : K;  // keys of one reduction, and those whose addresses fit in registers
  for (int64_t j = 0; j < n; j += K) {
    V sums[L];
#pragma GCC unroll 2
    for (int i = 0; i < K; i += STEP) add_products<R, STEP, K>(query, columns, key, stride, j + i, n, sums + i);
    const V found = sums_of(sums);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) memcpy(s + r * width + j, reinterpret_cast<const float*>(&found) + r * K, K * 4);
  }
}

// C vectors of columns of `add_few`: not inlined, where it would lack registers.
template <int R, int C>
__attribute__((noinline)) void add_columns(const float* value, int64_t stride, int64_t n, const float* e, int64_t width,
                                           float* out, int64_t ld) {
  Tile<R, C> sum;
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) sum.at[r][c] = load(out + r * ld + c * L);
  const int64_t ahead = AHEAD * stride;
  for (int64_t j = 0; j < n; ++j, value += stride) {
    V v[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      v[c] = load(value + c * L);
      if (c * L % 16 == 0) __builtin_prefetch(value + c * L + ahead);
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) sum.at[r][c] += e[r * width + j] * v[c];
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) store(out + r * ld + c * L, sum.at[r][c]);
}

// out (R, ld) += e (R, n) · values (n, ld); rows of e are `width` apart, those of values `stride`.
template <int R>
void add_few(const float* value, int64_t stride, int64_t n, const float* e, int64_t width, float* out, int64_t ld) {
  constexpr int MOST = TILE_ROWS == 8 ? (R == 4 ? 4 : 8) : 8 / R;
  int64_t c = 0;
  for (; c + MOST * L <= ld; c += MOST * L) add_columns<R, MOST>(value + c, stride, n, e, width, out + c, ld);
  if constexpr (MOST > 4)
    for (; c + 4 * L <= ld; c += 4 * L) add_columns<R, 4>(value + c, stride, n, e, width, out + c, ld);
  for (; c + 2 * L <= ld; c += 2 * L) add_columns<R, 2>(value + c, stride, n, e, width, out + c, ld);
  for (; c < ld; c += L) add_columns<R, 1>(value + c, stride, n, e, width, out + c, ld);
}

// Calls f<R>(r) for `rows` rows: four at once first, then two and one.
template <class F>
INLINE void by_few(int64_t rows, F f) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) f(std::integral_constant<int, 4>{}, r);
  if (r + 2 <= rows) f(std::integral_constant<int, 2>{}, r), r += 2;
  if (r < rows) f(std::integral_constant<int, 1>{}, r);
}

}  // namespace REGARD_ISA
