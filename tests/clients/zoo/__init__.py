"""Scripts that other people's clients are driven by, each run in an environment of its own. Knows nothing of pytest."""
