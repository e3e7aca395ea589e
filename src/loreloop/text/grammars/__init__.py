"""text/grammars: constraints on a model's output, compiled in a process of their own.

It knows no engine: a grammar gives the mask of tokens that may come next.
"""
