// Few queries, many keys: what decoding a token at a time asks for, and what a panel of queries would waste lanes on.
//
// Keys are divided into chunks, which threads share when there are fewer heads than threads. Within a chunk every row
// of keys is read once for all queries of its group. Lanes are columns while scores and outputs are summed, and keys in
// between. Chunks are joined in their order, so that no bit depends on the threads.
#pragma once

#include <atomic>
#include <new>

#include "best.h"
#include "few.h"
#include "forward.h"

namespace REGARD_ISA {

constexpr int64_t FEW_ROWS = L / 2;  // queries of a head up to which this is faster than a panel

// What one query found in one chunk.
struct Found {
  float top = -INFINITE;         // the largest score
  float total = 0;               // Σ e, of e = 2^(unit · (score - top))
  float moment = 0, entropy = 0, distance = 0;  // Σ e (j - first key of the chunk), Σ e log2(1 / e), Σ e |i - j|
};

struct Chunks {
  int64_t count, keys;

  // Enough for 32 items of work, but no less than 256 keys each. Depends on the call's sizes alone.
  explicit Chunks(const Call& call) {
    const int64_t heads = call.B * call.Hkv, wanted = (32 + heads - 1) / heads;
    count = larger(1, smaller(wanted, call.Lk / 256));
    keys = rounded_up((call.Lk + count - 1) / count, 64);
    count = (call.Lk + keys - 1) / keys;
  }
};

class Decoder {
 public:
  Decoder(const Call& call, const Seen* seen)
      : call_(call), seen_(seen), chunks_(call), G_(call.Hq / call.Hkv), rows_(G_ * call.Lq), k_(seen ? seen->top : 0),
        ldq_(rounded_up(call.D, L)), ldv_(rounded_up(call.Dv, L)) {}

  void run() {
    const int64_t heads = call_.B * call_.Hkv, items = heads * chunks_.count;
    const bool weights = seen_ && (seen_->received || seen_->segment_mass);
    const int64_t strip = weights ? call_.B * call_.Hq * call_.Lq * call_.Lk : 0;
    const bool given = strip && seen_->received && call_.Lq == 1;  // what a key received is the one row's weight for it
    constexpr int64_t FOUND = sizeof(Found) / 4;
    outputs_ = memory_.floats(items * rows_ * (ldv_ + 2 * k_ + FOUND) + heads + (given ? 0 : strip));
    scores_ = outputs_ + items * rows_ * ldv_;
    keys_ = reinterpret_cast<int32_t*>(scores_ + items * rows_ * k_);
    found_ = reinterpret_cast<Found*>(keys_ + items * rows_ * k_);
    left_ = reinterpret_cast<std::atomic<int32_t>*>(found_ + items * rows_);
    float* rest = reinterpret_cast<float*>(left_ + heads);
    strip_ = given ? seen_->received : strip ? rest : nullptr;
    const auto count = static_cast<int32_t>(chunks_.count);
    for (int64_t head = 0; head < heads; ++head) new (left_ + head) std::atomic<int32_t>(count);
    share<Scratch>(
        threads(), items, [] { return Scratch(); },
        [&](Scratch& scratch, int64_t item) {
          chunk(scratch, item);
          const int64_t head = item / chunks_.count;
          if (left_[head].fetch_sub(1, std::memory_order_acq_rel) > 1) return;
          for (int64_t g = 0; g < G_; ++g) join(scratch, head / call_.Hkv, head % call_.Hkv * G_ + g);
        });
  }

 private:
  // Rows of keys or values as floats: where they are, or L of them at a time in `copy`.
  const float* rows_of(const Tensor4& t, int64_t b, int64_t h, int64_t j, int64_t n, int64_t columns, int64_t ld,
                       float* copy, int64_t& stride) const {
    if (call_.dtype == FLOAT32 && t.column == 1 && columns == ld) {
      stride = t.row;
      return reinterpret_cast<const float*>(row_at(t, FLOAT32, b, h, j));
    }
    stride = ld;
    read_rows(copy, ld, t, call_.dtype, b, h, j, n, columns);
    return copy;
  }

  // Brings n rows into the caches.
  void fetch_rows(const Tensor4& t, int64_t b, int64_t h, int64_t row, int64_t n, int64_t columns) const {
    for (int64_t j = row; j < row + n; ++j) {
      const char* at = row_at(t, call_.dtype, b, h, j);
      for (int64_t c = 0; c < columns * size_of(call_.dtype); c += 64) __builtin_prefetch(at + c);
    }
  }

