"""engine: token ids and numbers (train step, optimizer, losses, sampler, KV cache, adapters).

It knows no strings, no database and no HTTP.
"""
