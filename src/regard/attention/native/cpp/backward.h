// Gradients, from scores computed again (arXiv 2205.14135): P = exp(s - logsumexp), dS = P (dO · Vᵀ - Σ dO O).
//
// A block of panels passes over the tiles of keys. Where lanes are queries, Pᵀ and dSᵀ come as in the forward pass, and
// dQᵀ = Kᵀ · dSᵀ is mixed like an output; dV += Pᵀ · dO and dK += dSᵀ · Q have columns of dO and Q as lanes. All of it
// happens while Pᵀ and dSᵀ of one panel and one tile are in the first cache.
#pragma once

#include "parallel.h"
#include "scores.h"

namespace REGARD_ISA {

constexpr int BLOCK = 192 / PANEL;  // panels of one block, which share each tile of keys and its gradients

// A panel's part of a block.
struct Part {
  Panel panel;
  int64_t offset;            // of its first row in the block
  float *query, *grad;       // turned: (D, width), (Dv, width)
  float* grad_query;         // (D, width)
  float lse[PANEL], delta[PANEL];
};

class Differentiator {
 public:
  Differentiator(const Call& call, const Gradients& gradients) : call_(call), to_(gradients) {
    ldq_ = rounded_up(call.D, L), ldv_ = rounded_up(call.Dv, L);
    streams_ = streamed(gradients.query, call.dtype, call.B * call.Hq * call.Lq * call.D);
  }

  // Floats of memory: for a block, and for the gradients of one head's keys and values.
  int64_t room() const {
    const int64_t tile = (KEYS + TILE_ROWS) * PANEL;
    return BLOCK * (2 * call_.D + call_.Dv) * PANEL + 3 * tile + (BLOCK * PANEL) * (ldq_ + 2 * ldv_) +
           KEYS * PANEL + L * larger(ldq_, ldv_);
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
    output_rows_ = grad_rows_ + BLOCK * PANEL * ldv_;
    addend_ = output_rows_ + BLOCK * PANEL * ldv_, room_ = addend_ + KEYS * PANEL;
  }

  // One block of one query head, its share of dK and dV added to `grad_key` (Lk, ldq) and `grad_value` (Lk, ldv).
  void block(const Panels& panels, int64_t from, int64_t b, int64_t head, const Matrix& key, const Matrix& value,
             float* grad_key, float* grad_value) {
    count_ = smaller(BLOCK, panels.count - from);
    int64_t lo = call_.Lk, hi = 0, rows = 0;
    for (int64_t i = 0; i < count_; ++i) {
      Part& part = parts_[i];
      part.panel.b = b, part.panel.head = head, part.offset = rows;
      panels.place(from + i, call_.Lq, part.panel);
      begin(part);
      rows += part.panel.width();
      if (part.panel.hi > part.panel.lo) lo = smaller(lo, part.panel.lo), hi = larger(hi, part.panel.hi);
    }
    for (int64_t j0 = lo; j0 < hi; j0 += KEYS) {
      const int64_t j1 = smaller(j0 + KEYS, hi);
      for (int64_t i = 0; i < count_; ++i) {
        Part& part = parts_[i];
        const int64_t from = larger(j0, part.panel.lo), to = smaller(j1, part.panel.hi);
        if (from >= to) continue;
        by_vectors(part.panel.vectors, [&](auto n) { tile<decltype(n)::value>(part, key, value, from, to); });
        const int64_t width = part.panel.width();
        accumulate(p_, width, to - from, grad_rows_ + part.offset * ldv_, ldv_, grad_value + from * ldv_);
        accumulate(ds_, width, to - from, query_rows_ + part.offset * ldq_, ldq_, grad_key + from * ldq_);
      }
    }
    float scale[PANEL];
    for (float& factor : scale) factor = static_cast<float>(call_.scale);
    for (int64_t i = 0; i < count_; ++i)
      write_turned(to_.query, call_.dtype, parts_[i].panel, parts_[i].grad_query, call_.D, scale, room_, streams_);
  }

