"""formats: model files of every published kind, read into a network or written from one.

It knows no requests and no users. The network itself stands in `model/`, which does not know how it was stored.
"""
