"""images: an image's bytes as checked pixels and a number of tokens.

It knows no tensors library and no models.
"""
