// The largest scores of every row of a panel, exactly, equal ones by lowest key.
//
// Where keys are many, most are out of the question: the largest of each group of TILE_ROWS keys is known from
// computing them, and the k-th largest of these, or of a few of them joined, is a lower bound of the k-th largest
// score. The keys that reach it in some lane are listed.
//
// A few of the largest are found in registers: every score's last bits give way to where the key stands in the list,
// so that a network which sorts numbers carries keys along. It errs where two scores differ in those bits alone or not
// at all; the scores of the keys it found show whether it did, and if so, scores and keys are sorted side by side.
#pragma once

#include "scores.h"

namespace REGARD_ISA {

constexpr int FEW = 8;                // so many of the largest are kept in registers
constexpr int64_t UNLISTED = 384;     // up to so many keys making a list takes longer than it saves
constexpr int64_t MOST_SORTED = 512;  // the network's keys: more would cost too many bits of the scores

struct Numbers {
  int32_t at[MOST_SORTED];
  constexpr Numbers() : at() {
    for (int i = 0; i < MOST_SORTED; ++i) at[i] = i;
  }
};
constexpr Numbers NUMBERS;  // 0, 1, 2, …: in memory, where one of them is spread over a vector by the load

struct TopRoom {
  int64_t k, join;                  // `join` groups count as one where there are many: fewer numbers to sort
  float* scores;                    // (k or FEW, PANEL): what was found
  int32_t *keys, *rows, *groups;    // theirs; the list of one vector of lanes, and of groups that reach its bound
  float* candidates;                // (all keys, or k, L), for k above FEW
  int32_t* candidate_keys;

  static int64_t joined(int64_t k, int64_t keys) {
    int64_t join = 1;
    while (join < 8 && keys >= 32 * k * join * TILE_ROWS / 4) join *= 2;
    return join;
  }
  static int64_t room(int64_t k, int64_t keys) {
    return k ? 2 * larger(k, FEW) * PANEL + 2 * (keys + TILE_ROWS) + (k > FEW ? 2 * larger(keys, k) * L : 0) : 0;
  }

  TopRoom(int64_t top, int64_t keys_here, int64_t all_keys, float* memory) : k(top) {
    if (!k) return;
    const int64_t found = larger(k, FEW) * PANEL, list = all_keys + TILE_ROWS;
    join = joined(k, keys_here), scores = memory, keys = reinterpret_cast<int32_t*>(scores + found);
    rows = keys + found, groups = rows + list;
    candidates = reinterpret_cast<float*>(groups + list);
    candidate_keys = reinterpret_cast<int32_t*>(candidates + larger(all_keys, k) * L);
  }
};

// The k-th largest of each lane of `groups` (count, width), `join` of them taken as one, at least the lowest finite
// number. The last ones, where they fill no join, count on their own. Where groups are few, parts of them count.
INLINE V bound(const float* s, const float* groups, int64_t width, int64_t count, int64_t join, int64_t k,
               float* list) {
  constexpr int PART = TILE_ROWS / 2;
  const bool parts = count < 4 * k;
  if (parts) count *= 2;
  auto group = [&](int64_t g) {
    V x = load(parts ? s + g * PART * width : groups + g * width);
    if (parts)
      for (int i = 1; i < PART; ++i) x = largest(load(s + (g * PART + i) * width), x);
    else if (g + join <= count)
      for (int64_t i = 1; i < join; ++i) x = largest(load(groups + (g + i) * width), x);
    return x;
  };
  auto next = [&](int64_t g) { return g + join <= count ? g + join : g + 1; };
  V kth;
  if (k <= FEW) {
    V sorted[FEW];
#pragma GCC unroll 8
    for (int i = 0; i < FEW; ++i) sorted[i] = splat(-INFINITE);
    for (int64_t g = 0; g < count; g = next(g)) {
      V x = group(g);
#pragma GCC unroll 8
      for (int i = 0; i < FEW; ++i) {
        const V high = largest(sorted[i], x);
        x = smallest(sorted[i], x);
        sorted[i] = high;
      }
    }
    kth = sorted[0];
#pragma GCC unroll 8
    for (int i = 1; i < FEW; ++i) kth = i < k ? sorted[i] : kth;
  } else {
    for (int64_t i = 0; i < k; ++i) store(list + i * L, splat(-INFINITE));
    for (int64_t g = 0; g < count; g = next(g)) {
      V x = group(g);
      if (!lanes_at_least(x, load(list + (k - 1) * L))) continue;
      for (int64_t i = 0; i < k; ++i) {
        const V old = load(list + i * L);
        store(list + i * L, largest(old, x));
        x = smallest(old, x);
      }
    }
    kth = load(list + (k - 1) * L);
  }
  return largest(splat(-__FLT_MAX__), kth);
}

// Lists the keys that reach `least` in some lane.
INLINE int64_t list(const TopRoom& room, const float* s, const float* groups, int64_t width, int64_t group_count,
                    V least) {
  constexpr int M = TILE_ROWS;
  int64_t reaching = 0, listed = 0;
  for (int64_t g = 0; g < group_count; ++g) {
    room.groups[reaching] = static_cast<int32_t>(g);
    reaching += lanes_at_least(load(groups + g * width), least) != 0;
  }
  for (int64_t i = 0; i < reaching; ++i) {
    const int64_t j = room.groups[i] * M;
    const float* at = s + j * width;
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m, at += width) {
      room.rows[listed] = static_cast<int32_t>(j + m);
      listed += lanes_at_least(load(at), least) != 0;
    }
  }
  return listed;
}

