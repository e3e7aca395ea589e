"""engine/sampling: continuous batching over a paged cache of keys and values.

It knows nothing of training.
"""
