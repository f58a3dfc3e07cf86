// Gradients, from scores computed again (arXiv 2205.14135): P = exp(s - logsumexp), dS = P (dO · Vᵀ - Σ dO O).
//
// A block of panels passes over the tiles of keys. Where lanes are queries, Pᵀ and dSᵀ come as in the forward pass, and
// dQᵀ = Kᵀ · dSᵀ is mixed like an output; dV += Pᵀ · dO and dK += dSᵀ · Q have columns of dO and Q as lanes. All of it
// happens while Pᵀ and dSᵀ of one panel and one tile are in the first cache.
#pragma once

#include <vector>

#include "parallel.h"
#include "scores.h"

namespace REGARD_ISA {

constexpr int BLOCK = 192 / PANEL;  // panels of one block, which share each tile of keys and its gradients

// Vectors of the tiles whose lanes are columns: 6 × 4 takes as many sums as 8 × 3, and fits heads of 64 and 128.
constexpr int ACROSS = L == 16 ? 4 : TILE_VECTORS;

template <int M, int N>
void accumulate_tile(const float* a, int64_t width, const float* rows, int64_t ld, int64_t steps, float* to) {
  const float* from[M];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) from[m] = a + m * width;
  Tile<M, N> tile;
  tile.clear();
  multiply_rows(tile, from, rows, ld, steps);
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      float* at = to + m * ld + n * L;
      store(at, load(at) + tile.at[m][n]);
    }
}

template <int N>
void accumulate_columns(const float* a, const Panel& panel, int64_t first, int64_t last, const float* rows, int64_t ld,
                        float* to) {
  constexpr int M = N > TILE_VECTORS ? TILE_ROWS * TILE_VECTORS / N : TILE_ROWS;
  const int64_t width = panel.width();
  const auto add = [&](auto size, int64_t j) {
    const int64_t skip = panel.unseen(first + j) * L;
    accumulate_tile<decltype(size)::value, N>(a + j * width + skip, width, rows + skip * ld, ld, width - skip,
                                              to + j * ld);
  };
  int64_t j = 0;
  for (; first + j + M <= last; j += M) add(std::integral_constant<int, M>{}, j);
  in_tiles(last - first - j, [&](auto size, int64_t m) {
    add(std::integral_constant<int, smaller(decltype(size)::value, M)>{}, j + m);
  });
}

// to (keys, ld) += a (keys, width) · rows (width, ld), for the keys first … last - 1 of a panel.
inline void accumulate(const float* a, const Panel& panel, int64_t first, int64_t last, const float* rows, int64_t ld,
                       float* to) {
  constexpr int64_t most = ACROSS;
  for (int64_t vectors = ld / L, column = 0; vectors > 0;) {
    const int64_t pieces = (vectors + most - 1) / most, some = (vectors + pieces - 1) / pieces;
    const auto add = [&](auto n) {
      accumulate_columns<decltype(n)::value>(a, panel, first, last, rows + column, ld, to + column);
    };
    if (some == 1) add(std::integral_constant<int, 1>{});
    else if (some == 2) add(std::integral_constant<int, 2>{});
    else if (some == 3) add(std::integral_constant<int, smaller(3, most)>{});
    else add(std::integral_constant<int, ACROSS>{});
    vectors -= some, column += some * L;
  }
}

// The weights of a panel and the keys j0 … j1 - 1 from their scores and logsumexps, Pᵀ (j1 - j0, width).
template <int N>
void weigh(const Scoring& scoring, const float* query, const float* logsumexp, const Matrix& key, int64_t j0,
           int64_t j1, float* addend, float* p, float* slope) {
  if (scoring.addends) read_addends(scoring, j0, j1, addend);
  V top[N], lse[N];
  for (int n = 0; n < N; ++n) top[n] = V{}, lse[n] = load(logsumexp + n * L);
  score<N>(scoring, query, key, j0, j1, scoring.addends ? addend : nullptr, p, top, nullptr, slope);
  for (int64_t j = 0; j < j1 - j0; j += AT_ONCE) {  // past the last key are scores of -inf
    constexpr int SOME = AT_ONCE * N;
    V e[SOME];
    float* s = p + j * N * L;
#pragma GCC unroll 8
    for (int i = 0; i < SOME; ++i) e[i] = (load(s + i * L) * scoring.natural - lse[i % N]) * LOG2E;
    exp2_of(e);
#pragma GCC unroll 8
    for (int i = 0; i < SOME; ++i) store(s + i * L, e[i]);
  }
}

