"""What an engine's process must find in its environment before it loads the tensor library. Loads none itself."""

from __future__ import annotations

import os

from loreloop.kernels import build, isa
from loreloop.protocol.errors import WrongSettings


def environment() -> dict[str, str]:
    """Variables that hold the tensor library down to the level of LORELOOP_ISA, where that is set; WrongSettings where
    this processor does not have it."""
    try:
        return isa.library_limits()
    except ValueError as error:
        raise WrongSettings(str(error)) from None


def instructions() -> str:
    """Which of them this processor's products are computed with, in a word that is another one where numbers may be."""
    level = isa.level()
    return (level.name if level else "plain") + ("+tiles" if isa.has_tiles() else "")


def compiler() -> str | None:
    """The C compiler by which small steps are made fast here; None where there is none, or they are turned off."""
    return None if os.environ.get("LORELOOP_KERNELS") == "0" else build.find_compiler()
