"""The native CPU kernel: exact attention, and what it saw, at the cost of a fused kernel.

cpp/         the kernel, C++17, compiled once for each instruction set
library.py   finds and loads it
lowering.py  a checked call, as plain numbers, pointers and strides
operator.py  the calls as PyTorch knows them, with gradients and for torch.compile
backend.py   what `dispatch.py` asks a backend
"""
