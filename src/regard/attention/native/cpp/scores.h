// The scores of a panel and a tile of keys: scale, softcap, bias and mask applied.
//
// Where nothing but a mask's ranges changes them, the scores are q · k as it is, and the scale waits for the
// exponential, which costs nothing there: 2^(unit · s). Equal products stay equal, whatever the scale. A score that a
// row may not see is -inf. Sᵀ lies with keys as rows: (keys, width of the panel).
#pragma once

#include "panel.h"
#include "products.h"

namespace REGARD_ISA {

// What happens to the products of one panel's queries with keys.
struct Scoring {
  const Call& call;
  const Panel& panel;
  bool plain;                       // nothing but the mask's ranges
  float scale;                      // of a product that becomes a score
  float natural, unit;              // what makes a number of the strip a score, and an exponent of 2
  float cap = 0, into_cap = 0;      // s -> cap · tanh(s · into_cap)
  const float* distance = nullptr;  // the bias of lane 0 and key 0; that of key j stands j before
  bool addends;                     // a tile of bias or allowed keys has to be prepared

  Scoring(const Call& c, const Panel& p) : call(c), panel(p), scale(static_cast<float>(c.scale)) {
    if (c.softcap > 0) cap = static_cast<float>(c.softcap), into_cap = static_cast<float>(1.0 / c.softcap);
    if (c.distance_bias)
      distance = c.distance_bias + p.head * c.distance_head + position_of(c, p.b, p.row) + c.distance_origin;
    addends = c.bias.data || c.allowed.data;
    plain = c.scale > 0 && cap == 0 && !distance && !addends;
    natural = plain ? scale : 1.0f, unit = plain ? static_cast<float>(c.scale * 1.4426950408889634) : LOG2E;
  }
};

// The bias of keys j0 … j1 - 1, -inf where `allowed` says no: (j1 - j0, width).
inline void read_addends(const Scoring& scoring, int64_t j0, int64_t j1, float* to) {
  const Call& call = scoring.call;
  const Panel& panel = scoring.panel;
  const int64_t n = j1 - j0, width = panel.width();
  float rows[L][KEYS], allowed[KEYS];
  const bool alike = (!call.bias.data || call.bias.row == 0) && (!call.allowed.data || call.allowed.row == 0);
  for (int v = 0; v < panel.vectors; ++v) {
    for (int i = 0; i < (alike ? 1 : L); ++i) {
      const int64_t row = panel.row + smaller(static_cast<int64_t>(v) * L + i, panel.rows - 1);
      for (int64_t j = 0; j < KEYS; ++j) rows[i][j] = 0;
      if (call.bias.data) {
        const char* at = row_at(call.bias, call.bias_dtype, panel.b, panel.head, row);
        at += j0 * call.bias.column * size_of(call.bias_dtype);
        read_numbers(rows[i], at, call.bias_dtype, call.bias.column, n);
      }
      if (call.allowed.data) {
        const char* at = row_at(call.allowed, BOOLEAN, panel.b, panel.head, row) + j0 * call.allowed.column;
        read_numbers(allowed, at, BOOLEAN, call.allowed.column, n);
        for (int64_t j = 0; j < n; ++j) rows[i][j] = allowed[j] != 0 ? rows[i][j] : -INFINITE;
      }
    }
    if (alike)
      for (int64_t j = 0; j < n; ++j) store(to + j * width + v * L, splat(rows[0][j]));
    else
      turn(to + v * L, width, rows[0], KEYS, n);
  }
}

// Scores from products s (M, N · L): M keys from j on, those from `end` on are no keys. Out of the way, so that what
// needs none of it keeps its tile in registers.
template <int M, int N>
__attribute__((noinline)) void finish_scores(const Scoring& scoring, float* s, int64_t j, int64_t end,
                                             const float* addend, float* slope) {
  const Panel& panel = scoring.panel;
  for (int m = 0; m < M; ++m, ++j) {
    for (int n = 0; n < N; ++n) {
      float* at = s + (m * N + n) * L;
      V x = load(at);
      if (!scoring.plain) x *= scoring.scale;
      if (scoring.cap != 0) {
        const V t = tanh_of(x * scoring.into_cap);
        x = t * scoring.cap;
        if (slope && j < end) store(slope + m * N * L + n * L, 1.0f - t * t);
      }
      if (scoring.distance && j < end) x += load(scoring.distance - j + n * L);
      if (addend && j < end) {
        const V a = load(addend + m * N * L + n * L);
        x = select(a == -INFINITE, a, x + a);
      }
      const I key = splat(static_cast<int32_t>(j));
      const I seen = (key >= load(panel.first + n * L)) & (key < load(panel.stop + n * L));
      store(at, j < end ? select(seen, x, splat(-INFINITE)) : splat(-INFINITE));
    }
  }
}

INLINE void fetch(const float* row, int64_t columns) {
  for (int64_t c = 0; c < columns; c += 16) __builtin_prefetch(row + c);
}

// M keys and N of the W / L vectors of a panel: their products to `to`.
template <int M, int N>
__attribute__((noinline)) void multiply_some(const float* const (&keys)[M], const float* query, int64_t W, int64_t D,
                                             float* to) {
  Tile<M, N> tile;
  tile.clear();
  multiply_rows(tile, keys, query, W, D);
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) store(to + m * W + n * L, tile.at[m][n]);
}

