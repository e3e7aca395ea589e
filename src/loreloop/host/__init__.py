"""host: processes: start, watch, restart, replay, drain; the link between HTTP and engine.

It knows no routes and no tensors.
"""
