"""Counts what each key uses and writes it to the store in batches, so that a request costs an addition in memory.

A process that is killed loses at most what the last `FLUSH_SECONDS` brought; training is counted by the journal, in the
transaction of its results, and loses nothing.
"""

from __future__ import annotations

import sys

from loreloop.host.write_behind import WriteBehind
from loreloop.protocol.errors import LoreloopError
from loreloop.store import usage
from loreloop.store.account_rows import Account, Spent
from loreloop.store.rows import KeyUsage
from loreloop.store.store import Store

FLUSH_SECONDS = 2.0
NOTHING = KeyUsage()


class Meter:
    """One per HTTP process; lives on its event loop. Sleeps while nobody comes."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.pending: dict[str, KeyUsage] = {}
        self.accounts: dict[Account, Spent] = {}
        self.behind = WriteBehind(FLUSH_SECONDS, self.flush)

    def add(self, key_id: str, spent: KeyUsage) -> None:
        """Adds to what a key has used; it is written within `FLUSH_SECONDS`."""
        self.pending[key_id] = self.pending.get(key_id, NOTHING).plus(spent)
        self.behind.soon()

    def charge(self, account: Account, spent: Spent) -> None:
        """Adds to an account; it is written with the rest."""
        self.accounts[account] = self.accounts.get(account, Spent()).plus(spent)
        self.behind.soon()

    async def flush(self) -> None:
        """Writes what is pending. Where the store does not take it, it stays pending until the next time."""
        self.behind.call_off()
        # Taken out before the write, so that what comes during it is counted for the next time.
        spent, self.pending = self.pending, {}
        charged, self.accounts = self.accounts, {}
        if not spent and not charged:
            return
        try:
            await self.store.write(usage.add_all, spent, charged)
        except LoreloopError as error:
            print(f"loreloop: the usage of keys is not written yet: {error.message}", file=sys.stderr)
            for key_id, one in spent.items():
                self.add(key_id, one)
            for account, more in charged.items():
                self.charge(account, more)
