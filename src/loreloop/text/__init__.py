"""text: strings ↔ token ids (tokenizers, chat templates, stop strings).

It knows no tensors library and no model.
"""