  // What one row found in one chunk.
  Best best_of(int64_t item, int64_t r) const {
    return {scores_ + (item * rows_ + r) * k_, keys_ + (item * rows_ + r) * k_, k_};
  }

  // A call that takes less than waking others does is done by one thread.
  int64_t threads() const {
    return smaller(call_.threads, 1 + call_.B * call_.Hq * call_.Lq * call_.Lk * (call_.D + call_.Dv) / (1 << 17));
  }

  void chunk(Scratch& scratch, int64_t item) {
    const int64_t head = item / chunks_.count, c = item % chunks_.count, b = head / call_.Hkv, hkv = head % call_.Hkv;
    const int64_t first = c * chunks_.keys, stop = smaller(call_.Lk, first + chunks_.keys);
    const int64_t width = chunks_.keys + L, block = 64;
    float* query = scratch.floats(rows_ * (ldq_ + 2 * width) + block * larger(ldq_, ldv_) + width);
    float *s = query + rows_ * ldq_, *e = s + rows_ * width, *copy = e + rows_ * width;
    float* addend = copy + block * larger(ldq_, ldv_);
    Found* found = found_ + item * rows_;
    float* out = outputs_ + item * rows_ * ldv_;
    memset(out, 0, static_cast<size_t>(rows_ * ldv_) * 4);

    int64_t lo = stop, hi = first;  // keys of the chunk that some row sees
    for (int64_t r = 0; r < rows_; ++r) {
      int64_t from, to;
      keys_of(call_, b, r % call_.Lq, from, to);
      read_rows(query + r * ldq_, ldq_, call_.query, call_.dtype, b, hkv * G_ + r / call_.Lq, r % call_.Lq, 1, call_.D);
      if (to > from) lo = smaller(lo, larger(first, from)), hi = larger(hi, smaller(stop, to));
      found[r] = Found();
    }
    for (int64_t j = lo; j < hi; j += L)
      multiply(b, hkv, query, j, smaller(L, hi - j), s + (j - lo), width, copy);
    if (hi > lo) fetch_rows(call_.value, b, hkv, lo, smaller(AHEAD, hi - lo), call_.Dv);
    for (int64_t r = 0; r < rows_; ++r) {
      const int64_t head = hkv * G_ + r / call_.Lq, row = r % call_.Lq;
      float *scores = s + r * width, *weights = e + r * width;
      float* strip = strip_ ? strip_ + ((b * call_.Hq + head) * call_.Lq + row) * call_.Lk : nullptr;
      const Best best = best_of(item, r);
      if (k_ && hi <= lo) best.clear();
      if (hi > lo) {
        const float unit = adjust(b, head, row, lo, hi - lo, scores, addend);
        const V tops = seen_ ? weigh<true>(b, row, lo, hi, unit, scores, weights, first, found[r])
                             : weigh<false>(b, row, lo, hi, unit, scores, weights, first, found[r]);
        if (k_) best.find(scores, hi - lo, lo, tops, reinterpret_cast<int32_t*>(addend));
      }
      if (!strip) continue;
      const int64_t from = smaller(lo, stop), to = larger(hi, from);
      memset(strip + first, 0, static_cast<size_t>(from - first) * 4);
      if (to > from) memcpy(strip + from, weights, static_cast<size_t>(to - from) * 4);
      memset(strip + to, 0, static_cast<size_t>(stop - to) * 4);
    }
    for (int64_t j = lo; j < hi; j += block) {
      const int64_t n = smaller(block, hi - j);
      int64_t stride;
      const float* value = rows_of(call_.value, b, hkv, j, n, call_.Dv, ldv_, copy, stride);
      by_few(rows_, [&](auto rows, int64_t r) {
        add_few<decltype(rows)::value>(value, stride, n, e + r * width + (j - lo), width, out + r * ldv_, ldv_);
      });
    }
  }

  // The products of all rows with n <= L keys from j on. The L keys after them are fetched meanwhile.
  void multiply(int64_t b, int64_t hkv, const float* query, int64_t j, int64_t n, float* s, int64_t width,
                float* copy) const {
    int64_t stride;
    const float* key = rows_of(call_.key, b, hkv, j, n, call_.D, ldq_, copy, stride);
    by_few(rows_, [&](auto rows, int64_t r) {
      multiply_few<decltype(rows)::value>(query + r * ldq_, ldq_, key, stride, n, s + r * width, width);
    });
  }

