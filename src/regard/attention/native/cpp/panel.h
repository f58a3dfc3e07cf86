// A panel: up to TILE_VECTORS · L neighbouring query rows of one head, one a lane, and the keys they may see.
#pragma once

#include "numbers.h"

namespace REGARD_ISA {

constexpr int PANEL = TILE_VECTORS * L;  // rows of the widest panel
constexpr int64_t KEYS = 64;             // keys of one tile

struct Panel {
  int64_t b, head;
  int64_t row;      // its first row
  int64_t rows;     // how many of its lanes are rows of the call
  int vectors;      // lanes / L
  int64_t lo, hi;   // some row sees keys of lo … hi - 1 only
  int64_t all_lo, all_hi;        // every row sees all of these; nothing where all_hi <= all_lo
  int32_t first[PANEL], stop[PANEL];  // what each row sees
  int64_t until[TILE_VECTORS];        // no row of the vectors up to this one sees a key from here on

  // The leading vectors whose rows see neither key j nor a later one, as under a causal mask: not all of them.
  int unseen(int64_t j) const {
    int n = 0;
    while (n < vectors - 1 && until[n] <= j) ++n;
    return n;
  }

  int64_t width() const { return static_cast<int64_t>(vectors) * L; }
};

// How the rows of a call are divided into panels: the widest ones first; two of 2 vectors rather than 3 and 1.
struct Panels {
  int64_t vectors, count;

  explicit Panels(int64_t Lq) : vectors((Lq + L - 1) / L), count((vectors + TILE_VECTORS - 1) / TILE_VECTORS) {}

