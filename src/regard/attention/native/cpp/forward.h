// Attention that keeps nothing: tiles of keys, a running maximum and a running sum (arXiv 2112.05682, 2205.14135).
#pragma once

#include "parallel.h"
#include "scores.h"

namespace REGARD_ISA {

// A panel on its way through the keys.
struct Flight {
  Panel panel;
  float *query, *out;                // (D, width), (Dv, width)
  float top[PANEL], total[PANEL];    // the largest score so far, and the sum of 2^(unit · (score - top))

  static int64_t room(const Call& call) { return (call.D + call.Dv) * PANEL; }

  void begin(const Call& call, float* memory, float* room) {
    query = memory, out = memory + call.D * PANEL;
    look(call, panel);
    read_turned(query, panel, call.query, call.dtype, call.D, room);
    memset(out, 0, static_cast<size_t>(call.Dv * panel.width()) * 4);
    for (int64_t i = 0; i < panel.width(); ++i) top[i] = -INFINITE, total[i] = 0;
  }

  template <int N>
  void take(const Call& call, const Matrix& key, const Matrix& value, int64_t j0, int64_t j1, float* s,
            float* addend, bool fresh) {
    const Scoring scoring(call, panel);
    if (scoring.addends) read_addends(scoring, j0, j1, addend);
    V highest[N], keep[N], sum[N], zero[N];
    for (int n = 0; n < N; ++n) highest[n] = load(top + n * L);
    score<N>(scoring, query, key, j0, j1, scoring.addends ? addend : nullptr, s, highest, nullptr, nullptr,
             fresh ? &value : nullptr);
    for (int n = 0; n < N; ++n) {
      const V before = load(top + n * L);
      zero[n] = reference_point(highest[n]);
      keep[n] = select(before == -INFINITE, V{}, exp2_of((before - zero[n]) * scoring.unit));
      sum[n] = V{};
      store(top + n * L, highest[n]);
    }
    for (int64_t j = 0; j < j1 - j0; j += AT_ONCE) {  // past the last key are scores of -inf
      constexpr int SOME = AT_ONCE * N;
      V e[SOME];
      float* at = s + j * N * L;
#pragma GCC unroll 8
      for (int i = 0; i < SOME; ++i) e[i] = (load(at + i * L) - zero[i % N]) * scoring.unit;
      exp2_of(e);
#pragma GCC unroll 8
      for (int i = 0; i < SOME; ++i) {
        store(at + i * L, e[i]);
        sum[i % N] += e[i];
      }
    }
    for (int n = 0; n < N; ++n) store(total + n * L, load(total + n * L) * keep[n] + sum[n]);
    mix<N>(panel, value, call.Dv, j0, j1, s, out, keep);
  }

  void finish(const Call& call, float* room, bool streams) {
    const V sink = splat(call.sink_logits ? call.sink_logits[panel.head] : -INFINITE);
    const float natural = Scoring(call, panel).natural;
    float share[PANEL], logsumexp[PANEL];
    for (int n = 0; n < panel.vectors; ++n) {
      const End end = finish_row(load(top + n * L) * natural, load(total + n * L), sink);
      store(share + n * L, end.share), store(logsumexp + n * L, end.logsumexp);
    }
    if (call.logsumexp)
      memcpy(call.logsumexp + (panel.b * call.Hq + panel.head) * call.Lq + panel.row, logsumexp,
             static_cast<size_t>(panel.rows) * 4);
    write_turned(call.output, call.output_dtype, panel, out, call.Dv, share, room, streams);
  }
};

struct ForwardWorker {
  Scratch memory, heads;
  int64_t held = -1;
};

// Whether all keys and values of a head stay in the second cache.
INLINE bool resident(const Call& call) { return call.Lk * (call.D + call.Dv) * 4 <= (1 << 19); }

// How the panels of a key/value head are divided.
struct Division {
  int64_t units;  // panels of all query heads of the group
  int64_t group;  // panels that share each tile of keys while it is in the first caches
  int64_t item;   // panels that one thread does in a row
  int64_t items;

  Division(const Call& call, const Panels& panels) {
    units = panels.count * (call.Hq / call.Hkv);
    // Where all keys and values stay in the second cache, a panel alone keeps its own queries and outputs in the first.
    group = resident(call) ? 1 : call.D + call.Dv > 256 ? 4 : 8;
    const int64_t heads = call.B * call.Hkv, wanted = call.threads > 1 ? 8 * call.threads : 1;
    const int64_t parts = larger(1, smaller(units, (wanted + heads - 1) / heads));
    item = (units + parts - 1) / parts;
    group = smaller(group, item);
    item = rounded_up(item, group);
    items = (units + item - 1) / item;
  }
};

inline void attend(const Call& call, const uint8_t* seen) {
  const Panels panels(call.Lq);
  const Heads heads(call, seen);
  const Division division(call, panels);
  const int64_t G = call.Hq / call.Hkv, group = division.group, items = division.items;
  const int64_t one = Flight::room(call), columns = rounded_up(larger(call.D, call.Dv), L);
  const int64_t tile = (KEYS + TILE_ROWS) * PANEL;
  const bool streams = streamed(call.output, call.output_dtype, call.B * call.Hq * call.Lq * call.Dv);

  share<ForwardWorker>(
      call.threads, call.B * call.Hkv * items, [] { return ForwardWorker(); },
      [&](ForwardWorker& worker, int64_t index) {
        const int64_t head = index / items, b = head / call.Hkv, hkv = head % call.Hkv;
        // The last rows come first: under a causal mask they take longest.
        const int64_t begin = (items - 1 - index % items) * division.item;
        const int64_t end = smaller(division.units, begin + division.item);
        float* memory = worker.memory.floats(group * one + 2 * tile + L * columns);
        float *s = memory + group * one, *addend = s + tile, *room = addend + tile;
        bool fresh = worker.held != head;
        Matrix key, value;
        heads.get(b, hkv, worker.heads.floats(heads.room()), worker.held, key, value);
        Flight flights[8];
        for (int64_t last = end; last > begin; last -= group, fresh = false) {
          const int64_t from = larger(begin, last - group), count = last - from;
          int64_t lo = call.Lk, hi = 0;
          for (int64_t i = 0; i < count; ++i) {
            Flight& f = flights[i];
            f.panel.b = b, f.panel.head = hkv * G + (from + i) % G;
            panels.place((from + i) / G, call.Lq, f.panel);
            f.begin(call, memory + i * one, room);
            if (f.panel.hi > f.panel.lo) lo = smaller(lo, f.panel.lo), hi = larger(hi, f.panel.hi);
          }
          // Tiles begin at multiples of KEYS, so that a row's sums are the same whatever panels are in its group.
          for (int64_t j = lo / KEYS * KEYS; j < hi; j += KEYS)
            for (int64_t i = 0; i < count; ++i) {
              Flight& f = flights[i];
              const int64_t j0 = larger(j, f.panel.lo), j1 = smaller(j + KEYS, f.panel.hi);
              if (j0 < j1)
                by_vectors(f.panel.vectors, [&](auto n) {
                  f.take<decltype(n)::value>(call, key, value, j0, j1, s, addend, fresh && i == 0);
                });
            }
          for (int64_t i = 0; i < count; ++i) flights[i].finish(call, room, streams);
        }
      });
}

}  // namespace REGARD_ISA
