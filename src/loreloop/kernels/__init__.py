"""kernels: small steps of a layer in C for CPUs and in Triton for GPUs. Optional: everything works without them.

The tensor library needs many calls for what one of these does in a single one. It knows no models.
"""
