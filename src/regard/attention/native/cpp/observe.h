// Attention that says what it saw. The scores of a panel with all its keys are held as one strip, a number a row and
// key, so that softmax, statistics and output come from scores that were computed once.
#pragma once

#include "forward.h"
#include "top.h"

namespace REGARD_ISA {

// How a call's panels are divided: `slots` runs of neighbouring panels a head, each run done by one thread, in order.
// What keys receive is summed within a run, then over runs. Depends on the call's sizes alone.
struct Runs {
  Panels panels;
  int64_t slots;

  explicit Runs(const Call& call)
      : panels(call.Lq), slots(smaller(panels.count, larger(1, 64 / larger(1, call.B * call.Hq)))) {}

  int64_t from(int64_t slot) const { return panels.count * slot / slots; }
};

// What one row saw, a row a lane, while its panel passes over the keys.
struct Sums {
  float total[PANEL], entropy[PANEL], position[PANEL], distance[PANEL];
};

constexpr int64_t NEAR = 16;  // keys near to a panel's rows are summed in such steps

struct Offsets {
  float at[KEYS];
  constexpr Offsets() : at() {
    for (int i = 0; i < KEYS; ++i) at[i] = static_cast<float>(i);
  }
};
constexpr Offsets OFFSETS;  // 0, 1, 2, …

class Observer {
 public:
  Observer(const Call& call, const Seen& seen)
      : call_(call), seen_(seen),
        streams_(streamed(call.output, call.output_dtype, call.B * call.Hq * call.Lq * call.Dv)) {}

  static int64_t room(const Call& call, const Seen& seen) {
    const int64_t keys = call.Lk + TILE_ROWS, columns = rounded_up(larger(call.D, call.Dv), L);
    return (call.D + call.Dv + keys + keys / TILE_ROWS + 2 + KEYS + seen.segment_count) * PANEL + L * columns +
           TopRoom::room(seen.top, call.Lk);
  }

  // Lays out a thread's memory.
  void use(float* memory) {
    const int64_t keys = call_.Lk + TILE_ROWS;
    query_ = memory, out_ = query_ + call_.D * PANEL;
    strip_ = out_ + call_.Dv * PANEL, groups_ = strip_ + keys * PANEL;
    addend_ = groups_ + (keys / TILE_ROWS + 2) * PANEL, segments_ = addend_ + KEYS * PANEL;
    room_ = segments_ + seen_.segment_count * PANEL;
    top_ = room_ + L * rounded_up(larger(call_.D, call_.Dv), L);
  }

  // The panels of one run; `received` (Lk,) gets what they gave to each key.
  void run(const Runs& runs, int64_t b, int64_t head, int64_t slot, const Matrix& key, const Matrix& value,
           float* received, bool fresh) {
    if (received) memset(received, 0, static_cast<size_t>(call_.Lk) * 4);
    for (int64_t i = runs.from(slot); i < runs.from(slot + 1); ++i, fresh = false) {
      panel_.b = b, panel_.head = head;
      runs.panels.place(i, call_.Lq, panel_);
      look(call_, panel_);
      by_vectors(panel_.vectors, [&](auto n) { pass<decltype(n)::value>(key, value, received, fresh); });
    }
  }

