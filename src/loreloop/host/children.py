"""How a Python process of ours is started: it imports nothing from the folder that somebody happens to work in.

Whoever starts a server in a folder of somebody else's (a clone, a download) must not run what lies there: a `random.py`
would be taken for the standard library's.
"""

from __future__ import annotations

import os
import sys


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of ours, without the working folder among the places to import from."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment() -> dict[str, str]:
    """This process's environment, for such a process and all that it starts itself.

    Relative entries of PYTHONPATH mean what they mean here, in whatever folder the process runs; empty ones, which
    `PYTHONPATH=$PYTHONPATH:/more` leaves behind by accident, would mean the working folder and are dropped.
    """
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = os.pathsep.join(os.path.abspath(entry) for entry in entries if entry)
    rest = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return rest | {"PYTHONSAFEPATH": "1"} | ({"PYTHONPATH": paths} if paths else {})