enum class Slope { EACH, GAIN };  // dS = P (G - delta), or the gain (P G)₊, where G = dO · Vᵀ

// From p to ds, both (to - from, width), for the keys from … to - 1. Not inlined: in a function of its own the compiler
// has registers for all pointers of the loop.
template <int N, Slope KIND>
__attribute__((noinline)) void differentiate_all(const Matrix& value, int64_t columns, const float* grad, int64_t W,
                                                 const float* deltas, int64_t from, int64_t to, const float* p,
                                                 float* ds) {
  constexpr int M = TILE_ROWS;
  for (int64_t j = from; j < to; j += M, p += M * W, ds += M * W) {
    const float* rows[M];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) rows[m] = value.row(smaller(j + m, to - 1));
    Tile<M, N> tile;
    tile.clear();
    multiply_rows(tile, rows, grad, W, columns);
    const int64_t some = smaller(M, to - j);
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      const V delta = KIND == Slope::EACH ? load(deltas + n * L) : V{};
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const V g = KIND == Slope::EACH ? tile.at[m][n] - delta : largest(V{}, tile.at[m][n]);
        if (m < some) store(ds + m * W + n * L, load(p + m * W + n * L) * g);
      }
    }
  }
}

// The same, but that vectors whose rows see none of the keys are left out: there p is 0, and so is ds.
template <int N, Slope KIND>
void differentiate(const Panel& panel, const Matrix& value, int64_t columns, const float* grad, const float* deltas,
                   int64_t from, int64_t to, const float* p, float* ds) {
  constexpr int64_t M = TILE_ROWS, W = N * L;
  int64_t j = from;
  while (j < to && panel.unseen(j) == 0) j += M;
  differentiate_all<N, KIND>(value, columns, grad, W, deltas, from, smaller(j, to), p, ds);
  for (; j < to; j += M) {
    const int64_t unseen = panel.unseen(j), end = smaller(j + M, to), at = (j - from) * W;
    for (int64_t i = 0; i < end - j; ++i)
      for (int64_t n = 0; n < unseen; ++n) store(ds + at + i * W + n * L, V{});
    const int64_t skip = unseen * L;
    with_fewer<N>(static_cast<int>(unseen), [&](auto n) {
      const float* some = KIND == Slope::EACH ? deltas + skip : nullptr;
      differentiate_all<decltype(n)::value, KIND>(value, columns, grad + skip, W, some, j, end, p + at + skip,
                                                  ds + at + skip);
    });
  }
}

// A panel's part of a block.
struct Part {
  Panel panel;
  int64_t offset;            // of its first row in the block
  float *query, *grad;       // turned: (D, width), (Dv, width)
  float* grad_query;         // (D, width)
  float lse[PANEL], delta[PANEL];
};

// The gradients of one head's keys and values, as far as summed: keys lo … hi - 1 hold numbers, the others are zero and
// not written yet.
struct HeadSums {
  float *key, *value;  // (Lk, ldq), (Lk, ldv)
  int64_t ldq, ldv;
  int64_t lo = 0, hi = 0;

  // Keys from … to - 1 are about to be added to.
  void cover(int64_t from, int64_t to) {
    if (lo == hi) lo = hi = from;
    if (from < lo) clear(from, lo), lo = from;
    if (to > hi) clear(hi, to), hi = to;
  }

 private:
  void clear(int64_t from, int64_t to) const {
    memset(key + from * ldq, 0, static_cast<size_t>((to - from) * ldq) * 4);
    memset(value + from * ldv, 0, static_cast<size_t>((to - from) * ldv) * 4);
  }
};

class Differentiator {
 public:
  Differentiator(const Call& call, const Gradients& gradients) : call_(call), to_(gradients) {
    ldq_ = rounded_up(call.D, L), ldv_ = rounded_up(call.Dv, L);
    streams_ = streamed(gradients.query, call.dtype, call.B * call.Hq * call.Lq * call.D);
    streams_key_ = call.D % L == 0 && streamed(gradients.key, call.dtype, call.B * call.Hkv * call.Lk * call.D);
    streams_value_ = call.Dv % L == 0 && streamed(gradients.value, call.dtype, call.B * call.Hkv * call.Lk * call.Dv);
  }

  // Floats of memory: for a block, and for the gradients of one head's keys and values.
  int64_t room() const {
    const int64_t tile = (KEYS + TILE_ROWS) * PANEL;
    return BLOCK * (2 * call_.D + call_.Dv) * PANEL + 3 * tile + BLOCK * PANEL * (ldq_ + ldv_) + ldv_ + KEYS * PANEL +
           L * larger(ldq_, ldv_);
  }
  int64_t head_room() const { return call_.Lk * (ldq_ + ldv_); }

