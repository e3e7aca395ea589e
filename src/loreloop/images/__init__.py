"""images: bytes of an image ↔ its size, its number of tokens, its pixels as a vision tower wants them.

May not hold torch. May import protocol and config.
"""
