"""Wrong keys are slowed down: an address that has tried too many is not told of any other key whether it is right.

Who has come with a right key goes on, from the same address too, and so does everybody elsewhere. A wrong key that is
tried again and again is no guess: a program that nobody has told of a new key shuts out nobody but itself. Knows no
route, and holds no secret.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import time
from collections import OrderedDict

from loreloop.host.write_behind import WriteBehind
from loreloop.http.rates import Rate, Rates
from loreloop.protocol.errors import LoreloopError, Unavailable
from loreloop.store import audit
from loreloop.store.account_rows import AuditEntry
from loreloop.store.store import Store

OF_ADDRESS = Rate(per_second=0.5, burst=30)  # wrong keys
MOST_TRIED = 10_000  # pairs of an address and a key that are remembered
MOST_NOTED = 200  # entries of a day in the audit log, of which an address has one
DAY_SECONDS, NOTE_SECONDS = 86400, 1.0
LOG = logging.getLogger(__name__)


class Guesses:
    """What was tried lately, by address. Lives on the event loop of the HTTP process; forgets when that ends."""

    def __init__(self, store: Store) -> None:
        self.store, self.rates = store, Rates()
        self.tried: OrderedDict[str, bool] = OrderedDict()  # whether the key was right, by address and key
        self.noted: set[str] = set()  # addresses of this day
        self.day = 0
        self.pending: list[AuditEntry] = []
        self.behind = WriteBehind(NOTE_SECONDS, self._write)

    def admit(self, address: str, secret: str) -> None:
        """Unavailable where no key may be looked up for this address now."""
        pair = _pair(address, secret)
        was_right = self.tried.get(pair)
        if was_right:
            return
        wait = self.rates.wait(address if was_right is None else pair, OF_ADDRESS, time.monotonic())
        if wait > 0:
            self._note(address)
            raise Unavailable(
                f"Too many wrong keys came from this address: {OF_ADDRESS.burst:g} at once are looked up, and then one "
                f"in {1 / OF_ADDRESS.per_second:g} s. Send a key of this server, and wait as long as retry-after says.",
                wait,
            )

    def learn(self, address: str, secret: str, *, right: bool) -> None:
        """What became of a key that was admitted."""
        pair = _pair(address, secret)
        if not right:
            self.rates.take(address if self.tried.get(pair) is None else pair, OF_ADDRESS, time.monotonic())
        self.tried[pair] = right
        self.tried.move_to_end(pair)
        if len(self.tried) > MOST_TRIED:
            self.tried.popitem(last=False)

    def _note(self, address: str) -> None:
        """In the log and the audit log, once a day for an address, and not so often that they are full of it."""
        moment = time.time()
        if self.day != int(moment // DAY_SECONDS):
            self.day, self.noted = int(moment // DAY_SECONDS), set()
        if address in self.noted or len(self.noted) >= MOST_NOTED:
            return
        self.noted.add(address)
        LOG.warning("too many wrong keys come from %s; they are slowed down", address)
        details = {"address": address, "by": "somebody without a key"}
        self.pending.append(AuditEntry(moment, "key_guesses", "", details))
        self.behind.soon()

    async def _write(self) -> None:
        pending, self.pending = self.pending, []
        try:
            for entry in pending:
                await self.store.write(audit.note, entry)
        except LoreloopError as error:  # the log has them
            LOG.warning("wrong keys are not in the audit log: %s", error.message)


def address_of(client: tuple[str, int] | None) -> str:
    """By what a client is counted: its address, or where that is IPv6 its network, of which one client has all."""
    text = client[0] if client else ""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return "an address that cannot be read"  # as a proxy may say it
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    mapped = address.ipv4_mapped
    return str(mapped or ipaddress.ip_network((int(address) >> 64 << 64, 64)))


def _pair(address: str, secret: str) -> str:
    digest = hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()
    return f"{address} {digest}"
