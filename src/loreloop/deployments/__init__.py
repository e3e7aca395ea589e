"""deployments: which weights a model name means.

It knows no SQL text and no tensors.
"""
