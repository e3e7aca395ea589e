"""store: what must survive a crash.

It knows no tensors, no policy and no HTTP codes.
"""