  void use(float* memory) {
    const int64_t tile = (KEYS + TILE_ROWS) * PANEL;
    for (Part& part : parts_) {
      part.query = memory, part.grad = part.query + call_.D * PANEL;
      part.grad_query = part.grad + call_.Dv * PANEL;
      memory = part.grad_query + call_.D * PANEL;
    }
    p_ = memory, ds_ = p_ + tile, slope_ = ds_ + tile;
    query_rows_ = slope_ + tile, grad_rows_ = query_rows_ + BLOCK * PANEL * ldq_;
    output_row_ = grad_rows_ + BLOCK * PANEL * ldv_;
    addend_ = output_row_ + ldv_, room_ = addend_ + KEYS * PANEL;
  }

  // A block of a query head, by the number of its first panel.
  struct Place {
    int64_t from, b, head;
  };

  // One block, its share of dK and dV added to `sums`. The rows of `next` are fetched meanwhile.
  void block(const Panels& panels, const Place& place, const Place* next, const Matrix& key, const Matrix& value,
             HeadSums& sums) {
    count_ = smaller(BLOCK, panels.count - place.from);
    int64_t lo = call_.Lk, hi = 0, rows = 0;
    for (int64_t i = 0; i < count_; ++i) {
      Part& part = parts_[i];
      part.panel.b = place.b, part.panel.head = place.head, part.offset = rows;
      panels.place(place.from + i, call_.Lq, part.panel);
      begin(part);
      rows += part.panel.width();
      if (part.panel.hi > part.panel.lo) lo = smaller(lo, part.panel.lo), hi = larger(hi, part.panel.hi);
    }
    int64_t row = 0, end = 0, step = 0;  // of `next`, how many at a time
    if (next && hi > lo) {
      row = next->from * TILE_VECTORS * L, end = smaller(row + BLOCK * PANEL, call_.Lq);
      step = (end - row) / ((hi - lo + KEYS - 1) / KEYS * count_) + 1;
    }
    for (int64_t j0 = lo; j0 < hi; j0 += KEYS) {
      const int64_t j1 = smaller(j0 + KEYS, hi);
      fetch_keys(key, value, j1, smaller(j1 + KEYS, hi));
      sums.cover(j0, j1);
      for (int64_t i = 0; i < count_; ++i, row += step) {
        Part& part = parts_[i];
        if (row < end) fetch_rows(*next, row, smaller(row + step, end));
        const int64_t from = larger(j0, part.panel.lo), to = smaller(j1, part.panel.hi);
        if (from >= to) continue;
        by_vectors(part.panel.vectors, [&](auto n) { tile<decltype(n)::value>(part, key, value, from, to); });
        accumulate(p_, part.panel, from, to, grad_rows_ + part.offset * ldv_, ldv_, sums.value + from * ldv_);
        accumulate(ds_, part.panel, from, to, query_rows_ + part.offset * ldq_, ldq_, sums.key + from * ldq_);
      }
    }
    float scale[PANEL];
    for (float& factor : scale) factor = static_cast<float>(call_.scale);
    for (int64_t i = 0; i < count_; ++i)
      write_turned(to_.query, call_.dtype, parts_[i].panel, parts_[i].grad_query, call_.D, scale, room_, streams_);
  }

  // The gradients of one head's keys and values, complete: the sum of `count` parts.
  void write_head(int64_t b, int64_t h, const HeadSums* parts, int64_t count, float* room) const {
    const float scale = static_cast<float>(call_.scale);
    for (int64_t j = 0; j < call_.Lk; ++j) {
      sum_row(parts, count, &HeadSums::key, j, ldq_, scale, room);
      write_row(to_.key, b, h, j, room, call_.D, streams_key_);
      sum_row(parts, count, &HeadSums::value, j, ldv_, 1.0f, room);
      write_row(to_.value, b, h, j, room, call_.Dv, streams_value_);
    }
  }

  HeadSums sums(float* memory) const { return {memory, memory + call_.Lk * ldq_, ldq_, ldv_}; }
  int64_t row_room() const { return larger(ldq_, ldv_); }

 private:
  static void sum_row(const HeadSums* parts, int64_t count, float* HeadSums::*which, int64_t j, int64_t ld,
                      float scale, float* to) {
    for (int64_t c = 0; c < ld; c += L) {
      V sum = V{};
      for (int64_t i = 0; i < count; ++i)
        if (j >= parts[i].lo && j < parts[i].hi) sum += load(parts[i].*which + j * ld + c);
      store(to + c, sum * scale);
    }
  }