 private:
  template <int N>
  void pass(const Matrix& key, const Matrix& value, float* received, bool fresh) {
    constexpr int W = N * L;
    const Scoring scoring(call_, panel_);
    const int64_t lo = panel_.lo, hi = panel_.hi;
    read_turned(query_, panel_, call_.query, call_.dtype, call_.D, room_);
    V top[N], zero[N], share[N];
    for (int n = 0; n < N; ++n) top[n] = splat(-INFINITE);
    for (int64_t j = lo; j < hi; j += KEYS) {
      const int64_t end = smaller(j + KEYS, hi);
      if (scoring.addends) read_addends(scoring, j, end, addend_);
      score<N>(scoring, query_, key, j, end, scoring.addends ? addend_ : nullptr, strip_ + (j - lo) * W, top,
               groups_ + (j - lo) / TILE_ROWS * W, nullptr, fresh ? &value : nullptr);
    }
    const TopRoom room(seen_.top, hi - lo, call_.Lk, top_);
    if (seen_.top) pick<N>(room, strip_, groups_, hi - lo, panel_.rows);

    const V sink = splat(call_.sink_logits ? call_.sink_logits[panel_.head] : -INFINITE);
    for (int n = 0; n < N; ++n) zero[n] = reference_point(top[n]);
    weigh<N>(scoring.unit, zero, value);
    End ends[N];
    for (int n = 0; n < N; ++n) {
      ends[n] = finish_row(top[n] * scoring.natural, load(sums_.total + n * L), sink);
      share[n] = ends[n].share;
    }

    if (received) give<N>(share, received);
    if (seen_.segment_mass) gather_segments<N>(share);
    float shares[PANEL];
    for (int n = 0; n < N; ++n) store(shares + n * L, share[n]);
    write_turned(call_.output, call_.output_dtype, panel_, out_, call_.Dv, shares, room_, streams_);
    report<N>(room, scoring.unit, zero, ends);
  }

  // The strip becomes 2^(unit · (score - zero)), and is summed, also with the values.
  template <int N>
  void weigh(float unit, const V (&zero)[N], const Matrix& value) {
    constexpr int W = N * L;
    const int64_t lo = panel_.lo, hi = panel_.hi;
    const int64_t start = position_of(call_, panel_.b, panel_.row);
    memset(&sums_, 0, sizeof sums_);
    memset(out_, 0, static_cast<size_t>(call_.Dv * W) * 4);
    const bool fetches = !resident(call_);  // the values of the next tile
    V one[N];
    for (int n = 0; n < N; ++n) one[n] = splat(1.0f);
    for (int64_t j0 = lo; j0 < hi; j0 += KEYS) {
      const int64_t n_keys = smaller(KEYS, hi - j0);
      float* s = strip_ + (j0 - lo) * W;
      V total[N];  // as the plain pass sums a tile, so that outputs are the same
      for (int n = 0; n < N; ++n) total[n] = V{};
      // Where keys and rows are neighbours, differences of large sums would lose digits of |i - j|.
      if (start + W > j0 - KEYS && start < j0 + n_keys + KEYS)
        for (int64_t j = 0; j < n_keys; j += NEAR)
          weigh_some<N, true>(unit, zero, s + j * W, j0 + j, start - (j0 + j), smaller(NEAR, n_keys - j), total,
                              nullptr);
      else
        weigh_some<N, false>(unit, zero, s, j0, start - j0, n_keys, total,
                             fetches && j0 + 2 * KEYS <= hi ? &value : nullptr);
      for (int n = 0; n < N; ++n) store(sums_.total + n * L, load(sums_.total + n * L) + total[n]);
      mix<N>(panel_, value, call_.Dv, j0, j0 + n_keys, s, out_, one);
    }
  }