  // The mask's range applied to the scores of keys lo … hi - 1, and their exponentials. Returns the largest of every
  // L-th score.
  template <bool OBSERVED>
  V weigh(int64_t b, int64_t row, int64_t lo, int64_t hi, float unit, float* s, float* e, int64_t origin,
          Found& found) const {
    const int64_t n = hi - lo, whole = rounded_up(n, L);
    int64_t from, to;
    keys_of(call_, b, row, from, to);
    for (int64_t j = 0; j < smaller(n, from - lo); ++j) s[j] = -INFINITE;
    for (int64_t j = larger(0, smaller(n, to - lo)); j < whole; ++j) s[j] = -INFINITE;
    V top = splat(-INFINITE);
    for (int64_t j = 0; j < whole; j += L) top = largest(load(s + j), top);
    found.top = largest_of(top);
    const float zero = found.top == -INFINITE ? 0.0f : found.top;
    V total = V{}, moment = V{}, entropy = V{}, distance = V{};
    const V number = __builtin_convertvector(lane_numbers(), V);
    const float at = static_cast<float>(lo - origin), i = static_cast<float>(position_of(call_, b, row) - lo);
    for (int64_t j = 0; j < whole; j += L) {
      const V x = largest(splat(-127.0f), (load(s + j) - zero) * unit), w = exp2_of(x);
      store(e + j, w);
      total += w;
      if constexpr (OBSERVED) {
        const V key = number + static_cast<float>(j);
        moment += w * (key + at), entropy -= w * x, distance += w * absolute(i - key);
      }
    }
    found.total = sum_of(total);
    if constexpr (OBSERVED)
      found.moment = sum_of(moment), found.entropy = sum_of(entropy), found.distance = sum_of(distance);
    return top;
  }

  // Turns products into scores; returns the unit of a score as an exponent of 2.
  float adjust(int64_t b, int64_t head, int64_t row, int64_t lo, int64_t n, float* s, float* addend) const {
    Panel panel;
    panel.b = b, panel.head = head, panel.row = row;
    const Scoring scoring(call_, panel);
    if (scoring.plain) return scoring.unit;
    for (int64_t j = 0; j < n; ++j) s[j] *= scoring.scale;
    if (scoring.cap != 0)
      for (int64_t j = 0; j < n; j += L) store(s + j, tanh_of(load(s + j) * scoring.into_cap) * scoring.cap);
    if (scoring.distance)
      for (int64_t j = 0; j < n; ++j) s[j] += scoring.distance[-(lo + j)];
    if (call_.bias.data) {
      const int64_t type = call_.bias_dtype, column = call_.bias.column;
      read_numbers(addend, row_at(call_.bias, type, b, head, row) + lo * column * size_of(type), type, column, n);
      for (int64_t j = 0; j < n; ++j) s[j] = addend[j] == -INFINITE ? addend[j] : s[j] + addend[j];
    }
    if (call_.allowed.data) {
      const char* at = row_at(call_.allowed, BOOLEAN, b, head, row) + lo * call_.allowed.column;
      read_numbers(addend, at, BOOLEAN, call_.allowed.column, n);
      for (int64_t j = 0; j < n; ++j) s[j] = addend[j] != 0 ? s[j] : -INFINITE;
    }
    return scoring.unit;
  }

  // Puts together what the rows of one head found in all chunks.
  void join(Scratch& scratch, int64_t b, int64_t head) const {
    float* out = scratch.floats(ldv_ + larger(1, seen_ ? seen_->segment_count : 0));
    const float sink = call_.sink_logits ? call_.sink_logits[head] : -INFINITE;
    for (int64_t row = 0; row < call_.Lq; ++row) {
      const int64_t r = head % G_ * call_.Lq + row, index = (b * call_.Hq + head) * call_.Lq + row;
      const int64_t item = (b * call_.Hkv + head / G_) * chunks_.count;
      Found all;
      for (int64_t c = 0; c < chunks_.count; ++c) {
        const Found& part = found_[(item + c) * rows_ + r];
        all.top = larger_number(part.top, all.top);
      }
      Panel panel;
      panel.b = b, panel.head = head, panel.row = row;
      const Scoring scoring(call_, panel);
      const float zero = all.top == -INFINITE ? 0.0f : all.top;
      for (int64_t i = 0; i < ldv_; ++i) out[i] = 0;
      float position = 0;
      for (int64_t c = 0; c < chunks_.count; ++c) {
        const Found& part = found_[(item + c) * rows_ + r];
        if (part.total == 0) continue;
        const float below = part.top == -INFINITE ? 0.0f : (part.top - zero) * scoring.unit;
        const float factor = exp2_of(splat(below))[0];
        const float* from = outputs_ + ((item + c) * rows_ + r) * ldv_;
        all.total += factor * part.total;
        all.entropy += factor * (part.entropy - below * part.total), all.distance += factor * part.distance;
        position += factor * (part.total * static_cast<float>(c * chunks_.keys) + part.moment);
        for (int64_t i = 0; i < ldv_; ++i) out[i] += factor * from[i];
      }
      const End end = finish_row(splat(all.top * scoring.natural), splat(all.total), splat(sink));
      const float share = end.share[0];
      if (call_.logsumexp) call_.logsumexp[index] = end.logsumexp[0];
      for (int64_t i = 0; i < ldv_; ++i) out[i] *= share;
      const int64_t type = call_.output_dtype;
      write_numbers(row_to(call_.output, type, b, head, row), out, type, call_.output.column, call_.Dv);
      if (seen_) report(scoring, item, r, all, position, end);
      if (strip_) finish_strip(scoring, item, r, zero, share, out);
    }
  }