  // The gradients of one head's keys and values, complete.
  void write_head(int64_t b, int64_t h, float* grad_key, const float* grad_value) const {
    const float scale = static_cast<float>(call_.scale);
    for (int64_t i = 0; i < call_.Lk * ldq_; ++i) grad_key[i] *= scale;
    for (int64_t j = 0; j < call_.Lk; ++j) {
      write_numbers(row_to(to_.key, call_.dtype, b, h, j), grad_key + j * ldq_, call_.dtype, to_.key.column, call_.D);
      write_numbers(row_to(to_.value, call_.dtype, b, h, j), grad_value + j * ldv_, call_.dtype, to_.value.column,
                    call_.Dv);
    }
  }

  int64_t key_ld() const { return ldq_; }

 private:
  // Reads a panel's queries and gradients. Rows that see nothing count as zero: they may hold NaN.
  void begin(Part& part) {
    Panel& panel = part.panel;
    look(call_, panel);
    float* query = query_rows_ + part.offset * ldq_;
    float* grad = grad_rows_ + part.offset * ldv_;
    float* output = output_rows_ + part.offset * ldv_;
    const int64_t width = panel.width();
    for (int64_t i = 0; i < width; ++i, query += ldq_, grad += ldv_, output += ldv_) {
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
      read_rows(output, ldv_, call_.output, call_.dtype, panel.b, panel.head, row, 1, call_.Dv);
      V sum = V{};
      for (int64_t c = 0; c < ldv_; c += L) sum += load(grad + c) * load(output + c);
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
    if (scoring.addends) read_addends(scoring, from, to, addend_);
    V top[N], lse[N], one[N];
    for (int n = 0; n < N; ++n) top[n] = V{}, lse[n] = load(part.lse + n * L), one[n] = splat(1.0f);
    score<N>(scoring, part.query, key, from, to, scoring.addends ? addend_ : nullptr, p_, top, nullptr, slope);
    for (int64_t j = 0; j < n_keys; ++j)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        float* s = p_ + j * W + n * L;
        store(s, exp2_of((load(s) * scoring.natural - lse[n]) * LOG2E));
      }
    differentiate<N>(part, value, from, to, p_, ds_);
    if (to_.distance_bias) add_distances<N>(panel, from, to, ds_);
    if (slope)
      for (int64_t i = 0; i < n_keys * W; i += L) store(ds_ + i, load(ds_ + i) * load(slope + i));
    mix<N>(key, call_.D, from, to, ds_, part.grad_query, one);
  }

  // Not inlined: in a function of its own the compiler has registers for all pointers of the loop.
  template <int N>
  __attribute__((noinline)) void differentiate(const Part& part, const Matrix& value, int64_t from, int64_t to, const float* p, float* ds) {
    constexpr int M = TILE_ROWS, W = N * L;
    for (int64_t j = from; j < to; j += M, p += M * W, ds += M * W) {
      const float* rows[M];
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) rows[m] = value.row(smaller(j + m, to - 1));
      Tile<M, N> tile;
      tile.clear();
      multiply_rows(tile, rows, part.grad, W, call_.Dv);
      const int64_t some = smaller(M, to - j);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        const V delta = load(part.delta + n * L);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m)
          if (m < some) store(ds + m * W + n * L, load(p + m * W + n * L) * (tile.at[m][n] - delta));
      }
    }
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

  // to (n_keys, ld) += a (n_keys, width) · rows (width, ld).
  static void accumulate(const float* a, int64_t width, int64_t n_keys, const float* rows, int64_t ld, float* to) {
    int64_t vectors = ld / L, column = 0;
    while (vectors > 0) {
      const int64_t some = vectors == 4 || vectors == 2 ? 2 : smaller(TILE_VECTORS, vectors);
      by_vectors(static_cast<int>(some), [&](auto n) {
        accumulate_columns<decltype(n)::value>(a, width, n_keys, rows + column, ld, to + column);
      });
      vectors -= some, column += some * L;
    }
  }

  template <int N>
  static void accumulate_columns(const float* a, int64_t width, int64_t n_keys, const float* rows, int64_t ld,
                                 float* to) {
    in_tiles(n_keys, [&](auto size, int64_t j) {
      constexpr int M = decltype(size)::value;
      const float* from[M];
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) from[m] = a + (j + m) * width;
      Tile<M, N> tile;
      tile.clear();
      multiply_rows(tile, from, rows, ld, width);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
          float* at = to + (j + m) * ld + n * L;
          store(at, load(at) + tile.at[m][n]);
        }
    });
  }

  const Call& call_;
  const Gradients& to_;
  int64_t ldq_, ldv_, count_ = 0;
  bool streams_;
  Part parts_[BLOCK];
  float *p_, *ds_, *slope_;  // of one panel and tile: (KEYS + TILE_ROWS, width)
  float *query_rows_, *grad_rows_, *output_rows_, *addend_, *room_;
};

