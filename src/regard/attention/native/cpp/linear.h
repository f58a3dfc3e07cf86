// Rows times a matrix, and what a feed-forward network does with the results while they are in registers.
#pragma once

#include "linear_few.h"
#include "linear_many.h"

namespace REGARD_ISA {

inline void linear(const Linear& call) {
  if (call.few) linear_of_few(call);
  else linear_of_many(call);
}

}  // namespace REGARD_ISA
