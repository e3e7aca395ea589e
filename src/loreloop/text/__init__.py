"""text: strings ↔ token ids.

It knows no tensors library and no model.
"""