struct BackwardWorker {
  Scratch memory, heads, gradients;
  int64_t held = -1;
};

// How many parts the blocks of one key/value head are divided into, each with gradients of its own for keys and values:
// enough to keep many threads busy, as far as they take no more than 64 MiB. Depends on the call's sizes alone.
inline int64_t chunks_of(const Call& call, const Gradients& gradients, int64_t units, int64_t head_room) {
  if (gradients.distance_bias) return 1;
  const int64_t heads = call.B * call.Hkv, wanted = (16 + heads - 1) / heads;
  const int64_t affordable = (64 << 20) / (4 * heads * head_room);
  return larger(1, smaller(units, smaller(wanted, affordable)));
}

inline void backward(const Call& call, const Gradients& gradients, const uint8_t* seen) {
  const Panels panels(call.Lq);
  const Heads heads(call, seen);
  const int64_t G = call.Hq / call.Hkv, units = (panels.count + BLOCK - 1) / BLOCK * G;
  const Differentiator sizes(call, gradients);
  const int64_t head_room = sizes.head_room(), key_room = call.Lk * sizes.key_ld();
  const int64_t chunks = chunks_of(call, gradients, units, head_room);
  Scratch partial;
  float* all = chunks > 1 ? partial.floats(call.B * call.Hkv * chunks * head_room) : nullptr;
  share<BackwardWorker>(
      call.threads, call.B * call.Hkv * chunks, [] { return BackwardWorker(); },
      [&](BackwardWorker& worker, int64_t item) {
        const int64_t index = item / chunks, chunk = chunks - 1 - item % chunks;
        const int64_t b = index / call.Hkv, hkv = index % call.Hkv;
        Matrix key, value;
        heads.get(b, hkv, worker.heads.floats(heads.room()), worker.held, key, value);
        float* grad_key =
            all ? all + (index * chunks + chunk) * head_room : worker.gradients.floats(head_room);
        memset(grad_key, 0, static_cast<size_t>(head_room) * 4);
        Differentiator work(call, gradients);
        work.use(worker.memory.floats(work.room()));
        for (int64_t unit = units * chunk / chunks; unit < units * (chunk + 1) / chunks; ++unit)
          work.block(panels, unit / G * BLOCK, b, hkv * G + unit % G, key, value, grad_key, grad_key + key_room);
        if (!all) work.write_head(b, hkv, grad_key, grad_key + key_room);
      });
  if (!all) return;
  share<BackwardWorker>(
      call.threads, call.B * call.Hkv, [] { return BackwardWorker(); },
      [&](BackwardWorker&, int64_t index) {
        float* sum = all + index * chunks * head_room;
        for (int64_t chunk = 1; chunk < chunks; ++chunk)
          for (int64_t i = 0; i < head_room; ++i) sum[i] += sum[chunk * head_room + i];
        sizes.write_head(index / call.Hkv, index % call.Hkv, sum, sum + key_room);
      });
}

}  // namespace REGARD_ISA
