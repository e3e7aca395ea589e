"""outside: a sampler that is not ours, behind the face of an engine.

A vLLM or SGLang server that somebody runs draws tokens; adapters are handed to it by their folders. Here stands the
engine's contract over its routes. Nothing is trained here, and nothing is known of queues or of clients.
"""
