"""http/tinker: the routes that the `tinker` SDK calls.

Wire types stand in `protocol/`. It knows neither OpenAI's nor Anthropic's routes.
"""
