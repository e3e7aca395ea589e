"""engine: token ids in, log-probabilities and gradients out, on this machine's devices.

It knows no strings, no database and no HTTP. `training/` and `sampling/` never import one another: what both need,
so that they get the same numbers, stands here.
"""
