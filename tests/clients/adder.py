"""An MCP server with a tool that works, one that fails and one that never ends."""

import time

from mcp.server import MCPServer

server = MCPServer("adder")


@server.tool()
def double(x: int) -> str:
    """Twice a number."""
    return f"twice {x} is {2 * x}"


@server.tool()
def fail(x: int) -> str:
    """Fails."""
    raise ValueError("no luck")


@server.tool()
def sleep(x: int) -> str:
    """Takes for ever."""
    time.sleep(3600)
    return ""


if __name__ == "__main__":
    server.run()
