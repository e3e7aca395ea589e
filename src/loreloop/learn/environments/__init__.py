"""Tasks of several turns: what a model's words and calls are answered with, and what they earn."""
