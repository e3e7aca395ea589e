"""What is said of recorded turns afterwards: a side turn, consent. A no stands for ever, and a yes is the asking key's
alone."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from loreloop.protocol.episodes import Turn
from loreloop.protocol.errors import Conflict, Forbidden, NotFound
from loreloop.protocol.loop_rest import MarkTurn
from loreloop.store.turn_tables import TURNS
from loreloop.store.turns import find


def mark(connection: Connection, turn_id: str, marks: MarkTurn, by_key: str) -> Turn:
    """Changes what is said of a turn, and gives it a new place at the end of the feed, where readers notice.

    Conflict for a yes to what was refused; Forbidden for a yes by another key than the one that asked, which alone
    speaks for the person; NotFound for a turn that is gone.
    """
    row = connection.execute(select(TURNS).where(TURNS.c.id == turn_id)).first()
    if row is None:
        raise NotFound(f"There is no turn {turn_id[:80]!r}.")
    given: dict[str, Any] = {} if marks.side is None else {"side": marks.side}
    if marks.consent is False:
        given |= {"consent": False, "refused": True}
    elif marks.consent and not row.consent:
        _check_yes(row, by_key)
        given["consent"] = True
    if given:
        connection.execute(update(TURNS).where(TURNS.c.id == turn_id).values(given))
        names = [column.name for column in TURNS.c if column.name != "number"]
        again = select(*(TURNS.c[name] for name in names)).where(TURNS.c.id == turn_id)
        connection.execute(insert(TURNS).prefix_with("OR REPLACE").from_select(names, again))
    found = find(connection, turn_id)
    assert found is not None, "the turn was there within this transaction"
    return found


def _check_yes(row: Row[Any], by_key: str) -> None:
    if row.refused:
        raise Conflict(
            f"The person of the turn {row.id[:80]!r} has said no, or was spoken for with a no, and that stands. The "
            "person may say yes to later turns."
        )
    if by_key != row.key_id:
        raise Forbidden(
            f"The key that asked for the turn {row.id[:80]!r} speaks for its person, and it alone may say yes; others "
            "may say no."
        )
