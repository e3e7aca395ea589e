"""model: the network of a base model, with its adapters, as layers and their parameters.

It knows no files, no requests and no users. A family of models is one file in `families/`.
"""
