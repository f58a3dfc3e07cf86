// Few queries, many keys: what decoding a token at a time asks for, and what a panel of queries would waste lanes on.
//
// Keys are divided into chunks, which threads share when there are fewer heads than threads. Within a chunk every row
// of keys is read once for all queries of its group. Lanes are columns while scores and outputs are summed, and keys in
// between. Chunks are joined in their order, so that no bit depends on the threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <limits>
#include <new>

#include "forward.h"

namespace REGARD_ISA {

constexpr int64_t AHEAD = 8;  // rows of values that are fetched before they are wanted
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

// The k largest so far: larger first, earlier first among equals.
struct Best {
  float* scores;
  int32_t* keys;
  int64_t k;

  void clear() const {
    for (int64_t i = 0; i < k; ++i) scores[i] = -INFINITE, keys[i] = -1;
  }
  void add(float x, int32_t j) const {
    if (!(x > scores[k - 1])) return;
    int64_t i = k - 1;
    for (; i > 0 && x > scores[i - 1]; --i) scores[i] = scores[i - 1], keys[i] = keys[i - 1];
    scores[i] = x, keys[i] = j;
  }
};

class Decoder {
 public:
  Decoder(const Call& call, const Seen* seen)
      : call_(call), seen_(seen), chunks_(call), G_(call.Hq / call.Hkv), rows_(G_ * call.Lq), k_(seen ? seen->top : 0),
        ldq_(rounded_up(call.D, L)), ldv_(rounded_up(call.Dv, L)) {}

  void run() {
    const int64_t heads = call_.B * call_.Hkv, items = heads * chunks_.count;
    const int64_t strip = seen_ && (seen_->received || seen_->segment_mass) ? call_.B * call_.Hq * call_.Lq * call_.Lk : 0;
    const bool given = strip && seen_->received && call_.Lq == 1;  // what a key received is the one row's weight for it
    constexpr int64_t FOUND = sizeof(Found) / 4;
    outputs_ = memory_.floats(items * rows_ * (ldv_ + 2 * k_ + FOUND) + heads + (given ? 0 : strip));
    scores_ = outputs_ + items * rows_ * ldv_;
    keys_ = reinterpret_cast<int32_t*>(scores_ + items * rows_ * k_);
    found_ = reinterpret_cast<Found*>(keys_ + items * rows_ * k_);
    left_ = reinterpret_cast<std::atomic<int32_t>*>(found_ + items * rows_);
    float* rest = reinterpret_cast<float*>(left_ + heads);
    strip_ = given ? seen_->received : strip ? rest : nullptr;
    for (int64_t head = 0; head < heads; ++head) new (left_ + head) std::atomic<int32_t>(static_cast<int32_t>(chunks_.count));
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
      const Best best{scores_ + (item * rows_ + r) * k_, keys_ + (item * rows_ + r) * k_, k_};
      if (k_) best.clear();
      if (hi > lo) {
        const float unit = adjust(b, head, row, lo, hi - lo, scores, addend);
        if (seen_) weigh<true>(b, row, lo, hi, unit, scores, weights, first, found[r]);
        else weigh<false>(b, row, lo, hi, unit, scores, weights, first, found[r]);
        if (k_) find_best(best, scores, hi - lo, lo);
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
      for (int64_t r = 0; r < rows_;)
        r += add_values(value, stride, n, e + r * width + (j - lo), width, out + r * ldv_, smaller(4, rows_ - r));
    }
  }

  // The products of all rows with n <= L keys from j on. The L keys after them are fetched meanwhile.
  void multiply(int64_t b, int64_t hkv, const float* query, int64_t j, int64_t n, float* s, int64_t width,
                float* copy) const {
    int64_t stride;
    const float* key = rows_of(call_.key, b, hkv, j, n, call_.D, ldq_, copy, stride);
    for (int64_t r = 0; r < rows_;) {
      const float* q = query + r * ldq_;
      const int64_t left = rows_ - r;
      r += left >= 4 ? multiply_rows_by<4>(q, key, stride, n, s + r * width, width)
         : left >= 2 ? multiply_rows_by<2>(q, key, stride, n, s + r * width, width)
                     : multiply_rows_by<1>(q, key, stride, n, s + r * width, width);
    }
  }

  // R rows with n <= L keys; returns R.
  template <int R>
  int64_t multiply_rows_by(const float* query, const float* key, int64_t stride, int64_t n, float* s,
                           int64_t width) const {
    constexpr int K = L / R, STEP = K > 8 ? 8 : K;  // keys of one reduction, and those whose addresses fit in registers
    for (int64_t j = 0; j < n; j += K) {
      V sums[L];
#pragma GCC unroll 2
      for (int i = 0; i < K; i += STEP) add_products<R, STEP, K>(query, key, stride, j + i, n, sums + i);
      const V found = sums_of(sums);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) memcpy(s + r * width + j, reinterpret_cast<const float*>(&found) + r * K, K * 4);
    }
    return R;
  }

