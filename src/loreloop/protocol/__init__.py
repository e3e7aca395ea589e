"""protocol: the words everyone shares (value types, errors, `tinker://` paths, wire formats both ways).

It knows no tensors library, no database, no HTTP server and no clock.
"""
