// The largest scores of every row of a panel, exactly, equal ones by lowest key.
//
// The largest of each group of TILE_ROWS keys is known from computing them. The k-th largest of these, or of a few of
// them joined, is a lower bound of the k-th largest score, so only what reaches it can be among the top k: little more
// than k keys a row.
#pragma once

#include "scores.h"

namespace REGARD_ISA {

struct TopRoom {
  int64_t k, join;         // `join` groups count as one where there are many: fewer numbers to sort
  int64_t most;            // most candidates a row can have: see `exact`
  float *candidates, *scores;       // (most, PANEL), (k or 8, PANEL)
  int32_t *candidate_keys, *keys;
  uint64_t* words;                  // (keys,) which lanes a key is a candidate of, for the keys in `rows`
  int32_t* rows;

  static int64_t joined(int64_t k, int64_t keys) {
    int64_t join = 1;
    while (join < 8 && keys >= 32 * k * join * TILE_ROWS / 4) join *= 2;
    return join;
  }
  static int64_t most_for(int64_t k, int64_t join) { return join * TILE_ROWS * (k - 1) + k; }
  static int64_t room(int64_t k, int64_t keys) {
    return k ? 2 * (most_for(k, joined(k, keys)) + larger(k, 8)) * PANEL + 3 * (keys + TILE_ROWS) : 0;
  }

  TopRoom(int64_t top, int64_t keys_here, int64_t all_keys, float* memory) : k(top) {
    if (!k) return;
    join = joined(k, keys_here), most = most_for(k, joined(k, all_keys));
    words = reinterpret_cast<uint64_t*>(memory), rows = reinterpret_cast<int32_t*>(words + all_keys + TILE_ROWS);
    candidates = reinterpret_cast<float*>(rows + all_keys + TILE_ROWS), scores = candidates + most * PANEL;
    candidate_keys = reinterpret_cast<int32_t*>(scores + larger(k, 8) * PANEL), keys = candidate_keys + most * PANEL;
  }
};

// The k-th largest of each lane of `groups` (count, N · L), `join` of them taken as one, at least the lowest finite
// number. The last ones, where they fill no join, count on their own. Where groups are few, parts of them count.
template <int N>
INLINE void bound(const float* s, const float* groups, int64_t count, int64_t join, int64_t k, float* list,
                  V (&least)[N]) {
  constexpr int W = N * L, PART = TILE_ROWS / 2;
  const bool parts = count < 4 * k;
  if (parts) count *= 2;
  auto group = [&](int64_t g, int n) {
    V x = load((parts ? s + g * PART * W : groups + g * W) + n * L);
    if (parts)
      for (int i = 1; i < PART; ++i) x = largest(load(s + (g * PART + i) * W + n * L), x);
    else if (g + join <= count)
      for (int64_t i = 1; i < join; ++i) x = largest(load(groups + (g + i) * W + n * L), x);
    return x;
  };
  auto next = [&](int64_t g) { return g + join <= count ? g + join : g + 1; };
  for (int n = 0; n < N; ++n) {
    if (k <= 8) {
      V sorted[8];
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) sorted[i] = splat(-INFINITE);
      for (int64_t g = 0; g < count; g = next(g)) {
        V x = group(g, n);
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
          const V high = largest(sorted[i], x);
          x = smallest(sorted[i], x);
          sorted[i] = high;
        }
      }
      V kth = sorted[0];
#pragma GCC unroll 8
      for (int i = 1; i < 8; ++i) kth = i < k ? sorted[i] : kth;
      least[n] = kth;
    } else {
      for (int64_t i = 0; i < k; ++i) store(list + i * L, splat(-INFINITE));
      for (int64_t g = 0; g < count; g = next(g)) {
        V x = group(g, n);
        if (!mask_of(x > load(list + (k - 1) * L))) continue;
        for (int64_t i = 0; i < k; ++i) {
          const V old = load(list + i * L);
          store(list + i * L, largest(old, x));
          x = smallest(old, x);
        }
      }
      least[n] = load(list + (k - 1) * L);
    }
    least[n] = largest(splat(-__FLT_MAX__), least[n]);
  }
}

// The candidates of one row where so many scores equal the bound that they did not fit: those above it, of which there
// are fewer than `most`, then the first k equal ones.
inline int64_t exact(const TopRoom& room, const float* s, int64_t width, int64_t count, int64_t lane, float least) {
  int64_t found = 0;
  for (const bool above : {true, false}) {
    const int64_t end = above ? room.most : smaller(room.most, found + room.k);
    for (int64_t j = 0; j < count && found < end; ++j) {
      const float x = s[j * width + lane];
      if (above ? !(x > least) : x != least) continue;
      room.candidates[found * width + lane] = x;
      room.candidate_keys[found++ * width + lane] = static_cast<int32_t>(j);
    }
  }
  for (int64_t c = found; c < room.most; ++c) {  // those that were there before
    room.candidates[c * width + lane] = -INFINITE;
    room.candidate_keys[c * width + lane] = -1;
  }
  return found;
}

