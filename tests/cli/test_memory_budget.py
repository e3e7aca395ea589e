"""Weights of all engines are counted before any of them starts."""

import msgspec
import pytest

from loreloop.cli.memory_budget import fitted
from loreloop.config import Config, EngineConfig
from loreloop.protocol.errors import BadRequest


def config(memory_mib: int, replicas: int) -> Config:
    return Config(memory_mib=memory_mib, engine=EngineConfig(replicas=replicas, device="cpu"))


@pytest.mark.parametrize(
    ("memory_mib", "replicas", "said"),
    [
        (299, 0, r"need 300 MiB together; memory_mib allows 299"),
        (899, 2, r"300 MiB in each of 3 engines, 900 MiB together; memory_mib allows 899.*at most --replicas 1\."),
        (299, 2, r"at most --replicas 0\."),
        (0, 3, r"300 MiB in each of 4 engines, 1200 MiB together; this machine has 1000.*at most --replicas 2\."),
    ],
)
def test_what_does_not_fit_is_refused_with_its_numbers(memory_mib: int, replicas: int, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        fitted(config(memory_mib, replicas), 300, machine_mib=1000)


@pytest.mark.parametrize(("memory_mib", "replicas"), [(300, 0), (900, 2), (0, 2), (0, 0)])
def test_what_fits_is_served(memory_mib: int, replicas: int) -> None:
    assert fitted(config(memory_mib, replicas), 300, machine_mib=1000).engine.replicas == replicas


def test_with_ray_the_memory_of_this_machine_bounds_nothing() -> None:
    over_hosts = msgspec.structs.replace(config(0, 3).engine, ray="auto")
    asked = msgspec.structs.replace(config(0, 3), engine=over_hosts)
    assert fitted(asked, 300, machine_mib=1000).engine.replicas == 3
    with pytest.raises(BadRequest, match="memory_mib allows 899"):
        fitted(msgspec.structs.replace(asked, memory_mib=899), 300, machine_mib=1000)


def test_packed_weights_are_left_out_where_there_is_no_room_for_those_of_all_engines() -> None:
    kept = [fitted(config(1200, replicas), 300, machine_mib=4000).engine.pack_weights for replicas in (0, 1, 2)]
    assert kept == [True, True, False]
