"""What browsers say of a request, by which name they ask and from which page, and what follows from it.

A page that somebody visits runs on their machine, and may have its own name point at the loopback address: it would
then read what needs no key as if it were a page of this server. The header `Host` tells its name. Knows no route but
those that are made for pages of others.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from loreloop.config import Config
from loreloop.http.loop.speakers import ANY_ORIGIN, PREFIX
from loreloop.http.services import secret_of
from loreloop.protocol.errors import Forbidden, Misdirected

Site: TypeAlias = Literal["own", "foreign", "unsaid"]
# Names that every machine gives to itself, and those that programs in containers have for the machine around them.
LOOPBACK_NAMES = ("localhost", "localhost.localdomain", "host.docker.internal", "host.containers.internal")
HOST = re.compile(r"(?:\[([^\[\]]*)\]|([^:\[\]]*))(?::\d*)?")
CHANGES_NOTHING = ("GET", "HEAD", "OPTIONS")
READABLE_HEADERS = "retry-after, x-loreloop-revision, x-queue-position, x-request-id"


def site_of(request: Request) -> Site:
    """Whose page a request comes from. Programs do not say; browsers do with each request that changes something."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site == "none" or (site is None and origin is None):  # the first: what somebody has typed or kept
        return "unsaid"
    if site is not None:
        # A page of another port of this machine is of the same site, and still somebody else's.
        return "own" if site == "same-origin" else "foreign"
    # A proxy may have taken TLS off, so that the scheme tells nothing.
    return "own" if netloc_of(origin or "") == request.headers.get("host", "").lower() else "foreign"


@dataclass(frozen=True)
class Admission:
    """By which names a server is asked, and which pages of others may change something."""

    names: frozenset[str]
    origins: frozenset[str]
    asks_everywhere: bool  # and not on the loopback address alone

    def check(self, request: Request) -> None:
        """Misdirected where the name is none of this server's; Forbidden where a page of somebody else would change
        something."""
        self._check_name(request)
        may_be_foreign = request.method in CHANGES_NOTHING or self.guest_of(request) or _is_for_pages(request)
        if not may_be_foreign and site_of(request) == "foreign":
            raise Forbidden(
                f"A page of {request.headers.get('origin', 'another site')[:200]!r} may change nothing here. If it is "
                "yours, name its origin in the setting `page_origins` (docs/serving.md)."
            )

    def guest_of(self, request: Request) -> str:
        """The origin of the page that a request comes from, where the settings name it; empty for any other."""
        origin = request.headers.get("origin", "")
        return origin if origin and not self.origins.isdisjoint((origin.lower(), ANY_ORIGIN)) else ""

    def _check_name(self, request: Request) -> None:
        server = request.scope.get("server")
        is_local = server is not None and is_own_address(str(server[0]))
        if not is_local and not self.asks_everywhere:
            return
        for host in request.headers.getlist("host"):
            name = name_in(host)
            # An address is nobody's to point elsewhere, but who comes over the loopback address has no other one.
            is_ours = name in self.names or name.endswith(".localhost") or is_own_address(name)
            if host and not is_ours and (is_local or not _is_address(name)):
                raise Misdirected(
                    f"This server is not asked by the name {name[:200]!r}. If it is yours, as behind a proxy, name it "
                    "in the setting `host_names` (docs/serving.md); else ask by localhost."
                )


def admission_of(config: Config) -> Admission:
    """What the settings, and this machine's own name, let in."""
    machine = socket.gethostname()
    own = (*LOOPBACK_NAMES, machine, machine.partition(".")[0], config.host, *config.host_names)
    return Admission(
        names=frozenset(name_in(name) for name in own if name),
        origins=frozenset(origin.lower() for origin in config.page_origins),
        asks_everywhere=bool(config.host_names),
    )


def preflight(request: Request) -> Response | None:
    """The answer to what a browser asks before a page of another origin sends something; None for any other request."""
    method = request.headers.get("access-control-request-method")
    if request.method != "OPTIONS" or method is None:
        return None
    headers = {
        "access-control-allow-methods": method,
        "access-control-allow-headers": request.headers.get("access-control-request-headers", "*"),
        "access-control-max-age": "600",
    }
    # Browsers ask this too where a page of the internet reaches into a local network.
    if request.headers.get("access-control-request-private-network"):
        headers["access-control-allow-private-network"] = "true"
    return Response(status_code=204, headers=headers)


def readable_by(origin: str) -> list[tuple[bytes, bytes]]:
    """Headers by which a browser gives an answer to a page of this origin."""
    return [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-expose-headers", READABLE_HEADERS.encode()),
        (b"vary", b"Origin"),
    ]


def name_in(host: str) -> str:
    """The name or address in a `Host`, without its port."""
    host = host.strip().lower()
    match = HOST.fullmatch(host)  # what does not look like one stays whole, and is nobody's name
    return (match[1] or match[2] or "").rstrip(".") if match else host


@lru_cache(maxsize=1024)  # it is asked twice with each request
def is_own_address(text: str) -> bool:
    """Whether this is an address of a machine for itself. Systems take the one that means all addresses for it too."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback or address.is_unspecified)


def netloc_of(origin: str) -> str:
    """The host and port that an origin names; empty where it is none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:  # brackets that are not closed
        return ""


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_for_pages(request: Request) -> bool:
    """Whether its route looks itself at whose page it comes from: a link's own form, what comes by a token for pages,
    which is good for its origins alone, and forms of our pages, which tell in their own words what is wrong."""
    path, secret = request.scope["path"], secret_of(request)
    return path.startswith("/f/") or secret.startswith(PREFIX) or (path.startswith("/ui/") and not secret)
