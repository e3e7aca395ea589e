"""kernels: small steps of a layer, in C for CPUs and Triton for GPUs, for what the tensor library does in many calls.
Optional: all works without."""
