"""memory/evaluation: conversations with questions, what a memory has kept of their evidence, and what others keep.

It asks no model and no judge: a turn's words, names and numbers stand in the memory or they do not.
"""
