"""The HTTP process: store, dispatcher, the sockets for engines and for the worker of jobs, the sweeper, and the web
server, on one event loop.

The application is made by a function it is given, since this room knows no routes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import msgspec

from loreloop.host.address import listen
from loreloop.host.dispatcher import Dispatcher
from loreloop.host.job_desk import JobDesk
from loreloop.host.link import EngineConnection, WorkerConnection
from loreloop.host.server_plan import Address, ServerPlan
from loreloop.host.sweeper import Sweeper
from loreloop.protocol.errors import OutOfService
from loreloop.protocol.syncing import promise
from loreloop.store import keys, sessions
from loreloop.store.store import Store

FIRST_KEY_SCOPES = ("admin",)
LOADING_SECONDS = 30.0  # between two lines about what is waited for
LOG = logging.getLogger(__name__)
Serve: TypeAlias = Callable[[Dispatcher, JobDesk, socket.socket], Awaitable[None]]


async def run_web(plan: ServerPlan, serve: Serve) -> None:
    """Runs `serve` (the web server, until it is told to end) with everything around it."""
    listening = bind(plan)
    promise(plan.config.durability)
    store = Store(plan.config.data_path, plan.config.durability)
    # While the server was down nobody could send a heartbeat, so no session may end for having been silent.
    await store.write(sessions.renew_all, time.time())
    dispatcher = Dispatcher(plan.config, store, tuple(plan.folders))
    desk = JobDesk(plan.config, dispatcher, loopback_url(url_of(listening)))
    await desk.recover()
    engines = await _listen(
        plan.socket, lambda reader, writer: dispatcher.serve_engine(EngineConnection(reader, writer))
    )
    workers = await _listen(
        plan.worker_socket, lambda reader, writer: desk.serve_worker(WorkerConnection(reader, writer))
    )
    sweeping = asyncio.create_task(Sweeper(dispatcher).run())
    url = url_of(listening)
    write_address(plan, url)
    announcing = asyncio.create_task(announce(plan, dispatcher, url))
    try:
        await serve(dispatcher, desk, listening)
    finally:
        for task in (sweeping, announcing):
            task.cancel()
        await asyncio.wait({sweeping, announcing})
        # The engines and the worker see the end of the stream and exit by themselves.
        for sockets in (engines, workers):
            sockets.close()
        await dispatcher.meter.flush()
        await dispatcher.observers.series.flush()
        store.close()


async def _listen(
    path: Path, serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
) -> asyncio.Server:
    # A killed process leaves its socket's file behind, on which nobody could listen again.
    path.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(serve, path)
    # Whoever may write to the socket could pass for an engine, or for the worker.
    path.chmod(0o600)
    return server


def bind(plan: ServerPlan) -> socket.socket:
    """Listens where the settings say; a free port once taken is kept over a restart, since clients know it."""
    config, port = plan.config, plan.config.port
    if port == 0 and plan.address_file.exists():  # of this server: the supervisor removes others'
        url = msgspec.json.decode(plan.address_file.read_bytes(), type=Address).url
        port = int(url.rpartition(":")[2])
    return listen(config.host, port)


def url_of(listening: socket.socket) -> str:
    """The address under which clients reach this socket; an IPv6 address stands in brackets."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def loopback_url(url: str) -> str:
    """Where a process on this machine reaches a server that listens on all addresses."""
    return url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")


def write_address(plan: ServerPlan, url: str) -> None:
    """Writes the file by which command lines find this server, with the supervisor's process id and the nonce."""
    temporary = plan.address_file.with_suffix(".tmp")
    temporary.write_bytes(msgspec.json.encode(Address(url, os.getppid(), plan.nonce)))
    # Renaming is atomic, so nobody reads half an address.
    temporary.replace(plan.address_file)


async def announce(plan: ServerPlan, dispatcher: Dispatcher, url: str) -> None:
    """Says what is waited for, and that the server serves when it does; at the very first start also makes a key, and
    prints it and how to use it."""
    loading = set(plan.folders)
    tell(f"{url} is up; loading {', '.join(plan.folders)} …")
    started = time.monotonic()
    infos = {asyncio.ensure_future(dispatcher.info(name)): name for name in loading}
    while infos:
        done, _ = await asyncio.wait(infos, timeout=LOADING_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        for info in done:
            del infos[info]
            if isinstance(info.exception(), OutOfService):  # the server stops before it has begun
                return
        if not done:
            tell(f"still loading {', '.join(sorted(infos.values()))} after {time.monotonic() - started:.0f} s …")
    tell(f"Loreloop serves {', '.join([*plan.folders, *plan.config.aliases])} at {url}")
    if not dispatcher.store.read(keys.any_exist):
        made = await dispatcher.store.write(keys.create, "first", FIRST_KEY_SCOPES, time.time())
        tell("A key was made; it is shown only now. In the shell of your client:\n", secret=True)
        tell(f"export TINKER_BASE_URL={url}\nexport TINKER_API_KEY={made.secret}\n", secret=True)
        tell("So that get_tokenizer() finds tokenizers here, in a cache of their own:\n")
        tell(f"{tokenizer_exports(url)}\n")


def tokenizer_exports(url: str) -> str:
    """What a client sets to get tokenizers from here. They go into a cache of their own, since the name of an alias may
    mean something else on the hub."""
    return f"export HF_ENDPOINT={url}/hf\nexport HF_HUB_CACHE=~/.cache/loreloop/hub"


def tell(text: str, *, secret: bool = False) -> None:
    """On the terminal, and unless it is a secret in the log."""
    if not secret:
        LOG.info(text)
    with contextlib.suppress(OSError):  # nobody reads it
        print(text, flush=True)