  // The part of `weigh` for up to KEYS keys from `first` on, which stands `apart` before the panel's first row. They
  // are added to `total`, and summed on their own as well where they are but a part of a tile. Meanwhile the rows of
  // `soon`, where it is not null, that stand KEYS later are fetched.
  template <int N, bool Part>
  INLINE void weigh_some(float unit, const V (&zero)[N], float* s, int64_t first, int64_t apart, int64_t n_keys,
                         V (&total)[N], const Matrix* soon) {
    constexpr int W = N * L;
    V sum[N], moment[N], entropy[N];
    for (int n = 0; n < N; ++n) sum[n] = moment[n] = entropy[n] = V{};
    for (int64_t j = 0; j < n_keys; ++j) {
      const float offset = OFFSETS.at[j];
      if (soon) fetch(soon->row(first + KEYS + j), call_.Dv);
      V x[N], e[N];
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) e[n] = x[n] = largest(splat(-127.0f), (load(s + j * W + n * L) - zero[n]) * unit);
      exp2_of(e);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        store(s + j * W + n * L, e[n]);
        total[n] += e[n];
        if (Part) sum[n] += e[n];
        moment[n] += e[n] * offset;
        entropy[n] -= e[n] * x[n];
      }
    }
    for (int n = 0; n < N; ++n) {
      if (!Part) sum[n] = total[n];
      store(sums_.entropy + n * L, load(sums_.entropy + n * L) + entropy[n]);
      const V position = sum[n] * static_cast<float>(first) + moment[n];
      store(sums_.position + n * L, load(sums_.position + n * L) + position);
      const I whole = lane_numbers() + static_cast<int32_t>(apart + n * L);
      const V from = __builtin_convertvector(whole, V);  // i - first
      V distance = V{};
      if (apart + n * L >= n_keys - 1) distance = from * sum[n] - moment[n];
      else if (apart + (n + 1) * L - 1 <= 0) distance = moment[n] - from * sum[n];
      else
        for (int64_t j = 0; j < n_keys; ++j) distance += load(s + j * W + n * L) * absolute(from - OFFSETS.at[j]);
      store(sums_.distance + n * L, load(sums_.distance + n * L) + distance);
    }
  }

  // Adds what the keys get from this panel's rows.
  template <int N>
  void give(const V (&share)[N], float* received) {
    V given[N];  // lanes that are no rows of the call give nothing
    for (int n = 0; n < N; ++n)
      given[n] = select(lane_numbers() + n * L < static_cast<int32_t>(panel_.rows), share[n], V{});
    const float* e = strip_;
    for (int64_t j = panel_.lo; j < panel_.hi; j += L, e += L * N * L) {
      const int64_t keys = smaller(L, panel_.hi - j);
      V m[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) {
        m[i] = V{};
        if (i >= keys) continue;
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) m[i] += load(e + (i * N + n) * L) * given[n];
      }
      float* to = received + j;
      const V sums = sums_of(m);
      if (keys == L) store(to, load(to) + sums);
      else
        for (int64_t i = 0; i < keys; ++i) to[i] += sums[i];
    }
  }

  template <int N>
  void gather_segments(const V (&share)[N]) {
    constexpr int W = N * L;
    const int32_t* segment = seen_.segments + panel_.b * seen_.segments_batch;
    memset(segments_, 0, static_cast<size_t>(seen_.segment_count * W) * 4);
    for (int64_t j = panel_.lo; j < panel_.hi; ++j) {
      if (segment[j] < 0) continue;
      float* at = segments_ + segment[j] * W;
      for (int n = 0; n < N; ++n) store(at + n * L, load(at + n * L) + load(strip_ + (j - panel_.lo) * W + n * L));
    }
    float* to = seen_.segment_mass + row_index() * seen_.segment_count;
    for (int64_t i = 0; i < panel_.rows; ++i)
      for (int64_t g = 0; g < seen_.segment_count; ++g)
        *to++ = segments_[g * W + i] * share[i / L][i % L];
  }

  int64_t row_index() const { return (panel_.b * call_.Hq + panel_.head) * call_.Lq + panel_.row; }

  template <int N>
  void report(const TopRoom& room, float unit, const V (&zero)[N], const End (&ends)[N]) {
    const int64_t at = row_index(), rows = panel_.rows;
    for (int n = 0; n < N; ++n) {
      const int64_t lanes = smaller(L, rows - n * L);
      if (lanes <= 0) break;
      const int64_t to = at + n * L;
      auto put = [&](float* field, V v) {
        if (field) Observer::put(field + to, v, lanes);
      };
      const End& end = ends[n];
      const V total = load(sums_.total + n * L), mass = total * end.share, nan = splat(__builtin_nanf(""));
      const I weighed = mass > 0.0f;
      put(call_.logsumexp, end.logsumexp);
      put(seen_.max_weight, end.share);  // the largest score is 2^0
      const V entropy = mass * end.above + load(sums_.entropy + n * L) * end.share * LN2;
      put(seen_.entropy, select(weighed, largest(V{}, entropy), V{}));
      put(seen_.mean_position, select(weighed, load(sums_.position + n * L) / total, nan));
      put(seen_.mean_distance, select(weighed, load(sums_.distance + n * L) / total, nan));
      put(seen_.sink_weight, end.sink);
      if (seen_.top) report_top<N>(room, unit, n, lanes, zero[n], end.share, mass);
    }
  }

  static void put(float* to, V v, int64_t lanes) {
    if (lanes == L) store(to, v);
    else
      for (int64_t i = 0; i < lanes; ++i) to[i] = v[i];
  }

  template <int N>
  void report_top(const TopRoom& room, float unit, int n, int64_t lanes, V zero, V share, V mass) {
    constexpr int W = N * L;
    const int64_t to = row_index() + n * L, k = room.k;
    const I offset = splat(static_cast<int32_t>(panel_.lo));
    V rest = mass;
    constexpr int HALF = L / 2;
    for (int64_t i0 = 0; i0 < k; i0 += HALF) {  // half of a vector weights, half keys: turned, a row's lie side by side
      const int64_t places = smaller(HALF, k - i0);
      V both[L];
#pragma GCC unroll 8
      for (int64_t i = 0; i < HALF; ++i) {
        both[i] = both[HALF + i] = V{};
        if (i >= places) continue;
        const int64_t at = (i0 + i) * W + n * L;
        both[i] = exp2_of((load(room.scores + at) - zero) * unit) * share;
        const I j = load(room.keys + at);
        both[HALF + i] = floats(j + select(j < 0, I{}, offset));
        rest -= both[i];
      }
      transpose(both);
      float* weights_to = seen_.top_weights + to * k + i0;
      auto* keys_to = reinterpret_cast<float*>(seen_.top_keys + to * k + i0);
      if (lanes == L && places == HALF) {
#pragma GCC unroll 16
        for (int lane = 0; lane < L; ++lane) store_halves(weights_to + lane * k, keys_to + lane * k, both[lane]);
        continue;
      }
      for (int64_t lane = 0; lane < lanes; ++lane, weights_to += k, keys_to += k) {
        float halves[L];
        store(halves, both[lane]);
        memcpy(weights_to, halves, static_cast<size_t>(places) * 4);
        memcpy(keys_to, halves + HALF, static_cast<size_t>(places) * 4);
      }
    }
    put(seen_.rest + to, largest(V{}, rest), lanes);
  }

  const Call& call_;
  const Seen& seen_;
  const bool streams_;
  Panel panel_;
  Sums sums_;
  float *query_, *out_, *strip_, *groups_, *addend_, *segments_, *room_, *top_;
};

