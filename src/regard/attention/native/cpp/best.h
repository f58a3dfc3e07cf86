// The largest scores of one row, found in the chunks of its keys.
#pragma once

#include <algorithm>
#include <limits>

#include "numbers.h"
#include "vector.h"

namespace REGARD_ISA {

constexpr int64_t RANKED = 32;  // numbers up to which comparing each with each puts them in order soonest

INLINE float larger_number(float a, float b) { return a > b ? a : b; }

// How many of n <= RANKED numbers are larger than each of them, or equal and earlier. Up to L more of x are written.
inline void ranks_of(float* x, int64_t n, int32_t* ranks) {
  const int64_t whole = rounded_up(n, L);
  for (int64_t i = n; i < whole; ++i) x[i] = -INFINITE;
  for (int64_t i = 0; i < whole; i += L) {
    const V a = load(x + i);
    const I number = lane_numbers() + static_cast<int32_t>(i);
    I before = I{};
    for (int64_t j = 0; j < n; ++j) {
      const V b = splat(x[j]);
      before += (b > a) | ((b == a) & (splat(static_cast<int32_t>(j)) < number));
    }
    store(ranks + i, -before);
  }
}

// The numbers where `where` says so, one after another; up to L are written. Returns how many.
INLINE int64_t collect(int32_t* to, I numbers, I where) {
  uint32_t word = mask_of(where);
#if defined(__AVX512F__)
  store(to, reinterpret_cast<I>(
                _mm512_maskz_compress_epi32(static_cast<__mmask16>(word), reinterpret_cast<__m512i>(numbers))));
  return __builtin_popcount(word);
#else
  int64_t count = 0;
  for (; word; word &= word - 1) to[count++] = numbers[__builtin_ctz(word)];
  return count;
#endif
}

// The k largest so far: larger first, earlier first among equals.
struct Best {
  float* scores;
  int32_t* keys;
  int64_t k;

  void clear() const {
    for (int64_t i = 0; i < k; ++i) scores[i] = -INFINITE, keys[i] = -1;
  }

  // Whether it is among them now.
  bool add(float x, int32_t j) const {
    if (!(x > scores[k - 1])) return false;
    int64_t i = k - 1;
    for (; i > 0 && x > scores[i - 1]; --i) scores[i] = scores[i - 1], keys[i] = keys[i - 1];
    scores[i] = x, keys[i] = j;
    return true;
  }

  // Joins those of later keys.
  void join(const Best& later) const {
    for (int64_t i = 0; i < k; ++i)
      if (!add(later.scores[i], later.keys[i])) return;  // nor are the next ones
  }

  // The best of n scores, which may be read up to the next multiple of L; the keys are counted from `lo`. `tops` are
  // the largest of every L-th score. Only scores that reach a lower bound of the k-th largest are looked at: the k-th
  // largest of the maxima of at least 2k groups. `room` holds n + L numbers.
  void find(const float* s, int64_t n, int64_t lo, V tops, int32_t* room) const {
    clear();
    const V least = splat(larger_number(bound(s, n, tops), -std::numeric_limits<float>::max()));
    int64_t count = 0;
    for (int64_t j = 0; j < n; j += L)
      count += collect(room + count, lane_numbers() + static_cast<int32_t>(j), load(s + j) >= least);
    if (count > RANKED) {
      for (int64_t i = 0; i < count; ++i) add(s[room[i]], static_cast<int32_t>(lo + room[i]));
      return;
    }
    float found[RANKED];
    int32_t ranks[RANKED];
    for (int64_t i = 0; i < count; ++i) found[i] = s[room[i]];
    ranks_of(found, count, ranks);
    for (int64_t i = 0; i < count; ++i)
      if (ranks[i] < k) scores[ranks[i]] = found[i], keys[ranks[i]] = static_cast<int32_t>(lo + room[i]);
  }

 private:
  float bound(const float* s, int64_t n, V tops) const {
    constexpr int64_t MOST = 128;  // group maxima: twice the largest k
    float maxima[MOST];
    const int64_t groups = smaller(MOST, rounded_up(2 * k, L));
    store(maxima, tops);
    if (groups > L) {
      for (int64_t i = 0; i < groups; ++i) maxima[i] = -INFINITE;
      int64_t at = 0;
      for (int64_t j = 0; j < n; j += L, at = at + L < groups ? at + L : 0)
        store(maxima + at, largest(load(s + j), load(maxima + at)));  // in this order NaN does not come in
    }
    if (groups > RANKED) {
      std::nth_element(maxima, maxima + k - 1, maxima + groups, [](float a, float b) { return a > b; });
      return maxima[k - 1];
    }
    int32_t ranks[RANKED];
    ranks_of(maxima, groups, ranks);
    return maxima[std::find(ranks, ranks + groups, static_cast<int32_t>(k - 1)) - ranks];
  }
};

}  // namespace REGARD_ISA
