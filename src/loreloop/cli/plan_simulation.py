"""`loreloop plan --simulate`: the loop of reinforcement learning played on growing numbers of devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from loreloop.parallel.mesh import Mesh
    from loreloop.plan.devices import Group
    from loreloop.plan.wish import Base, Wish

MOST_STALENESS = 64
N_LENGTHS = 1 << 15  # drawn ahead; a longer play meets them again

OPTIONS = (
    click.option("--simulate", is_flag=True, help="Play the loop on 8, 16, 32 … devices, up to --gpus."),
    click.option("--staleness", metavar="0,1,4", help="Steps by which answers may be older, each played.  [0,1,4]"),
    click.option(
        "--lengths",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="A file with lengths of answers that were seen, in tokens.",
    ),
    click.option("--quantiles", metavar="0.5=900,0.95=3200", help="A log-normal law of lengths, by its quantiles."),
    click.option(
        "--overtaking", is_flag=True, help="A step learns from whichever groups ended first; they begin half as early."
    ),
    click.option("--piece", type=click.IntRange(min=1), help="Draw answers in pieces, each by the newest weights."),
    click.option("--seed", type=click.IntRange(min=0), help="Of the lengths that are drawn.  [0]"),
)


def simulation_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of the simulation."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True)
class Asked:
    """What is asked of a simulation; None where nothing was said."""

    simulate: bool
    staleness: str | None
    lengths: Path | None
    quantiles: str | None
    overtaking: bool
    piece: int | None
    seed: int | None

    @staticmethod
    def of(numbers: dict[str, Any]) -> Asked:
        """Taken out of a command's options. WrongSettings where a simulation is shaped and not asked for."""
        from loreloop.protocol.errors import WrongSettings

        asked = Asked(**{name: numbers.pop(name) for name in Asked.__dataclass_fields__})
        for name, value in vars(asked).items():
            if value is not None and value is not False and not asked.simulate:
                raise WrongSettings(f"--{name} shapes the loop that is simulated; give --simulate as well.")
        if asked.lengths and asked.quantiles:
            raise WrongSettings("--lengths and --quantiles both say how long answers are; give one of them.")
        return asked


def simulate(
    asked: Asked, base: Base, wish: Wish, group: Group, mesh: Mesh | None, *, price: float | None, as_json: bool
) -> bool:
    """Plays and prints; `price` is that of one device an hour. False where nothing fits, and nothing was printed."""
    import json

    from loreloop.cli.tables import show
    from loreloop.plan.scaling import Habits, check_habits, curve, rows_of, verdict

    wish, lengths = _lengths(asked, base, wish)
    habits = Habits(lengths, _staleness(asked.staleness), overtaking=asked.overtaking, piece=asked.piece)
    check_habits(base, wish, habits)
    points = curve(base, wish, group, habits, mesh)
    if not points:
        return False
    rows, words = rows_of(points, price), verdict(points)
    mean, longest = sum(lengths) / len(lengths), max(lengths)
    if as_json:
        about = {"mean": round(mean, 1), "longest": longest, "seed": asked.seed or 0}
        click.echo(json.dumps({"rows": rows, "verdict": words, "lengths": about}, indent=2))
        return True
    show(rows, False)
    click.echo("\n" + "\n".join(words))
    click.echo(
        f"\nAnswers of {mean:.0f} tokens in the mean, {longest} at most. Times are computed and not measured; idle is "
        "a share of the time."
    )
    return True


def _lengths(asked: Asked, base: Base, wish: Wish) -> tuple[Wish, list[int]]:
    """Lengths to be played, and the wish with their mean as the length of its answers."""
    from dataclasses import replace

    from loreloop.plan.lengths import drawn, drawn_again, of_mean, of_quantiles, parse_lengths, parse_quantiles
    from loreloop.plan.wish import check_wish
    from loreloop.protocol.errors import WrongSettings

    seed, room = asked.seed or 0, base.spec.context_window - wish.prompt
    if asked.lengths:
        try:
            lengths = drawn_again(parse_lengths(asked.lengths.read_text(encoding="utf-8")), N_LENGTHS, seed)
        except (OSError, UnicodeDecodeError) as error:
            raise WrongSettings(f"--lengths: {asked.lengths} cannot be read: {error}.") from None
    else:
        law = of_quantiles(parse_quantiles(asked.quantiles)) if asked.quantiles else of_mean(wish.response)
        lengths = drawn(law, N_LENGTHS, seed, room)
    if asked.lengths or asked.quantiles:
        mean = max(1, round(sum(lengths) / len(lengths)))
        wish = replace(wish, response=mean, context=wish.prompt + mean)
        check_wish(base, wish)
    return wish, lengths


def _staleness(text: str | None) -> tuple[int, ...]:
    from loreloop.protocol.errors import WrongSettings

    found = []
    for word in (text or "0,1,4").split(","):
        number = word.strip()
        if not (number.isascii() and number.isdecimal() and len(number) < 4 and int(number) <= MOST_STALENESS):
            raise WrongSettings(
                f"--staleness: {number[:40]!r} is no number of steps from 0 to {MOST_STALENESS}; several are written "
                "like 0,1,4."
            )
        found.append(int(number))
    return tuple(dict.fromkeys(found))