// The scores of keys j0 … j1 - 1 to s (rounded up to TILE_ROWS keys), their largest a lane joined to `top`.
//
//   addend     | (j1 - j0, width) or null
//   group_top  | the largest of every TILE_ROWS keys, (…, width), or null
//   slope      | the derivative of the softcap, as s, or null
//   soon       | values that are wanted next and in no cache yet, or null: fetched meanwhile, like the next keys
template <int N>
void score(const Scoring& scoring, const float* query, const Matrix& key, int64_t j0, int64_t j1, const float* addend,
           float* s, V (&top)[N], float* group_top, float* slope, const Matrix* soon = nullptr) {
  constexpr int M = TILE_ROWS, W = N * L;
  const int64_t D = scoring.call.D;
  for (int64_t j = j0; j < j1; j += M) {
    if (soon)
      for (int64_t i = j; i < smaller(j + M, j1); ++i) {
        fetch(key.row(smaller(i + M, scoring.call.Lk - 1)), D);
        fetch(soon->row(i), scoring.call.Dv);
      }
    const float* rows[M];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) rows[m] = key.row(smaller(j + m, j1 - 1));
    float* to = s + (j - j0) * W;
    V group[N] = {};
    const int unseen = j < scoring.panel.all_hi ? 0 : scoring.panel.unseen(j);
    if (unseen) {
      for (int i = 0; i < M * N; ++i)
        if (i % N < unseen) store(to + i * L, V{});
      with_fewer<N>(unseen, [&](auto n) {
        multiply_some<M, decltype(n)::value>(rows, query + unseen * L, W, D, to + unseen * L);
      });
    } else {
      Tile<M, N> tile;
      tile.clear();
      multiply_rows(tile, rows, query, W, D);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        group[n] = tile.at[0][n];
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
          group[n] = largest(tile.at[m][n], group[n]);
          store(to + (m * N + n) * L, tile.at[m][n]);
        }
      }
    }
    if (!(scoring.plain && j >= scoring.panel.all_lo && j + M <= scoring.panel.all_hi && j + M <= j1)) {
      const int64_t at = (j - j0) * W;
      finish_scores<M, N>(scoring, to, j, j1, addend ? addend + at : nullptr, slope ? slope + at : nullptr);
      for (int n = 0; n < N; ++n) {
        group[n] = load(to + n * L);
        for (int m = 1; m < M; ++m) group[n] = largest(load(to + (m * N + n) * L), group[n]);
      }
    }
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      top[n] = largest(group[n], top[n]);
      if (group_top) store(group_top + ((j - j0) / M * N + n) * L, group[n]);
    }
  }
}

// What to subtract from scores of which `top` is the largest: where nothing was seen, any finite number will do.
INLINE V reference_point(V top) { return select(top == -INFINITE, V{}, top); }

// Rows that have seen all of their keys.
struct End {
  V share;      // what 2^(unit · (score - top)) is multiplied by to be a weight; 0 where nothing was seen
  V logsumexp;
  V above;      // how far the logsumexp is above the largest score
  V sink;       // the sink's weight
};

// From the largest score `top`, as a natural exponent, the sum `total` of what the others are in relation to it, and a
// sink's logit. A total of 0 says that nothing was seen; NaN goes on.
INLINE End finish_row(V top, V total, V sink) {
  const I nothing = total == 0.0f;
  const V zero = reference_point(top);
  const V base = reference_point(largest(select(nothing, splat(-INFINITE), zero), sink));
  const V ours = select(nothing, V{}, exp2_of((zero - base) * LOG2E));  // 1 unless the sink is above every key
  const V theirs = exp2_of((sink - base) * LOG2E), all = total * ours + theirs;
  const V log_all = log_of(all);
  const I empty = all == 0.0f;
  End end;
  end.share = select(nothing, V{}, ours / all);
  end.logsumexp = select(empty, splat(-INFINITE), base + log_all);
  end.above = base - zero + log_all;
  end.sink = select(empty, V{}, theirs / all);
  return end;
}

// out (columns, width) = out · keep + Valuesᵀ · p, over the keys j0 … j1 - 1, p (j1 - j0, width). A tile is summed on
// its own first: sums of sums round less than one long sum.
template <int N>
void mix(const Panel& panel, const Matrix& value, int64_t columns, int64_t j0, int64_t j1, const float* p, float* out,
         const V (&keep)[N]) {
  constexpr int W = N * L;
  int64_t ends[N];
  for (int n = 0; n < N; ++n) ends[n] = larger(smaller(panel.until[n], j1) - j0, 0);
  in_tiles(columns, [&](auto rows, int64_t d) {
    constexpr int M = decltype(rows)::value;
    Tile<M, N> tile;
    tile.clear();
    const float* at = value.row(j0) + d;
    multiply_columns(tile, at, value.ld, p, W, ends[0]);
    multiply_rest<1>(tile, at, value.ld, p, W, ends);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        float* to = out + (d + m) * W + n * L;
        store(to, load(to) * keep[n] + tile.at[m][n]);
      }
  });
}

// Calls f(std::integral_constant<int, N>) for a panel of N vectors.
template <class F>
INLINE void by_vectors(int vectors, F f) {
  if (vectors == 1) f(std::integral_constant<int, 1>{});
  else if (vectors == 2) f(std::integral_constant<int, 2>{});
  else if constexpr (TILE_VECTORS > 2) f(std::integral_constant<int, 3>{});
}

}  // namespace REGARD_ISA
