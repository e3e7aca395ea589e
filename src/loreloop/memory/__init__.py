"""memory: a conversation's history inside a token budget (mask, allocate, refill).

It knows no tensors library, no database and no server: whoever uses it passes in how tokens are counted, where the
state is kept and, if a model shall write, a sampler.
"""
