"""scheduler: what runs next in an engine process.

It knows no tensors, no database and no HTTP; of the engine it knows the contract.
"""
