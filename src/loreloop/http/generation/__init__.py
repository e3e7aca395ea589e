"""http/generation: one generation request, from a conversation to the pieces of a reply.

It knows no dialect: whoever calls it has already turned a body into a conversation.
"""
