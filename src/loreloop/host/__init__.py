"""host: the processes of a server, from their start to their end.

It knows no routes and no tensors.
"""
