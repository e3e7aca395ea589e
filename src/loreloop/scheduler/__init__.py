"""scheduler: what runs next (ordering, batching, fairness, cancellation), and the loop around the engine.

It knows no tensors, no database and no HTTP; of the engine it knows the contract.
"""