struct ObserveWorker {
  Scratch memory, heads;
  int64_t held = -1;
};

inline void attend_observed(const Call& call, const Seen& seen, const uint8_t* visible) {
  const Runs runs(call);
  const Heads heads(call, visible);
  const int64_t G = call.Hq / call.Hkv, slots = runs.slots;
  Scratch partial;
  // What keys received a run: (B · Hq, slots, Lk).
  float* received = seen.received;
  if (received && slots > 1) received = partial.floats(call.B * call.Hq * slots * call.Lk);
  share<ObserveWorker>(
      call.threads, call.B * call.Hq * slots, [] { return ObserveWorker(); },
      [&](ObserveWorker& worker, int64_t item) {
        const int64_t index = item / slots, b = index / call.Hq, head = index % call.Hq;
        const int64_t slot = slots - 1 - item % slots;  // the last rows first: under a causal mask they take longest
        Matrix key, value;
        const bool fresh = worker.held != b * call.Hkv + head / G;
        heads.get(b, head / G, worker.heads.floats(heads.room()), worker.held, key, value);
        Observer observer(call, seen);
        observer.use(worker.memory.floats(Observer::room(call, seen)));
        observer.run(runs, b, head, slot, key, value, received ? received + (index * slots + slot) * call.Lk : nullptr,
                     fresh);
      });
  if (!received || slots == 1) return;
  share<ObserveWorker>(
      call.threads, call.B * call.Hq, [] { return ObserveWorker(); },
      [&](ObserveWorker&, int64_t index) {
        float* to = seen.received + index * call.Lk;
        const float* from = received + index * slots * call.Lk;
        memcpy(to, from, static_cast<size_t>(call.Lk) * 4);
        for (int64_t slot = 1; slot < slots; ++slot)
          for (int64_t j = 0; j < call.Lk; ++j) to[j] += from[slot * call.Lk + j];
      });
}

}  // namespace REGARD_ISA
