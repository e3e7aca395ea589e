"""mcp: tools of registered MCP servers, called on behalf of a request.

It knows no API dialect and no model. The `mcp` library is an extra.
"""
