"""The routes of the closed loop under `/loop/v1`: what was recorded, of whom, and what was said of it.

It knows no dialect.
"""
