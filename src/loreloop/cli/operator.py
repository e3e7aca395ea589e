"""The operator's way into the server that runs on a data folder: over its routes, with a key for the while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from loreloop.cli.who import operator

READ_SECONDS = 300.0  # two arms may warm up for two minutes each
KEY_SECONDS = 600.0


@contextmanager
def running_server_of(data_dir: str) -> Iterator[Any]:
    """An `httpx.Client` at the server of the data folder; None where none runs.

    Its key is taken away at the end, and expires where this process is killed before.
    """
    import time

    import httpx

    from loreloop.cli.keys import transaction
    from loreloop.config import Config
    from loreloop.host.server_plan import NONCE, running_address
    from loreloop.protocol.errors import Unavailable
    from loreloop.store import keys

    address = running_address(Config(data_dir=data_dir))
    if address is None:
        yield None
        return
    silent = f"The server at {address.url} does not answer"
    # Not by a proxy of the environment, which would see the key.
    with httpx.Client(base_url=address.url, trust_env=False, timeout=httpx.Timeout(10, read=READ_SECONDS)) as client:
        try:
            found = client.get("/healthz").headers.get(NONCE)
        except httpx.HTTPError as error:
            raise Unavailable(f"{silent} ({error}); try again in a moment.") from None
        # A server that has died may have left its address to another program; it must not be given a key.
        if found != address.nonce:
            raise Unavailable(f"{silent}, but something else does; start the server of {data_dir} anew, or use --cold.")
        now = time.time()
        with transaction(data_dir) as connection:
            # Keys of earlier commands that were killed go now.
            keys.forget_expired(connection, now)
            # The key bears the operator's name, which is then written into the history of a deployment.
            made = keys.create(connection, operator(), ("admin",), now, now + KEY_SECONDS)
        try:
            client.headers["authorization"] = f"Bearer {made.secret}"
            yield client
        except httpx.HTTPError as error:
            raise Unavailable(f"{silent} ({error}); try again in a moment.") from None
        finally:
            with transaction(data_dir) as connection:
                keys.forget(connection, made.row.id)


def checked(response: Any) -> Any:
    """The response, or its own words as an error."""
    from loreloop.protocol.errors import BadRequest

    if response.status_code >= 400:
        # A streamed response has not been read yet, and its error stands in its body.
        response.read()
        try:
            message = response.json()["error"]["message"]
        except (ValueError, LookupError, TypeError):
            message = f"The server answered {response.status_code}."
        raise BadRequest(message)
    return response


def no_server(data_dir: str) -> Exception:
    """What is said where no server runs on a data folder, and one is asked."""
    from loreloop.protocol.errors import NotFound

    return NotFound(f"There is no server running on {data_dir}; `loreloop serve` starts one.")
