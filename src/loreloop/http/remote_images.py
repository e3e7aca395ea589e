"""Images that requests name by address: asked for at allowed hosts only, within bounds of number, bytes and time.

Whatever goes wrong is told in the same words, so that nobody learns from them what else stands at those hosts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from functools import cached_property
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx

from loreloop.config import LimitConfig
from loreloop.images.files import kind_of
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.training import ImageChunk

MAX_ADDRESSES = 16  # of one request
FETCH_SECONDS = 10.0  # for all of them
DEFAULT_PORTS = {"http": 80, "https": 443}


class ImageWeb:
    """`hosts` are `host`, for ports 80 and 443, or `host:port`."""

    def __init__(self, hosts: Iterable[str], limits: LimitConfig) -> None:
        self.hosts = frozenset(host.lower() for host in hosts)
        self.image_bytes, self.request_bytes = limits.image_mib << 20, limits.body_mib << 20

    @cached_property
    def client(self) -> httpx.AsyncClient:
        """One for all requests; so it keeps no cookies, which would be one caller's at another's request."""
        nobody = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
        return httpx.AsyncClient(trust_env=False, follow_redirects=False, cookies=nobody)

    async def images(self, urls: Sequence[str]) -> list[ImageChunk]:
        """The images at these addresses, in their order. BadRequest where a host is not allowed, or where an address
        gives no image within the bounds of time and size."""
        if len(urls) > MAX_ADDRESSES:
            raise BadRequest(
                f"{len(urls)} images are named by address; name {MAX_ADDRESSES}, send others as data: URLs."
            )
        # All addresses are checked before the first is asked, so that a refused request has asked for nothing.
        addresses = [self._allowed(url) for url in urls]
        deadline, left = asyncio.get_running_loop().time() + FETCH_SECONDS, self.request_bytes
        found: list[ImageChunk] = []
        # One after another, because each may only use the bytes that the ones before it have left.
        for url, address in zip(urls, addresses, strict=True):
            data = await self._fetched(address, min(left, self.image_bytes), deadline)
            kind = kind_of(data) if data else None
            if data is None or kind is None:
                raise BadRequest(
                    f"The image's address {url[:80]!r} gave no image in time: all of a request come "
                    f"within {FETCH_SECONDS:g} s, each at most {self.image_bytes >> 20} MiB, "
                    f"all {self.request_bytes >> 20}."
                )
            left -= len(data)
            found.append(ImageChunk(data, kind))
        return found

    async def close(self) -> None:
        """Closes the client, if one was made."""
        if "client" in self.__dict__:  # it was made
            await self.client.aclose()

    def _allowed(self, url: str) -> httpx.URL:
        """The address as it will be asked for: what is checked and what is asked must not be read by two parsers."""
        try:
            address = httpx.URL(url)
            host = f"[{address.host}]" if ":" in address.host else address.host
        except (httpx.InvalidURL, ValueError):
            raise BadRequest(f"The image's address {url[:80]!r} is none; send a data: URL with base64.") from None
        default = DEFAULT_PORTS.get(address.scheme)
        port = default if address.port is None else address.port
        # A host without a port is allowed on the usual ports only: another port of the same machine may be another
        # service.
        is_named = f"{host}:{port}" in self.hosts or (port in DEFAULT_PORTS.values() and host in self.hosts)
        if default is None or address.userinfo or not is_named:
            raise BadRequest(
                f"The image's address {url[:80]!r} is not asked for by this server; send a data: URL with base64 "
                "(an administrator may allow hosts with image_hosts)."
            )
        return address

    async def _fetched(self, address: httpx.URL, limit_bytes: int, deadline: float) -> bytes | None:
        """What stands there; another address is not followed."""
        data = bytearray()
        try:
            async with (
                asyncio.timeout_at(deadline),
                self.client.stream("GET", address, headers={"accept-encoding": "identity"}) as reply,
            ):
                if reply.status_code != 200:
                    return None
                # Raw bytes: a compressed answer would be unpacked by the client before its size could be bounded.
                async for part in reply.aiter_raw():
                    data += part
                    if len(data) > limit_bytes:
                        return None
        except (httpx.HTTPError, OSError, ValueError, ExceptionGroup):
            return None
        return bytes(data)
