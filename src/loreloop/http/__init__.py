"""http: parse, check, submit, answer (Tinker and OpenAI routers).

It knows no business rules, no SQL and no tensors.
"""
