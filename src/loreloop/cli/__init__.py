"""cli: wiring and printing, one file per verb.

Imports of other rooms stand inside the verbs, so that `--help` is quick.
"""
