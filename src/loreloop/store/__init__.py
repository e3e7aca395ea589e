"""store: what must survive a crash (rows, journal, results, spool, checkpoint files).

It knows no tensors, no policy and no HTTP codes.
"""
