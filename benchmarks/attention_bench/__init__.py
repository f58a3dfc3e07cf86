"""What `benchmarks/attention.py` is made of, read in this order.

shapes    which calls are measured, and why each is there
cases     the sides of one call: this project, torch's SDPA, softmax in the open; errors against float64
timing    interleaved samples, and ratios that machine noise cancels from
machine   what ran the benchmark, its instruction set, and the ceiling of its arithmetic
speed     every shape, on every number of threads
goals     the rows that the kernel is held to, and whether they are met
report    the tables and the JSON
limits    the two promises: memory and accuracy
"""