  void report(const Scoring& scoring, int64_t item, int64_t r, const Found& all, float position, const End& end) const {
    const int64_t b = scoring.panel.b, head = scoring.panel.head;
    const int64_t index = (b * call_.Hq + head) * call_.Lq + scoring.panel.row;
    const float share = end.share[0], mass = all.total * share, nan = __builtin_nanf(""), unit = scoring.unit;
    const float zero = all.top == -INFINITE ? 0.0f : all.top;
    auto weight = [&](float score) { return exp2_of(splat((score - zero) * unit))[0] * share; };
    auto put = [&](float* field, float x) {
      if (field) field[index] = x;
    };
    put(seen_->max_weight, share);  // the largest score is 2^0
    put(seen_->sink_weight, end.sink[0]);
    put(seen_->entropy, mass > 0 ? larger_number(0, mass * end.above[0] + all.entropy * share * LN2) : 0);
    put(seen_->mean_position, mass > 0 ? position / all.total : nan);
    put(seen_->mean_distance, mass > 0 ? all.distance / all.total : nan);
    if (k_) {
      const Best best = best_of(item, r);
      float rest = mass;
      for (int64_t c = 1; c < chunks_.count; ++c) best.join(best_of(item + c, r));
      for (int64_t i = 0; i < k_; ++i) {
        const float w = weight(best.scores[i]);
        seen_->top_keys[index * k_ + i] = best.keys[i], seen_->top_weights[index * k_ + i] = w;
        rest -= w;
      }
      seen_->rest[index] = larger_number(0, rest);
    }
  }

  // Makes weights of what the chunks have left in the strip, and sums them.
  void finish_strip(const Scoring& scoring, int64_t item, int64_t r, float zero, float share, float* room) const {
    const int64_t b = scoring.panel.b, head = scoring.panel.head, row = scoring.panel.row;
    const int64_t index = (b * call_.Hq + head) * call_.Lq + row;
    float* strip = strip_ + index * call_.Lk;
    for (int64_t c = 0; c < chunks_.count; ++c) {
      const Found& part = found_[(item + c) * rows_ + r];
      const float factor = part.total == 0 ? 0.0f : exp2_of(splat((part.top - zero) * scoring.unit))[0] * share;
      const int64_t stop = smaller(call_.Lk, (c + 1) * chunks_.keys);
      for (int64_t j = c * chunks_.keys; j < stop; ++j) strip[j] *= factor;
    }
    if (seen_->received && strip_ != seen_->received) {
      float* received = seen_->received + (b * call_.Hq + head) * call_.Lk;
      for (int64_t j = 0; j < call_.Lk; ++j) received[j] = (row == 0 ? 0.0f : received[j]) + strip[j];
    }
    if (!seen_->segment_mass) return;
    for (int64_t i = 0; i < seen_->segment_count; ++i) room[i] = 0;
    for (int64_t j = 0; j < call_.Lk; ++j) {
      const int32_t segment = seen_->segments[b * seen_->segments_batch + j];
      if (segment >= 0) room[segment] += strip[j];
    }
    memcpy(seen_->segment_mass + index * seen_->segment_count, room, static_cast<size_t>(seen_->segment_count) * 4);
  }

  const Call& call_;
  const Seen* seen_;
  Chunks chunks_;
  int64_t G_, rows_, k_, ldq_, ldv_;  // rows of one group: (head of the group, query row)
  Scratch memory_;
  float *outputs_, *scores_;  // (items, rows, ldv), (items, rows, k)
  float* strip_;              // (B, Hq, Lq, Lk): e of each chunk, then weights; null where nobody asks for them
  int32_t* keys_;
  Found* found_;
  std::atomic<int32_t>* left_;  // (B, Hkv): chunks that are not done yet; who does the last one joins them
};

}  // namespace REGARD_ISA
