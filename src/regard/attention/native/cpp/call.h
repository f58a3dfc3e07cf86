// One call of attention, as Python hands it over: sizes, pointers and strides. lowering.py packs it field by field.
//
// Every field takes eight bytes, in this order, so that both sides agree without a compiler between them. Strides
// count elements. A null pointer means: not there, or not asked for.
#pragma once

#include <cstdint>

enum DataType : int64_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2, BOOLEAN = 3 };

// A tensor of four dimensions; the third is rows (of queries or keys), the last what stands in a row.
struct Tensor4 {
  void* data;
  int64_t batch, head, row, column;  // strides; 0 where the dimension is broadcast
};

enum RangeKind : int64_t { ALL_KEYS = 0, OFFSETS = 1, INTERVALS = 2 };

struct Call {
  int64_t B, Hq, Hkv, Lq, Lk, D, Dv;
  int64_t dtype;    // of query, key, value and their gradients, and of the output's
  int64_t output_dtype;  // the same or FLOAT32
  int64_t threads;  // at most so many work on it

  Tensor4 query, key, value, output;
  double scale, softcap;  // softcap 0: none

  // Which keys [first, stop) a row sees: all, by offsets from its position, or as arrays (B|1, Lq).
  int64_t range_kind;
  int64_t left, right;  // OFFSETS: position - left … position + right, both inclusive
  const int64_t *first, *stop;
  int64_t interval_batch;  // stride of both

  const int64_t* starts;  // (B,) positions of row 0; null: `start` for all
  int64_t start;

  Tensor4 allowed;  // boolean, (B|1, H|1, Lq|1, Lk|1)
  Tensor4 bias;     // added to the scores, the same shapes
  int64_t bias_dtype;

  // A bias of distances, (Hq, …): element position - key + distance_origin.
  const float* distance_bias;
  int64_t distance_head, distance_origin;

  const float* sink_logits;  // (Hq,)
  float* logsumexp;          // (B, Hq, Lq): written by forward passes, read by the backward pass
};

// Where what was seen is written: (B, Hq, Lq) unless said otherwise.
struct Seen {
  int64_t top, segment_count;
  int32_t* top_keys;                       // (B, Hq, Lq, top)
  float *top_weights, *rest;               // (B, Hq, Lq, top), (B, Hq, Lq)
  float *max_weight, *entropy, *sink_weight;
  float *mean_position, *mean_distance;
  float* received;                         // (B, Hq, Lk)
  const int32_t* segments;                 // (B|1, Lk)
  int64_t segments_batch;                  // stride
  float* segment_mass;                     // (B, Hq, Lq, segment_count)
};

struct Gradients {
  Tensor4 grad_output;                   // (B, Hq, Lq, Dv)
  Tensor4 query, key, value;             // written
  float* distance_bias;                  // (B, Hq, distance_width), written; summed over B by the caller
  int64_t distance_width;
};

// Numbers given to rows, and where what the keys get of them is written: rᵀ P, or rᵀ (G ⊙ P)₊ with
// G = grad_output · Vᵀ.
struct Push {
  Tensor4 rows;         // r, float32, (B|1, Hq|1, Lq, columns)
  Tensor4 grad_output;  // float32, (B, Hq, Lq, Dv), or null
  int64_t columns;
  float* out;           // (B, Hq, Lk, columns)
};

enum Activation : int64_t { NO_ACTIVATION = 0, RELU = 1, GELU = 2, GELU_TANH = 3, SILU = 4, TANH = 5 };

// out (rows, lines) = activation(x (rows, in) · weightᵀ + bias (lines,)), all float32 and dense; bias may be null. Gated:
// weight and bias have twice as many lines, and what the second half gives is multiplied with that.
struct Linear {
  int64_t rows, in, lines;  // `in` is a multiple of 16
  int64_t threads;          // at most so many work on it
  const float *x, *weight, *bias;
  float* out;
  int64_t activation, gated;
  int64_t few;  // rows: the matrix is read as a stream
};