  void write_row(const Tensor4& t, int64_t b, int64_t h, int64_t j, const float* from, int64_t columns,
                 bool streams) const {
    char* to = row_to(t, call_.dtype, b, h, j);
    if (!streams) return write_numbers(to, from, call_.dtype, t.column, columns);
    for (int64_t c = 0; c < columns; c += L) stream(reinterpret_cast<float*>(to) + c, load(from + c));
  }

  // What the next tile and the next block read is brought into the second cache.
  static void fetch_row(const char* row, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(row + i, 0, 2);
  }
  void fetch_keys(const Matrix& key, const Matrix& value, int64_t from, int64_t to) const {
    for (int64_t j = from; j < to; ++j) {
      fetch_row(reinterpret_cast<const char*>(key.row(j)), call_.D * 4);
      fetch_row(reinterpret_cast<const char*>(value.row(j)), call_.Dv * 4);
    }
  }
  void fetch_rows(const Place& place, int64_t from, int64_t to) const {
    const int64_t size = size_of(call_.dtype);
    for (int64_t row = from; row < to; ++row) {
      fetch_row(row_at(call_.query, call_.dtype, place.b, place.head, row), call_.D * size);
      fetch_row(row_at(to_.grad_output, call_.dtype, place.b, place.head, row), call_.Dv * size);
      fetch_row(row_at(call_.output, call_.output_dtype, place.b, place.head, row),
                call_.Dv * size_of(call_.output_dtype));
    }
  }

  // Reads a panel's queries and gradients. Rows that see nothing count as zero: they may hold NaN.
  void begin(Part& part) {
    Panel& panel = part.panel;
    look(call_, panel);
    float* query = query_rows_ + part.offset * ldq_;
    float* grad = grad_rows_ + part.offset * ldv_;
    const int64_t width = panel.width();
    for (int64_t i = 0; i < width; ++i, query += ldq_, grad += ldv_) {
      const int64_t row = panel.row + i;
      const bool sees = i < panel.rows && panel.stop[i] > panel.first[i];
      const float lse =
          sees ? call_.logsumexp[(panel.b * call_.Hq + panel.head) * call_.Lq + row] : -INFINITE;
      part.lse[i] = lse == -INFINITE ? INFINITE : lse;
      part.delta[i] = 0;
      if (lse == -INFINITE) {
        memset(query, 0, static_cast<size_t>(ldq_) * 4), memset(grad, 0, static_cast<size_t>(ldv_) * 4);
        continue;
      }
      read_rows(query, ldq_, call_.query, call_.dtype, panel.b, panel.head, row, 1, call_.D);
      read_rows(grad, ldv_, to_.grad_output, call_.dtype, panel.b, panel.head, row, 1, call_.Dv);
      read_rows(output_row_, ldv_, call_.output, call_.output_dtype, panel.b, panel.head, row, 1, call_.Dv);
      V sum = V{};
      for (int64_t c = 0; c < ldv_; c += L) sum += load(grad + c) * load(output_row_ + c);
      part.delta[i] = sum_of(sum);
    }
    for (int64_t v = 0; v < panel.vectors; ++v) {
      turn(part.query + v * L, width, query_rows_ + (part.offset + v * L) * ldq_, ldq_, call_.D);
      turn(part.grad + v * L, width, grad_rows_ + (part.offset + v * L) * ldv_, ldv_, call_.Dv);
    }
    memset(part.grad_query, 0, static_cast<size_t>(call_.D * width) * 4);
  }

  // Pᵀ and dSᵀ of a panel and the keys from … to - 1, and what they add to dQᵀ.
  template <int N>
  void tile(Part& part, const Matrix& key, const Matrix& value, int64_t from, int64_t to) {
    constexpr int W = N * L;
    const Panel& panel = part.panel;
    const Scoring scoring(call_, panel);
    const int64_t n_keys = to - from;
    float* slope = scoring.cap != 0 ? slope_ : nullptr;
    V one[N];
    for (int n = 0; n < N; ++n) one[n] = splat(1.0f);
    weigh<N>(scoring, part.query, part.lse, key, from, to, addend_, p_, slope);
    differentiate<N, Slope::EACH>(panel, value, call_.Dv, part.grad, part.delta, from, to, p_, ds_);
    if (to_.distance_bias) add_distances<N>(panel, from, to, ds_);
    if (slope)
      for (int64_t i = 0; i < n_keys * W; i += L) store(ds_ + i, load(ds_ + i) * load(slope + i));
    mix<N>(panel, key, call_.D, from, to, ds_, part.grad_query, one);
  }

