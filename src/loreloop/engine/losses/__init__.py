"""One file a loss: what it needs, and a pure function from log-probabilities to a sum.

Conventions: `logp` is log π(target) under the current weights, at temperature 1; `logprobs` are those of sampling
time; every loss is a sum over tokens and is minimised. A new loss is one file here and one row in `table.py`.
"""
