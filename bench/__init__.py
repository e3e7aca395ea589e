"""Figures of docs/benchmarks.md: `python -m bench [ROW]` measures, writes bench/results/ROW.json and prints a table."""
