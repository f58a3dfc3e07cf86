// The two products that everything is made of, a tile of registers at a time: C[m][n] += Σ_k A(m, k) · B[k][n].
//
// B is read as vectors; A one number at a time, which is spread over a vector. In the forward pass the lanes are
// queries: Sᵀ = K · Qᵀ reads keys by rows, and Oᵀ = Vᵀ · Pᵀ reads values by columns. Neither keys nor values have to be
// rearranged, and everything that softmax needs a row at a time happens between vectors.
//
// Two steps of k make one turn of a loop: a core that two threads share starts fewer instructions for each, and those
// that only count take the place of products then.
#pragma once

#include "vector.h"

namespace REGARD_ISA {

template <int M, int N>
struct Tile {
  V at[M][N];

  INLINE void clear() {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) at[m][n] = V{};
  }
};

template <int M, int N>
INLINE void add_outer(Tile<M, N>& c, const float (&a)[M], const float* b) {
  V row[N];
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) row[n] = load(b + n * L);
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) c.at[m][n] += a[m] * row[n];
}

// A(m, k) = rows[m][k].
template <int M, int N>
INLINE void multiply_rows(Tile<M, N>& c, const float* const (&rows)[M], const float* b, int64_t ldb, int64_t K) {
#pragma GCC unroll 2
  for (int64_t k = 0; k < K; ++k, b += ldb) {
    float a[M];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) a[m] = rows[m][k];
    add_outer(c, a, b);
  }
}

// A(m, k) = columns[k · lda + m].
template <int M, int N>
INLINE void multiply_columns(Tile<M, N>& c, const float* columns, int64_t lda, const float* b, int64_t ldb, int64_t K) {
#pragma GCC unroll 2
  for (int64_t k = 0; k < K; ++k, columns += lda, b += ldb) {
    float a[M];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) a[m] = columns[m];
    add_outer(c, a, b);
  }
}

// The vectors from S on of steps that those before them do not take part in: vector n takes part in ends[n], which rise.
template <int S, int M, int N>
INLINE void multiply_rest(Tile<M, N>& c, const float* columns, int64_t lda, const float* b, int64_t ldb,
                          const int64_t (&ends)[N]) {
  if constexpr (S < N) {
    for (int64_t k = ends[S - 1]; k < ends[S]; ++k)
#pragma GCC unroll 4
      for (int n = S; n < N; ++n) {
        const V row = load(b + k * ldb + n * L);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) c.at[m][n] += columns[k * lda + m] * row;
      }
    multiply_rest<S + 1>(c, columns, lda, b, ldb, ends);
  }
}

// Calls f(std::integral_constant<int, N - some>), some being 1 … N - 1.
template <int N, class F>
INLINE void with_fewer(int some, F f) {
  if constexpr (N > 2)
    if (some == 2) return f(std::integral_constant<int, N - 2>{});
  if constexpr (N > 1) f(std::integral_constant<int, N - 1>{});
}

// Calls f<M>(m) for tiles of M rows that cover 0 … rows - 1: full ones first, then 4, 2 and 1.
template <class F>
INLINE void in_tiles(int64_t rows, F f) {
  int64_t m = 0;
  for (; m + TILE_ROWS <= rows; m += TILE_ROWS) f(std::integral_constant<int, TILE_ROWS>{}, m);
  if constexpr (TILE_ROWS > 4)
    for (; m + 4 <= rows; m += 4) f(std::integral_constant<int, 4>{}, m);
  for (; m + 2 <= rows; m += 2) f(std::integral_constant<int, 2>{}, m);
  for (; m < rows; ++m) f(std::integral_constant<int, 1>{}, m);
}

}  // namespace REGARD_ISA