INLINE void order(V& a, V& b) {
  const V high = largest(a, b);
  b = smallest(a, b), a = high;
}

// Four more numbers among the largest, which are in order: the largest first.
INLINE void take_four(V (&a)[FEW], V (&x)[4]) {
  order(x[0], x[1]), order(x[2], x[3]), order(x[0], x[2]), order(x[1], x[3]), order(x[1], x[2]);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) a[4 + i] = largest(a[4 + i], x[3 - i]);
  order(a[0], a[4]), order(a[1], a[5]), order(a[2], a[6]), order(a[3], a[7]);
  order(a[0], a[2]), order(a[1], a[3]), order(a[4], a[6]), order(a[5], a[7]);
  order(a[0], a[1]), order(a[2], a[3]), order(a[4], a[5]), order(a[6], a[7]);
}

// The FEW largest of the listed keys (`count` ≥ FEW of them), by the network. False where it may have erred in a lane
// of `lanes`.
template <bool LISTED>
INLINE bool find_few(const float* s, int64_t width, const int32_t* rows, int64_t count, I lanes, float* scores,
                     int32_t* keys, int64_t apart) {
  const I number = splat((1 << (32 - __builtin_clz(static_cast<unsigned>(count - 1)))) - 1);
  auto row = [&](int64_t i) { return load(s + (LISTED ? rows[i] : i) * width); };
  auto entry = [&](int64_t i) {
    const V x = largest(splat(-__FLT_MAX__), row(i));  // -inf with other last bits would be NaN
    return floats((bits(x) & ~number) | splat(NUMBERS.at[i]));
  };
  V a[FEW];
#pragma GCC unroll 8
  for (int i = 0; i < FEW; ++i) a[i] = splat(-INFINITE);
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    V x[4] = {entry(i), entry(i + 1), entry(i + 2), entry(i + 3)};
    take_four(a, x);
  }
  if (i < count) {
    const V none = splat(-INFINITE);
    V x[4] = {entry(i), i + 1 < count ? entry(i + 1) : none, i + 2 < count ? entry(i + 2) : none, none};
    take_four(a, x);
  }

  V before = splat(INFINITE);
  I sure = splat(-1), found = I{};
#pragma GCC unroll 8
  for (int p = 0; p < FEW; ++p) {
    I key = bits(a[p]) & number;
    if (LISTED) key = gather(rows, key);
    const V x = gather(s, key * static_cast<int32_t>(width) + lane_numbers());
    const I none = x == -INFINITE;
    sure &= (p ? before > x : x == x) | none;
    found = select(none, found, found + 1);
    before = x;
    store(scores + p * apart, x);
    store(keys + p * apart, select(none, splat(-1), key));
  }
  const V least = largest(splat(-__FLT_MAX__), before);
  for (int64_t j = 0; j < count; ++j) found = select(row(j) >= least, found - 1, found);
  return !any_of(lanes & ~(sure & (found == 0)));
}

