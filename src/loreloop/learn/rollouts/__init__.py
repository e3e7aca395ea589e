"""Answers sampled for training: groups, budgets, staleness, and what is known of every token."""
