"""What ranks hold of an adapter and of its gradient adds up to the whole, without any process."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from loreloop.formats.configuration import read_spec
from loreloop.parallel.adapter_share import AdapterShare
from loreloop.parallel.mesh import parse_mesh
from loreloop.parallel.place import Place
from loreloop.parallel.vocabulary import vocabulary_borders
from loreloop.protocol.training import LoraSpec
from tests.tiny import make_tiny_model

FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {"num_key_value_heads": 1, "vocab_size": 509},
    "phi3": {"num_key_value_heads": 2},
    "deepseek_v3": {"q_lora_rank": None},
    "qwen3_moe": {},
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mesh", ["tp=2", "tp=4"])
def test_every_number_is_held_counts_once_and_has_its_gradient_once(family: str, mesh: str, tmp_path: Path) -> None:
    spec, laid_out = read_spec(make_tiny_model(tmp_path, family, **FAMILIES[family])), parse_mesh(mesh)
    lora = LoraSpec(3, 0, train_unembed=True)
    gradient = held = counts = torch.empty(0)
    for rank in range(laid_out.n_ranks):
        # What is asked of a share here says nothing to other ranks, so their group may be any.
        share = AdapterShare(spec, lora, Place(laid_out, rank, groups={"tp": None}))  # type: ignore[dict-item]
        if rank == 0:
            whole = torch.randn(share.whole_layout.size, generator=torch.Generator().manual_seed(0))
            gradient, held, counts = (torch.zeros_like(whole) for _ in range(3))
        numbers = share.share.numbers(lora)
        assert torch.equal(share.take(whole), whole[numbers])
        mine = share.take(whole).clone()
        share.keep_part(mine)
        gradient[numbers] += mine
        held[numbers] += 1
        counts[numbers] += 1 if share.counted is None else share.counted.float()
    assert torch.equal(gradient, whole)
    assert (counts == 1).all()
    assert held.min() == 1
    assert held.max() == laid_out.n_ranks


@pytest.mark.parametrize(("n_tokens", "n_ranks"), [(509, 4), (512, 2), (7, 3), (151_936, 8), (64, 4)])
def test_every_token_lies_with_one_rank(n_tokens: int, n_ranks: int) -> None:
    borders = vocabulary_borders(n_tokens, n_ranks)
    assert (borders[0], borders[-1], len(borders)) == (0, n_tokens, n_ranks + 1)
    widths = [stop - start for start, stop in pairwise(borders)]
    assert min(widths) > 0
    assert max(widths) - min(widths) < 32
    assert n_tokens < 16 * n_ranks or all(border % 16 == 0 for border in borders[:-1])