// Sorts the candidates of one vector of lanes into the first k: larger first, earlier first among equals.
template <int K>
INLINE void sort_in(const TopRoom& room, int64_t width, int n, int64_t count) {
  V score[K];
  I key[K];
#pragma GCC unroll 8
  for (int i = 0; i < K; ++i) score[i] = splat(-INFINITE), key[i] = splat(-1);
  for (int64_t c = 0; c < count; ++c) {
    const V x = load(room.candidates + c * width + n * L);
    const I j = load(room.candidate_keys + c * width + n * L);
#pragma GCC unroll 8
    for (int i = K - 1; i >= 0; --i) {  // from its place on all move down by one
      const I here = x > score[i], above = i ? x > score[i ? i - 1 : 0] : I{};
      score[i] = select(here, select(above, score[i ? i - 1 : 0], x), score[i]);
      key[i] = select(here, select(above, key[i ? i - 1 : 0], j), key[i]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < K; ++i) {
    store(room.scores + i * width + n * L, score[i]);
    store(room.keys + i * width + n * L, key[i]);
  }
}

INLINE void sort_in_many(const TopRoom& room, int64_t width, int n, int64_t count) {
  for (int64_t i = 0; i < room.k; ++i) {
    store(room.scores + i * width + n * L, splat(-INFINITE));
    store(room.keys + i * width + n * L, splat(-1));
  }
  for (int64_t c = 0; c < count; ++c) {
    const V x = load(room.candidates + c * width + n * L);
    const I j = load(room.candidate_keys + c * width + n * L);
    for (int64_t i = room.k - 1; i >= 0; --i) {
      float* score_at = room.scores + i * width + n * L;
      int32_t* key_at = room.keys + i * width + n * L;
      const V score = load(score_at), higher = i ? load(score_at - width) : splat(INFINITE);
      const I here = x > score, above = x > higher, key = load(key_at), higher_key = i ? load(key_at - width) : key;
      store(score_at, select(here, select(above, higher, x), score));
      store(key_at, select(here, select(above, higher_key, j), key));
    }
  }
}

// From scores s (count rounded up to TILE_ROWS, N · L) to the k largest of each lane and their keys, counted from the
// first of s: room.scores and room.keys (k, N · L), -inf and -1 where a row sees fewer.
template <int N>
void pick(const TopRoom& room, const float* s, const float* groups, int64_t count, int64_t rows) {
  constexpr int W = N * L, M = TILE_ROWS;
  const int64_t group_count = (count + M - 1) / M;
  V least[N];
  bound<N>(s, groups, group_count, room.join, room.k, room.scores, least);

  int64_t hits = 0;
  for (int64_t g = 0; g < group_count; ++g) {
    I reached = load(groups + g * W) >= least[0];
#pragma GCC unroll 4
    for (int n = 1; n < N; ++n) reached |= load(groups + (g * N + n) * L) >= least[n];
    if (!mask_of(reached)) continue;
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const float* at = s + (g * M + m) * W;
      uint64_t word = 0;
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) word |= static_cast<uint64_t>(mask_of(load(at + n * L) >= least[n])) << (n * L);
      room.words[hits] = word, room.rows[hits] = static_cast<int32_t>(g * M + m);
      hits += word != 0;
    }
  }

  // Rows that find fewer candidates than others of their vector are filled up with what is no candidate.
  const int64_t filled = smaller(room.most, 2 * room.k);
  for (int64_t at = 0; at < filled * W; at += L) {
    store(room.candidates + at, splat(-INFINITE));
    store(room.candidate_keys + at, splat(-1));
  }
  int64_t found[PANEL] = {};
  for (int64_t hit = 0; hit < hits; ++hit) {
    uint64_t word = room.words[hit];
    const int32_t j = room.rows[hit];
    do {
      const int lane = __builtin_ctzll(word);
      const int64_t at = smaller(found[lane]++, room.most - 1) * W + lane;
      room.candidates[at] = s[j * W + lane], room.candidate_keys[at] = j;
    } while (word &= word - 1);
  }

  for (int n = 0; n < N; ++n) {
    int64_t longest = 0;
    for (int64_t lane = n * L; lane < (n + 1) * L; ++lane) {
      if (lane >= rows) found[lane] = 0;
      if (found[lane] > room.most) found[lane] = exact(room, s, W, count, lane, least[n][lane - n * L]);
      longest = larger(longest, found[lane]);
    }
    for (int64_t lane = n * L; lane < (n + 1) * L; ++lane)
      for (int64_t c = larger(found[lane], filled); c < longest; ++c) {
        room.candidates[c * W + lane] = -INFINITE;
        room.candidate_keys[c * W + lane] = -1;
      }
    if (room.k <= 8) sort_in<8>(room, W, n, longest);
    else sort_in_many(room, W, n, longest);
  }
}

}  // namespace REGARD_ISA
