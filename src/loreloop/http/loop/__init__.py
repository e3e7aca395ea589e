"""The routes of the closed loop under `/loop/v1`: what was recorded, and of whom.

It knows no dialect.
"""
