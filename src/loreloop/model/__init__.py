"""model: the network (one decoder, its plug points, LoRA, loading), one file a family.

It knows no requests and no users.
"""
