"""`loreloop persons`: what a data folder keeps of one person, given out or deleted, also while its server runs."""

from __future__ import annotations

import click

from loreloop.cli.keys import transaction
from loreloop.cli.models import DATA
from loreloop.cli.tables import JSON, Moment, show

KEY = click.option("--key", required=True, help="The key whose requests name this user: its id or name.")


@click.group()
def persons() -> None:
    """Give out or delete what is kept of one person: a user of a key."""


@persons.command("export")
@click.argument("user")
@KEY
@DATA
def export_person(user: str, key: str, data_dir: str) -> None:
    """Print as JSON all that is kept of USER, "" for requests of the key that name none."""
    from loreloop.protocol.episodes import Person
    from loreloop.store import keys
    from loreloop.store import persons as rows

    with transaction(data_dir) as connection:
        person, engine = Person(keys.called(connection, key).id, user), connection.engine
    # Outside of the transaction, which would keep a running server from writing for as long as the printing takes.
    for piece in rows.export(rows.reads_of(engine), person):
        click.echo(piece, nl=False)


@persons.command("delete")
@click.argument("user")
@KEY
@DATA
@JSON
def delete_person(user: str, key: str, data_dir: str, as_json: bool) -> None:
    """Delete all that is kept of USER, and show which candidates were trained on it.

    Their weights still hold what they have learned; train them again without this person, or delete them.
    """
    import time

    from loreloop.protocol.episodes import Person
    from loreloop.store import keys
    from loreloop.store import persons as rows

    with transaction(data_dir) as connection:
        gone = rows.forget(connection, Person(keys.called(connection, key).id, user), time.time())
    went = f"{gone.turns} turns, {gone.feedback} statements, {gone.memories} memories, {gone.responses} kept answers"
    click.echo(f"Deleted: {went}.", err=True)
    trained = [
        {
            "deployment": use.deployment,
            "candidate": use.candidate,
            "revision": use.revision,
            "used": Moment(use.used),
        }
        for use in gone.trained
    ]
    show(trained, as_json, empty="No candidate was trained on it.")
