"""http/openai: the routes that OpenAI's clients call.

It knows neither Tinker's nor Anthropic's routes.
"""
