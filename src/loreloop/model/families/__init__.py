"""One file a model family: how its configuration becomes a `DecoderSpec`, and what its weights are called.

A new family is one file here and one row in `table.py`.
"""