  void place(int64_t index, int64_t Lq, Panel& panel) const {
    int64_t from = index * TILE_VECTORS, size = smaller(TILE_VECTORS, vectors - from);
    if (TILE_VECTORS == 3 && vectors % 3 == 1 && count > 1) {
      if (index == count - 2) size = 2;
      if (index == count - 1) from -= 1, size = 2;
    }
    panel.row = from * L;
    panel.vectors = static_cast<int>(size);
    panel.rows = smaller(size * L, Lq - panel.row);
  }
};

INLINE int64_t position_of(const Call& call, int64_t b, int64_t row) {
  return (call.starts ? call.starts[b] : call.start) + row;
}

// The keys [first, stop) of a row.
INLINE void keys_of(const Call& call, int64_t b, int64_t row, int64_t& first, int64_t& stop) {
  first = 0, stop = call.Lk;
  if (call.range_kind == OFFSETS) {
    const int64_t i = position_of(call, b, row);
    if (call.left >= 0) first = smaller(larger(i - call.left, 0), call.Lk);
    if (call.right >= 0) stop = larger(smaller(i + call.right + 1, call.Lk), 0);
    stop = larger(first, stop);
  } else if (call.range_kind == INTERVALS) {
    first = call.first[b * call.interval_batch + row];
    stop = call.stop[b * call.interval_batch + row];
  }
}

// Fills in which keys the rows of a panel see. Lanes past the last row see what the last one sees.
inline void look(const Call& call, Panel& panel) {
  panel.lo = call.Lk, panel.hi = 0, panel.all_lo = 0, panel.all_hi = call.Lk;
  for (int64_t lane = 0; lane < panel.width(); ++lane) {
    int64_t first, stop;
    keys_of(call, panel.b, panel.row + smaller(lane, panel.rows - 1), first, stop);
    if (stop > first) panel.lo = smaller(panel.lo, first), panel.hi = larger(panel.hi, stop);
    panel.all_lo = larger(panel.all_lo, first), panel.all_hi = smaller(panel.all_hi, stop);
    panel.first[lane] = static_cast<int32_t>(first), panel.stop[lane] = static_cast<int32_t>(stop);
    panel.until[lane / L] = panel.hi;
  }
  if (panel.hi <= panel.lo) panel.lo = panel.hi = 0;
}

// Rows of a tensor as floats, n rows of `columns` numbers, `ld` apart; columns up to ld are zero.
inline void read_rows(float* to, int64_t ld, const Tensor4& t, int64_t type, int64_t b, int64_t h, int64_t row,
                      int64_t n, int64_t columns) {
  for (int64_t r = 0; r < n; ++r, to += ld) {
    read_numbers(to, row_at(t, type, b, h, row + r), type, t.column, columns);
    for (int64_t c = columns; c < ld; ++c) to[c] = 0;
  }
}

// (L rows, `columns` numbers, `ld` apart) -> columns `width` apart, of which L lanes are written.
inline void turn(float* to, int64_t width, const float* from, int64_t ld, int64_t columns) {
  int64_t c = 0;
  for (; c < columns; c += L) {
    V m[L];
    for (int i = 0; i < L; ++i) m[i] = load(from + i * ld + c);
    transpose(m);
    const int64_t some = smaller(L, columns - c);
    for (int64_t i = 0; i < some; ++i) store(to + (c + i) * width, m[i]);
  }
}

// The rows of a panel, turned: (columns, width). Lanes without a row, and rows that see nothing, are zero.
inline void read_turned(float* to, const Panel& panel, const Tensor4& t, int64_t type, int64_t columns,
                        float* room /* L · (columns rounded up to L) */) {
  const int64_t ld = rounded_up(columns, L);
  const bool in_place = type == FLOAT32 && t.column == 1 && columns == ld && panel.all_hi > panel.all_lo;
  for (int v = 0; v < panel.vectors; ++v) {
    if (in_place && (v + 1) * L <= panel.rows) {  // all of them are rows, and all see something
      const char* row = row_at(t, type, panel.b, panel.head, panel.row + v * L);
      turn(to + v * L, panel.width(), reinterpret_cast<const float*>(row), t.row, columns);
      continue;
    }
    for (int i = 0; i < L; ++i) {
      const int64_t lane = static_cast<int64_t>(v) * L + i;
      float* row = room + i * ld;
      int64_t c = 0;
      if (lane < panel.rows && panel.stop[lane] > panel.first[lane]) {
        read_numbers(row, row_at(t, type, panel.b, panel.head, panel.row + lane), type, t.column, columns);
        c = columns;
      }
      for (; c < ld; ++c) row[c] = 0;
    }
    turn(to + v * L, panel.width(), room, ld, columns);
  }
}

// From this size on an output does not stay in the second cache: it is written past it, which saves reading every line
// first (a fifth of the time at 96 heads of 128 rows). Smaller ones are wanted there by whoever comes next.
constexpr int64_t STREAMED = 1 << 20;

INLINE bool streamed(const Tensor4& t, int64_t type, int64_t numbers) {
  const auto address = reinterpret_cast<uintptr_t>(t.data);
  const bool aligned = address % 64 == 0 && (t.row * 4) % 64 == 0 && (t.head * 4) % 64 == 0 && (t.batch * 4) % 64 == 0;
  return type == FLOAT32 && t.column == 1 && aligned && numbers * 4 >= STREAMED;
}

// The other way: (columns, width), a lane multiplied by its factor, to the rows of a tensor.
inline void write_turned(const Tensor4& t, int64_t type, const Panel& panel, const float* from, int64_t columns,
                         const float* factors /* (width,) */, float* room, bool streams = false) {
  const int64_t ld = rounded_up(columns, L), width = panel.width();
  const bool in_place = type == FLOAT32 && t.column == 1;
  for (int v = 0; v < panel.vectors; ++v) {
    const int64_t rows = smaller(L, panel.rows - static_cast<int64_t>(v) * L);
    if (rows <= 0) return;
    const V factor = load(factors + v * L);
    char* first = row_to(t, type, panel.b, panel.head, panel.row + v * L);
    for (int64_t c = 0; c < columns; c += L) {
      V m[L];
      const int64_t some = smaller(L, columns - c);
      for (int64_t i = 0; i < L; ++i) m[i] = i < some ? load(from + (c + i) * width + v * L) * factor : V{};
      transpose(m);
      if (in_place && some == L && rows == L) {
        float* to = reinterpret_cast<float*>(first) + c;
        for (int i = 0; i < L; ++i) streams ? stream(to + i * t.row, m[i]) : store(to + i * t.row, m[i]);
        continue;
      }
      for (int i = 0; i < L; ++i) store(room + i * ld, m[i]);
      for (int64_t i = 0; i < rows; ++i)
        write_numbers(first + (i * t.row + c * t.column) * size_of(type), room + i * ld, type, t.column, some);
    }
  }
}

// Keys or values of one head, as rows of floats.
struct Matrix {
  const float* data;
  int64_t ld;

