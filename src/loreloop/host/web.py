"""The HTTP process: store, desk, the socket for engines, the sweeper, and the web server, on one event loop.

The application is made by a function it is given, since this room knows no routes.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import msgspec

from loreloop.host.desk import Desk
from loreloop.host.link import EngineConnection
from loreloop.host.plan import Address, ServerPlan
from loreloop.host.sweeper import Sweeper
from loreloop.protocol.errors import BadRequest
from loreloop.store import keys, sessions
from loreloop.store.store import Store

BACKLOG = 4096  # connections that may wait: a client may open two thousand at once
FIRST_KEY_SCOPES = ("admin",)
Serve: TypeAlias = Callable[[Desk, socket.socket], Awaitable[None]]


async def run_web(plan: ServerPlan, serve: Serve) -> None:
    """Runs `serve` (the web server, until it is told to end) with everything around it."""
    listening = bind(plan)
    store = Store(plan.config.data_path)
    await store.write(sessions.renew_all, time.time())
    desk = Desk(plan.config, store, tuple(plan.folders))
    plan.socket.unlink(missing_ok=True)
    engines = await asyncio.start_unix_server(
        lambda reader, writer: desk.serve_engine(EngineConnection(reader, writer)), plan.socket
    )
    plan.socket.chmod(0o600)
    sweeping = asyncio.create_task(Sweeper(desk).run())
    await announce(plan, store, listening)
    try:
        await serve(desk, listening)
    finally:
        sweeping.cancel()
        engines.close()
        store.close()


def bind(plan: ServerPlan) -> socket.socket:
    """Listens where the settings say; a free port once taken is kept over a restart, since clients know it."""
    config, port = plan.config, plan.config.port
    if port == 0 and plan.address_file.exists():  # of this server: the supervisor removes others'
        url = msgspec.json.decode(plan.address_file.read_bytes(), type=Address).url
        port = int(url.rpartition(":")[2])
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((config.host, port))
        listening.listen(BACKLOG)
    except OSError as error:
        raise BadRequest(f"Cannot listen on {config.host}:{port}: {error.strerror}. Give another --port.") from None
    return listening


async def announce(plan: ServerPlan, store: Store, listening: socket.socket) -> None:
    """Writes the address file, and at the very first start prints a key and how to use it."""
    host, port = listening.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    print(f"Loreloop serves {', '.join([*plan.folders, *plan.config.aliases])} at {url}", flush=True)
    if not store.read(keys.any_exist):
        made = await store.write(keys.create, "first", FIRST_KEY_SCOPES, time.time())
        print("A key was made; it is shown only now. In the shell of your client:\n", flush=True)
        print(f"export TINKER_BASE_URL={url}\nexport TINKER_API_KEY={made.secret}\n", flush=True)
    temporary = plan.address_file.with_suffix(".tmp")
    temporary.write_bytes(msgspec.json.encode(Address(url, os.getppid(), plan.nonce)))
    temporary.replace(plan.address_file)
