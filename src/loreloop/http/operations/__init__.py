"""http/operations: the routes that an operator calls, for deployments, clean-up, health checks, metrics.

It knows no dialect of generation.
"""
