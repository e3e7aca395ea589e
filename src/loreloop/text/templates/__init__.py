"""text/templates: the chat templates and generation defaults that come with a model.

It knows no tool formats; templates are untrusted and run in Jinja's sandbox.
"""
