"""Asks whether a Ray cluster answers, and says why it does not: `python -m loreloop.cli.ray_probe ADDRESS INTERFACE`.

A process of its own, since Ray waits for minutes for a cluster that is not there, and cannot be broken off.
"""

from __future__ import annotations

import subprocess
import sys

from loreloop.host import children
from loreloop.host.ray_cluster import join
from loreloop.protocol.errors import WrongSettings

PROBE_SECONDS = 15.0
MODULE = "loreloop.cli.ray_probe"
SHOWN = 300  # characters of what Ray says


def trouble_with(address: str, interface: str) -> str:
    """Why a cluster cannot be joined from here; empty where it can."""
    command = children.python(MODULE, address, interface)
    try:
        asked = subprocess.run(
            command, env=children.environment(), capture_output=True, text=True, timeout=PROBE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {PROBE_SECONDS:g} s"
    if asked.returncode == 0:
        return ""
    lines = [line for line in (asked.stdout + asked.stderr).splitlines() if line.strip()]
    return lines[-1][:SHOWN] if lines else f"it ended with {asked.returncode}"


if __name__ == "__main__":
    try:
        join(sys.argv[1], sys.argv[2])
    except WrongSettings as error:
        sys.exit(error.message)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        sys.exit(" ".join(str(error).split()))