// The FEW largest of the listed keys: larger first, earlier first among equals.
inline void sort_few(const float* s, int64_t width, const int32_t* rows, int64_t count, float* scores, int32_t* keys,
                     int64_t apart) {
  V score[FEW];
  I key[FEW];
#pragma GCC unroll 8
  for (int i = 0; i < FEW; ++i) score[i] = splat(-INFINITE), key[i] = splat(-1);
  for (int64_t c = 0; c < count; ++c) {
    const V x = load(s + rows[c] * width);
    const I j = splat(rows[c]);
    if (!any_of(x > score[FEW - 1])) continue;
#pragma GCC unroll 8
    for (int i = FEW - 1; i >= 0; --i) {  // from its place on all move down by one
      const I here = x > score[i], above = i ? x > score[i ? i - 1 : 0] : I{};
      score[i] = select(here, select(above, score[i ? i - 1 : 0], x), score[i]);
      key[i] = select(here, select(above, key[i ? i - 1 : 0], j), key[i]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < FEW; ++i) store(scores + i * apart, score[i]), store(keys + i * apart, key[i]);
}

// The room.k largest of the listed keys. Each lane's own candidates are moved together first.
inline void sort_many(const TopRoom& room, const float* s, int64_t width, int64_t count, V least, float* scores,
                      int32_t* keys) {
  int64_t found[L] = {}, longest = 0;
  for (int64_t c = 0; c < count; ++c) {
    const float* at = s + room.rows[c] * width;
    for (uint32_t word = lanes_at_least(load(at), least); word; word &= word - 1) {
      const int lane = __builtin_ctz(word);
      const int64_t to = found[lane]++ * L + lane;
      room.candidates[to] = at[lane], room.candidate_keys[to] = room.rows[c];
    }
  }
  for (int lane = 0; lane < L; ++lane) longest = larger(longest, found[lane]);
  for (int lane = 0; lane < L; ++lane)
    for (int64_t c = found[lane]; c < longest; ++c) room.candidates[c * L + lane] = -INFINITE;
  for (int64_t i = 0; i < room.k; ++i) store(scores + i * width, splat(-INFINITE)), store(keys + i * width, splat(-1));
  for (int64_t c = 0; c < longest; ++c) {
    const V x = load(room.candidates + c * L);
    const I j = load(room.candidate_keys + c * L);
    if (!any_of(x > load(scores + (room.k - 1) * width))) continue;
    for (int64_t i = room.k - 1; i >= 0; --i) {
      float* score_at = scores + i * width;
      int32_t* key_at = keys + i * width;
      const V score = load(score_at), higher = i ? load(score_at - width) : splat(INFINITE);
      const I here = x > score, above = x > higher, key = load(key_at), higher_key = i ? load(key_at - width) : key;
      store(score_at, select(here, select(above, higher, x), score));
      store(key_at, select(here, select(above, higher_key, j), key));
    }
  }
}

// From scores s (count rounded up to TILE_ROWS, N · L) to the k largest of each lane and their keys, counted from the
// first of s: room.scores and room.keys (k, N · L), -inf and -1 where a row sees fewer. Lanes from `rows` on are no
// rows.
template <int N>
void pick(const TopRoom& room, const float* s, const float* groups, int64_t count, int64_t rows) {
  constexpr int W = N * L;
  const int64_t group_count = (count + TILE_ROWS - 1) / TILE_ROWS;
  for (int n = 0; n < N; ++n, s += L, groups += L) {
    const I lanes = lane_numbers() < static_cast<int32_t>(rows - n * L);
    float* scores = room.scores + n * L;
    int32_t* keys = room.keys + n * L;
    if (room.k <= FEW && count >= FEW && count <= UNLISTED) {
      if (!find_few<false>(s, W, NUMBERS.at, count, lanes, scores, keys, W))
        sort_few(s, W, NUMBERS.at, count, scores, keys, W);
      continue;
    }
    V least = bound(s, groups, W, group_count, room.join, room.k, room.candidates);
    least = select(lanes, least, splat(INFINITE));
    const int64_t listed = list(room, s, groups, W, group_count, least);
    if (room.k > FEW)
      sort_many(room, s, W, listed, least, scores, keys);
    else if (listed < FEW || listed > MOST_SORTED || !find_few<true>(s, W, room.rows, listed, lanes, scores, keys, W))
      sort_few(s, W, room.rows, listed, scores, keys, W);
  }
}

}  // namespace REGARD_ISA
