"""text/tools: tool calls inside a model's text, found while it grows.

It knows no API dialect and calls nothing.
"""
