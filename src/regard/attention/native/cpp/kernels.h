// The table of functions that every instruction set offers; entry.cpp calls them through the one in use.
#pragma once

#include "call.h"

struct Kernels {
  void (*attend)(const Call&);
  void (*attend_observed)(const Call&, const Seen&);
  void (*backward)(const Call&, const Gradients&);
  void (*push)(const Call&, const Push&);
  void (*linear)(const Linear&);
  double (*fma_gflops)(double seconds);
};