  // sums[r · LD + i] = row r · key j + i, lane by lane. Keys from n on are the last one.
  template <int R, int K, int LD>
  void add_products(const float* query, const float* key, int64_t stride, int64_t j, int64_t n, V* sums) const {
    const float* at[K];
#pragma GCC unroll 8
    for (int i = 0; i < K; ++i) at[i] = key + smaller(j + i, n - 1) * stride;
    const float* q = query;
    V sum[R][K];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int i = 0; i < K; ++i) sum[r][i] = V{};
    const int64_t ahead = L * stride;
    for (int64_t c = 0; c < ldq_; c += L) {
      V k[K];
#pragma GCC unroll 8
      for (int i = 0; i < K; ++i) k[i] = load(at[i] + c), __builtin_prefetch(at[i] + c + ahead);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const V x = load(q + r * ldq_ + c);
#pragma GCC unroll 8
        for (int i = 0; i < K; ++i) sum[r][i] += k[i] * x;
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int i = 0; i < K; ++i) sums[r * LD + i] = sum[r][i];
  }

  // The mask's range applied to the scores of keys lo … hi - 1, and their exponentials.
  template <bool OBSERVED>
  void weigh(int64_t b, int64_t row, int64_t lo, int64_t hi, float unit, float* s, float* e, int64_t origin,
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
      const char* at = row_at(call_.bias, call_.bias_dtype, b, head, row);
      read_numbers(addend, at + lo * call_.bias.column * size_of(call_.bias_dtype), call_.bias_dtype, call_.bias.column, n);
      for (int64_t j = 0; j < n; ++j) s[j] = addend[j] == -INFINITE ? addend[j] : s[j] + addend[j];
    }
    if (call_.allowed.data) {
      const char* at = row_at(call_.allowed, BOOLEAN, b, head, row) + lo * call_.allowed.column;
      read_numbers(addend, at, BOOLEAN, call_.allowed.column, n);
      for (int64_t j = 0; j < n; ++j) s[j] = addend[j] != 0 ? s[j] : -INFINITE;
    }
    return scoring.unit;
  }

  // The k best of n scores. The k-th largest of the maxima of more than k groups of them is a lower bound.
  void find_best(const Best& best, const float* s, int64_t n, int64_t lo) const {
    constexpr int64_t MOST = 128;  // group maxima: twice the largest k
    float maxima[MOST];
    const int64_t groups = smaller(MOST, rounded_up(2 * k_, L));
    for (int64_t i = 0; i < groups; ++i) maxima[i] = -INFINITE;
    int64_t at = 0;
    for (int64_t j = 0; j < n; j += L, at = at + L < groups ? at + L : 0)
      store(maxima + at, largest(load(s + j), load(maxima + at)));  // in this order NaN does not come in
    std::nth_element(maxima, maxima + k_ - 1, maxima + groups, [](float a, float b) { return a > b; });
    const V least = splat(larger_number(maxima[k_ - 1], -std::numeric_limits<float>::max()));
    for (int64_t j = 0; j < n; j += L)
      for (uint32_t word = mask_of(load(s + j) >= least); word; word &= word - 1) {
        const int i = __builtin_ctz(word);
        best.add(s[j + i], static_cast<int32_t>(lo + j + i));
      }
  }

  static float larger_number(float a, float b) { return a > b ? a : b; }

  // out (R, ldv) += e (R, n) · values (n, ldv), for up to four rows at once; returns how many.
  int64_t add_values(const float* value, int64_t stride, int64_t n, const float* e, int64_t width, float* out,
                     int64_t rows) const {
    if (rows >= 4) return add_rows<4>(value, stride, n, e, width, out);
    if (rows >= 2) return add_rows<2>(value, stride, n, e, width, out);
    return add_rows<1>(value, stride, n, e, width, out);
  }

  template <int R>
  int64_t add_rows(const float* value, int64_t stride, int64_t n, const float* e, int64_t width, float* out) const {
    constexpr int MOST = TILE_ROWS == 8 ? (R == 4 ? 4 : 8) : 8 / R;
    int64_t c = 0;
    for (; c + MOST * L <= ldv_; c += MOST * L) add_columns<R, MOST>(value + c, stride, n, e, width, out + c);
    if constexpr (MOST > 4)
      for (; c + 4 * L <= ldv_; c += 4 * L) add_columns<R, 4>(value + c, stride, n, e, width, out + c);
    for (; c + 2 * L <= ldv_; c += 2 * L) add_columns<R, 2>(value + c, stride, n, e, width, out + c);
    for (; c < ldv_; c += L) add_columns<R, 1>(value + c, stride, n, e, width, out + c);
    return R;
  }

  template <int R, int C>
  void add_columns(const float* value, int64_t stride, int64_t n, const float* e, int64_t width, float* out) const {
    Tile<R, C> sum;
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) sum.at[r][c] = load(out + r * ldv_ + c * L);
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
      for (int c = 0; c < C; ++c) store(out + r * ldv_ + c * L, sum.at[r][c]);
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
      write_numbers(row_to(call_.output, call_.dtype, b, head, row), out, call_.dtype, call_.output.column, call_.Dv);
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
      const Best best{scores_ + (item * rows_ + r) * k_, keys_ + (item * rows_ + r) * k_, k_};
      float rest = mass;
      for (int64_t c = 1; c < chunks_.count; ++c)
        for (int64_t i = 0; i < k_; ++i)
          best.add(scores_[((item + c) * rows_ + r) * k_ + i], keys_[((item + c) * rows_ + r) * k_ + i]);
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
