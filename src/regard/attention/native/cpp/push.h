// What keys get from numbers given to rows: rᵀ P, or rᵀ (G ⊙ P)₊ with G = dO · Vᵀ, and never a matrix.
//
// P comes from scores computed again, as in the backward pass. An item is a range of keys of one query head, to which
// all panels add in order: what it sums is its own, so nothing has to be added up between threads.
#pragma once

#include "backward.h"

namespace REGARD_ISA {

constexpr int64_t RANGE = 512;      // keys of one item
constexpr int64_t FEW_COLUMNS = 4;  // of r, up to which sums keep rows as lanes until the end

struct PushWorker {
  Scratch memory, heads;
  int64_t held = -1;
};

class Pusher {
 public:
  Pusher(const Call& call, const Push& push) : call_(call), push_(push), few_(push.columns <= FEW_COLUMNS) {
    ld_ = few_ ? push.columns * L : rounded_up(push.columns, L);
  }

  // Floats of memory.
  int64_t room() const {
    const int64_t columns = larger(larger(call_.D, call_.Dv), push_.columns);
    return (call_.D + call_.Dv + ld_ + 2 * KEYS + TILE_ROWS) * PANEL + L * rounded_up(columns, L) + RANGE * ld_;
  }

  void use(float* memory) {
    query_ = memory, grad_ = query_ + call_.D * PANEL, rows_ = grad_ + call_.Dv * PANEL;
    p_ = rows_ + ld_ * PANEL, addend_ = p_ + (KEYS + TILE_ROWS) * PANEL, sums_ = addend_ + KEYS * PANEL;
    room_ = sums_ + RANGE * ld_;
  }

  // The keys first … last - 1 of a query head.
  void run(const Panels& panels, int64_t b, int64_t head, const Matrix& key, const Matrix& value, int64_t first,
           int64_t last) {
    memset(sums_, 0, static_cast<size_t>((last - first) * ld_) * 4);
    panel_.b = b, panel_.head = head;
    for (int64_t i = 0; i < panels.count; ++i) {
      panels.place(i, call_.Lq, panel_);
      look(call_, panel_);
      const int64_t from = larger(first, panel_.lo), to = smaller(last, panel_.hi);
      if (from >= to) continue;
      begin();
      for (int64_t j = from; j < to; j += KEYS)
        by_vectors(panel_.vectors, [&](auto n) {
          tile<decltype(n)::value>(key, value, j, smaller(j + KEYS, to), sums_ + (j - first) * ld_);
        });
    }
    float* out = push_.out + ((b * call_.Hq + head) * call_.Lk + first) * push_.columns;
    for (int64_t j = 0; j < last - first; ++j, out += push_.columns)
      for (int64_t c = 0; c < push_.columns; ++c)
        out[c] = few_ ? sum_of(load(sums_ + j * ld_ + c * L)) : sums_[j * ld_ + c];
  }

 private:
  // Reads a panel. Rows that see nothing count as zero: they may hold NaN.
  void begin() {
    read_turned(query_, panel_, call_.query, call_.dtype, call_.D, room_);
    if (push_.grad_output.data) read_turned(grad_, panel_, push_.grad_output, FLOAT32, call_.Dv, room_);
    if (few_) read_turned(rows_, panel_, push_.rows, FLOAT32, push_.columns, room_);
    const float* logsumexp = call_.logsumexp + (panel_.b * call_.Hq + panel_.head) * call_.Lq + panel_.row;
    for (int64_t i = 0; i < panel_.width(); ++i) {
      const bool sees = i < panel_.rows && panel_.stop[i] > panel_.first[i];
      lse_[i] = sees && logsumexp[i] != -INFINITE ? logsumexp[i] : INFINITE;
      if (few_) continue;
      float* to = rows_ + i * ld_;
      if (!sees) memset(to, 0, static_cast<size_t>(ld_) * 4);
      else read_rows(to, ld_, push_.rows, FLOAT32, panel_.b, panel_.head, panel_.row + i, 1, push_.columns);
    }
  }

  template <int N>
  void tile(const Matrix& key, const Matrix& value, int64_t from, int64_t to, float* sums) {
    const Scoring scoring(call_, panel_);
    weigh<N>(scoring, query_, lse_, key, from, to, addend_, p_, nullptr);
    if (push_.grad_output.data)
      differentiate<N, Slope::GAIN>(panel_, value, call_.Dv, grad_, nullptr, from, to, p_, p_);
    if (few_) add_lanes<N>(to - from, sums);
    else accumulate(p_, panel_, from, to, rows_, ld_, sums);
  }

  template <int N>
  void add_lanes(int64_t n_keys, float* sums) const {
    for (int64_t c = 0; c < push_.columns; ++c) {
      V r[N];
      for (int n = 0; n < N; ++n) r[n] = load(rows_ + (c * N + n) * L);
      float* to = sums + c * L;
      const float* p = p_;
      for (int64_t j = 0; j < n_keys; ++j, to += ld_, p += N * L) {
        V sum = load(to);
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) sum += load(p + n * L) * r[n];
        store(to, sum);
      }
    }
  }

  const Call& call_;
  const Push& push_;
  const bool few_;
  int64_t ld_;  // of sums and rows
  Panel panel_;
  float lse_[PANEL];
  float *query_, *grad_, *rows_, *p_, *addend_, *sums_, *room_;
};

inline void push(const Call& call, const Push& push, const uint8_t* seen) {
  const Panels panels(call.Lq);
  const Heads heads(call, seen);
  const int64_t G = call.Hq / call.Hkv, ranges = (call.Lk + RANGE - 1) / RANGE;
  share<PushWorker>(
      call.threads, call.B * call.Hq * ranges, [] { return PushWorker(); },
      [&](PushWorker& worker, int64_t item) {
        const int64_t head = item / ranges % call.Hq, b = item / ranges / call.Hq, first = item % ranges * RANGE;
        Matrix key, value;
        heads.get(b, head / G, worker.heads.floats(heads.room()), worker.held, key, value);
        Pusher work(call, push);
        work.use(worker.memory.floats(work.room()));
        work.run(panels, b, head, key, value, first, smaller(first + RANGE, call.Lk));
      });
}

}  // namespace REGARD_ISA
