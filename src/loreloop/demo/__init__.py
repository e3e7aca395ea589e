"""demo: a small model learns sums in front of you, by the same door that every client uses.

It knows the `tinker` SDK, the cookbook and the `openai` client, and nothing of the server's insides.
"""
