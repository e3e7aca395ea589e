"""serve: names → revisions.

It knows no SQL text and no tensors.
"""
