"""http: one HTTP request in, one answer out; its sub-rooms are the dialects that clients speak.

It knows no business rules, no SQL and no tensors. `tinker/`, `openai/` and `anthropic/` never import one another: what
they share stands here and in `generation/`.
"""
