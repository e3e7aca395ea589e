"""http/anthropic: the routes that Anthropic's clients call.

It knows neither Tinker's nor OpenAI's routes.
"""
