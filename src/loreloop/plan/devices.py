"""Devices by their published rates, and groups of them as a user writes them, `8xH200`.

Rates are those of the makers' data sheets: dense products in bf16, memory, and links in one direction. What a program
gets of them is the business of `rates.py`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from loreloop.protocol.errors import WrongSettings

MOST_DEVICES = 4096
GIGA, TERA = 1e9, 1e12


@dataclass(frozen=True)
class Device:
    """`n_bytes` of memory; multiplications count as two operations; a link's bytes go one way."""

    name: str
    n_bytes: float
    flops: float  # a second, dense, bf16
    memory_rate: float  # bytes a second
    inner_rate: float  # bytes a second from one device to those of its node
    outer_rate: float  # and from it to other nodes
    per_node: int


# NVIDIA's data sheets of A100 80GB SXM, H100 SXM, H200 SXM and HGX B200; of H800, whose NVLink has 400 GB/s both ways
# together, as its sellers publish it. Between nodes: one port a GPU of 200, or of 400 Gbit/s. The CPU is no product:
# it stands for a server with some 32 cores and eight channels of memory.
_NODE = 8
_RATES: Mapping[str, tuple[float, ...]] = {
    # GB of memory, Tflop/s, GB/s of memory, of links inside a node, and of those between nodes
    "A100": (80, 312, 2039, 300, 25),
    "H100": (80, 989, 3350, 450, 50),
    "H800": (80, 989, 3350, 200, 50),
    "H200": (141, 989, 4800, 450, 50),
    "B200": (180, 2250, 7700, 900, 50),
    "CPU": (256, 3, 250, 20, 1.2),
}
DEVICES: Mapping[str, Device] = {
    name: Device(
        name=name,
        n_bytes=size * GIGA,
        flops=flops * TERA,
        memory_rate=memory * GIGA,
        inner_rate=inner * GIGA,
        outer_rate=outer * GIGA,
        per_node=2 if name == "CPU" else _NODE,
    )
    for name, (size, flops, memory, inner, outer) in _RATES.items()
}


@dataclass(frozen=True)
class Group:
    """So many devices of a kind."""

    device: Device
    n: int

    def __str__(self) -> str:
        return f"{self.n}x{self.device.name}"


def parse_group(text: str) -> Group:
    """`8xH200` or `H200`. WrongSettings for devices nobody knows, with those that are spelled alike, and for numbers
    that are none."""
    found = re.fullmatch(r"(?:(\d{1,6})\s*[x×*]\s*)?([A-Za-z][\w-]*)", text.strip())
    if not found:
        raise WrongSettings(f"--gpus {text[:40]!r} is none; it is written like 8xH200.")
    number, name = found[1], found[2]
    known = {each.lower(): each for each in DEVICES}
    if name.lower() not in known:
        near = difflib.get_close_matches(name.lower(), known, 3, 0.5)
        words = " or ".join(known[each] for each in near)
        raise WrongSettings(
            f"--gpus: nothing is known of a {name[:40]!r}{f'; did you mean {words}?' if near else '.'} "
            f"Known are {', '.join(DEVICES)}."
        )
    n = int(number or 1)
    if not 1 <= n <= MOST_DEVICES:
        raise WrongSettings(f"--gpus names {n} devices; a plan takes 1 to {MOST_DEVICES}.")
    return Group(DEVICES[known[name.lower()]], n)