  const float* row(int64_t j) const { return data + j * ld; }
};

// Whether a copy of a head's keys and values pays: they are more than this, and many panels read all of them again.
//
// Rows that stand apart, as a head's do between those of the other heads, meet in a part of the cache's sets (a quarter
// of them, for 12 heads of 64 numbers), which then keeps less of them: 1,024 keys took 1.3 times as long.
constexpr int64_t WORTH_COPYING = 1 << 18;

INLINE bool read_often(const Call& call) {
  return call.Lk * (call.D + call.Dv) * 4 > WORTH_COPYING && call.Lq * (call.Hq / call.Hkv) >= 4 * PANEL;
}

// Whether the rows of a tensor are best read where they are. Those whose distance is a multiple of half a page would all
// meet in a few sets of the cache.
INLINE bool readable(const Tensor4& t, int64_t type, int64_t rows, int64_t columns, bool often) {
  if (type != FLOAT32 || t.column != 1) return false;
  return rows < 16 || (t.row * 4 % 2048 != 0 && (t.row == columns || !often));
}

// A head's keys and values: where they are, or copied into `scratch`, which remembers whose copy it holds.
class Heads {
 public:
  Heads(const Call& call, const uint8_t* seen) : call_(call), seen_(seen) {
    const bool holes = seen != nullptr;
    const bool often = read_often(call);
    copy_key_ = holes || !readable(call.key, call.dtype, call.Lk, call.D, often);
    copy_value_ = holes || !readable(call.value, call.dtype, call.Lk, call.Dv, often);
    key_ld_ = padded(call.D), value_ld_ = padded(call.Dv);
  }

  // Floats of scratch that a thread needs.
  int64_t room() const {
    return (copy_key_ ? call_.Lk * key_ld_ : 0) + (copy_value_ ? call_.Lk * value_ld_ : 0);
  }

  void get(int64_t b, int64_t h, float* scratch, int64_t& held, Matrix& key, Matrix& value) const {
    float* value_at = scratch + (copy_key_ ? call_.Lk * key_ld_ : 0);
    const bool fresh = held != b * call_.Hkv + h;
    held = b * call_.Hkv + h;
    key = one(call_.key, b, h, copy_key_, scratch, key_ld_, call_.D, fresh);
    value = one(call_.value, b, h, copy_value_, value_at, value_ld_, call_.Dv, fresh);
  }

 private:
  static int64_t padded(int64_t columns) {
    const int64_t ld = rounded_up(columns, L);
    return ld * 4 % 1024 == 0 ? ld + 16 : ld;
  }

  Matrix one(const Tensor4& t, int64_t b, int64_t h, bool copy, float* to, int64_t ld, int64_t columns,
             bool fresh) const {
    if (!copy) return {reinterpret_cast<const float*>(row_at(t, FLOAT32, b, h, 0)), t.row};
    if (fresh) {
      read_rows(to, ld, t, call_.dtype, b, h, 0, call_.Lk, columns);
      if (seen_)  // what no row may see may be NaN, and 0 · NaN is no 0
        for (int64_t j = 0; j < call_.Lk; ++j)
          if (!seen_[b * call_.Lk + j]) memset(to + j * ld, 0, static_cast<size_t>(ld) * 4);
    }
    return {to, ld};
  }

  const Call& call_;
  const uint8_t* seen_;
  bool copy_key_, copy_value_;
  int64_t key_ld_, value_ld_;
};

}  // namespace REGARD_ISA