  // The gradient of a bias of distances: row i and key j add to element i - j.
  template <int N>
  void add_distances(const Panel& panel, int64_t from, int64_t to, const float* ds) {
    float* base = to_.distance_bias + (panel.b * call_.Hq + panel.head) * to_.distance_width +
                  position_of(call_, panel.b, panel.row) + call_.distance_origin;
    for (int64_t j = from; j < to; ++j, ds += N * L)
      for (int n = 0; n < N; ++n) {
        float* at = base - j + n * L;
        store(at, load(at) + load(ds + n * L));
      }
  }

  const Call& call_;
  const Gradients& to_;
  int64_t ldq_, ldv_, count_ = 0;
  bool streams_, streams_key_, streams_value_;
  Part parts_[BLOCK];
  float *p_, *ds_, *slope_;  // of one panel and tile: (KEYS + TILE_ROWS, width)
  float *query_rows_, *grad_rows_, *output_row_, *addend_, *room_;
};

struct BackwardWorker {
  Scratch memory, heads, gradients;
  int64_t held = -1;
};

// How many parts the blocks of one key/value head are divided into, each with gradients of its own for keys and values:
// enough to keep many threads busy, as far as they take no more than 64 MiB, and a part has rows enough to be worth the
// addition at the end. Depends on the call's sizes alone.
inline int64_t chunks_of(const Call& call, const Gradients& gradients, int64_t units, int64_t head_room) {
  if (gradients.distance_bias) return 1;
  const int64_t heads = call.B * call.Hkv, busy = smaller(16, call.Lq * (call.Hq / call.Hkv) / 64);
  const int64_t wanted = (busy + heads - 1) / heads, affordable = (64 << 20) / (4 * heads * head_room);
  return larger(1, smaller(units, smaller(wanted, affordable)));
}

inline void backward(const Call& call, const Gradients& gradients, const uint8_t* seen) {
  const Panels panels(call.Lq);
  const Heads heads(call, seen);
  const int64_t G = call.Hq / call.Hkv, units = (panels.count + BLOCK - 1) / BLOCK * G;
  const Differentiator sizes(call, gradients);
  const int64_t head_room = sizes.head_room(), chunks = chunks_of(call, gradients, units, head_room);
  Scratch partial;
  float* all = chunks > 1 ? partial.floats(call.B * call.Hkv * chunks * head_room) : nullptr;
  std::vector<HeadSums> parts(static_cast<size_t>(all ? call.B * call.Hkv * chunks : 0));
  share<BackwardWorker>(
      call.threads, call.B * call.Hkv * chunks, [] { return BackwardWorker(); },
      [&](BackwardWorker& worker, int64_t item) {
        const int64_t index = item / chunks, chunk = chunks - 1 - item % chunks;
        const int64_t b = index / call.Hkv, hkv = index % call.Hkv, part = index * chunks + chunk;
        Matrix key, value;
        heads.get(b, hkv, worker.heads.floats(heads.room()), worker.held, key, value);
        Differentiator work(call, gradients);
        HeadSums sums = work.sums(all ? all + part * head_room : worker.gradients.floats(head_room));
        work.use(worker.memory.floats(work.room()));
        const auto place = [&](int64_t unit) {
          return Differentiator::Place{unit / G * BLOCK, b, hkv * G + unit % G};
        };
        // The last rows come first: under a causal mask they see most keys.
        const int64_t first = units * chunk / chunks;
        for (int64_t unit = units * (chunk + 1) / chunks - 1; unit >= first; --unit) {
          const Differentiator::Place next = place(larger(unit - 1, first));
          work.block(panels, place(unit), unit > first ? &next : nullptr, key, value, sums);
        }
        if (all) parts[static_cast<size_t>(part)] = sums;
        else work.write_head(b, hkv, &sums, 1, worker.memory.floats(0));
      });
  if (!all) return;
  share<BackwardWorker>(
      call.threads, call.B * call.Hkv, [] { return BackwardWorker(); },
      [&](BackwardWorker& worker, int64_t index) {
        sizes.write_head(index / call.Hkv, index % call.Hkv, &parts[static_cast<size_t>(index * chunks)], chunks,
                         worker.memory.floats(sizes.row_room()));
      });
}

}  // namespace REGARD_ISA
