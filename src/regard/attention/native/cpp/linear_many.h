// Many rows times a matrix, as a model that reads does it: the time is that of the arithmetic.
//
// Lines of the matrix are the lanes: as many as a register tile is wide are transposed into a panel, which then stays in
// a cache while all rows pass by. A sum is made in the same order whatever rows come with it.
#pragma once

#include "activation.h"
#include "call.h"
#include "numbers.h"
#include "parallel.h"
#include "products.h"

namespace REGARD_ISA {

constexpr int64_t LINES = TILE_VECTORS * L;  // lines of the matrix
// A sum of this many products is added to the total, so that rounding grows with the root of in / STEPS.
constexpr int64_t STEPS = 384;
constexpr int64_t LEAST_ROWS = 128;  // of an item, where several threads work: each makes its own panel

// panel[k · LINES + i] = number k of line i, for n lines; zeros up to the next whole vector.
inline void make_panel(const float* lines, int64_t n, int64_t in, float* panel) {
  for (int64_t from = 0; from < n; from += L)
    for (int64_t k = 0; k < in; k += L) {
      V block[L];
      for (int64_t i = 0; i < L; ++i) block[i] = from + i < n ? load(lines + (from + i) * in + k) : V{};
      transpose(block);
      for (int64_t i = 0; i < L; ++i) store(panel + (k + i) * LINES + from, block[i]);
    }
}

// n lines that meet rows, and what becomes of their sums.
struct Pass {
  const float *x, *panel;
  int64_t in, n;
  const float* bias;  // of the first line, or null
  int64_t activation;
  bool factors;  // multiplied with what is there, instead of replacing it
  float* out;    // of row 0 and the first line
  int64_t stride;
};

template <int M, int N>
__attribute__((noinline)) void finish_slowly(const Pass& pass, int64_t row, Tile<M, N>& total) {
  for (int m = 0; m < M; ++m) {
    V(&x)[N] = total.at[m];
    if (pass.bias != nullptr)
      for (int n = 0; n < N; ++n) x[n] += first_of(pass.bias + n * L, pass.n - n * L);
    activate(pass.activation, x);
    float* out = pass.out + (row + m) * pass.stride;
    for (int n = 0; n < N; ++n) {
      const int64_t left = pass.n - n * L;
      store_first(out + n * L, pass.factors ? x[n] * first_of(out + n * L, left) : x[n], left);
    }
  }
}

template <int M, int N>
INLINE void finish(const Pass& pass, int64_t row, Tile<M, N>& total) {
  if (pass.activation != NO_ACTIVATION || pass.factors || pass.n < N * L) return finish_slowly(pass, row, total);
  V bias[N] = {};  // the sums do not leave their registers
  if (pass.bias != nullptr)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) bias[n] = load(pass.bias + n * L);
  float* out = pass.out + row * pass.stride;
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m, out += pass.stride)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) store(out + n * L, total.at[m][n] + bias[n]);
}

// Products [k, k + STEPS) of M rows and a panel of N vectors.
template <int M, int N>
INLINE void multiply_steps(const Pass& pass, int64_t row, int64_t k, Tile<M, N>& sums) {
  const float* rows[M];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) rows[m] = pass.x + (row + m) * pass.in + k;
  sums.clear();
  multiply_rows(sums, rows, pass.panel + k * LINES, LINES, pass.in - k < STEPS ? pass.in - k : STEPS);
}

template <int M, int N>
__attribute__((noinline)) void add_steps(const Pass& pass, int64_t row, int64_t k, Tile<M, N>& total) {
  Tile<M, N> sums;
  multiply_steps(pass, row, k, sums);
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) total.at[m][n] += sums.at[m][n];
}

template <int M, int N>
__attribute__((noinline)) void multiply_tile(const Pass& pass, int64_t row) {
  Tile<M, N> total;
  multiply_steps(pass, row, 0, total);
  for (int64_t k = STEPS; k < pass.in; k += STEPS) add_steps(pass, row, k, total);
  finish(pass, row, total);
}

template <int N>
void multiply_rows_of(const Pass& pass, int64_t from, int64_t to) {
  in_tiles(to - from, [&](auto size, int64_t row) { multiply_tile<decltype(size)::value, N>(pass, from + row); });
}

// Rows [from, to) times the n lines of the matrix from `line` on.
inline void multiply_many(const Linear& call, int64_t line, int64_t from, int64_t to, float* panel, const Pass& pass) {
  make_panel(call.weight + line * call.in, pass.n, call.in, panel);
  switch ((pass.n + L - 1) / L) {
    case 1: return multiply_rows_of<1>(pass, from, to);
    case 2: return multiply_rows_of<2>(pass, from, to);
    default: return multiply_rows_of<TILE_VECTORS>(pass, from, to);
  }
}

inline void linear_of_many(const Linear& call) {
  const int64_t panels = (call.lines + LINES - 1) / LINES;
  // Four items a thread, so that none waits long for the last one, where there are so many rows.
  const int64_t wanted = call.threads == 1 ? 1 : (4 * call.threads + panels - 1) / panels;
  const int64_t most = (call.rows + LEAST_ROWS - 1) / LEAST_ROWS, parts = wanted < most ? wanted : most;
  const int64_t part = rounded_up((call.rows + parts - 1) / parts, TILE_ROWS);
  share<Scratch>(
      call.threads, panels * parts, [] { return Scratch(); },
      [&](Scratch& memory, int64_t item) {
        float* panel = memory.floats(LINES * call.in);
        const int64_t line = item / parts * LINES, left = call.lines - line, n = left < LINES ? left : LINES;
        const int64_t from = item % parts * part, to = from + part < call.rows ? from + part : call.rows;
        Pass pass{call.x, panel, call.in, n, nullptr, call.activation, false, call.out + line, call.lines};
        if (call.bias != nullptr) pass.bias = call.bias + line;
        multiply_many(call, line, from, to, panel, pass);
        if (!call.gated) return;
        if (call.bias != nullptr) pass.bias += call.lines;
        pass.activation = NO_ACTIVATION, pass.factors = true;
        multiply_many(call, call.lines + line, from, to, panel, pass);
      });
}

}  // namespace REGARD_ISA
