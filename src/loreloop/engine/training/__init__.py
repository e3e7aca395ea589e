"""engine/training: forward and backward passes with optimizer steps, over packed micro-batches.

It knows nothing of sampling.
"""
