"""A share of a packed weight has the values of the whole one, packed where whole tiles and groups are left."""

import pytest
import torch

from loreloop.model.mx_weights import MxCodes
from loreloop.model.packed_weights import PackedWeight


def weights() -> dict[str, PackedWeight]:
    random = torch.Generator().manual_seed(0)
    found = {}
    for bits in (4, 8):
        found[f"{bits} bits"] = PackedWeight.empty((64, 96), bits, torch.bfloat16)
        found[f"{bits} bits"].copy_(torch.randn(64, 96, generator=random))
    found["offsets"] = PackedWeight.empty((64, 96), 4, torch.float16, offsets=True)
    codes = torch.randint(0, 16, (64, 96), generator=random, dtype=torch.uint8)
    found["offsets"].fill(codes, torch.rand(64, 3, generator=random), torch.randn(64, 3, generator=random))
    codes = torch.randint(0, 256, (64, 48), generator=random, dtype=torch.uint8)
    scales = torch.randint(120, 130, (64, 3), generator=random, dtype=torch.uint8)
    found["mx"] = PackedWeight(MxCodes(codes, scales))
    return found


CUTS = {
    "rows of two blocks": (torch.cat((torch.arange(16, 24), torch.arange(40, 48))), None, True),
    "groups": (None, slice(32, 96), True),
    "half a tile": (torch.arange(8), None, False),
    "half a group": (None, slice(48, 96), False),
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", weights())
def test_a_share_has_the_values_of_the_whole(name: str, cut: str) -> None:
    whole, (outputs, inputs, is_packed) = weights()[name], CUTS[cut]
    share = whole.share(outputs, inputs)
    assert isinstance(share, PackedWeight) == is_packed
    values = share.dense() if isinstance(share, PackedWeight) else share
    expected = whole.dense()[slice(None) if outputs is None else outputs][:, inputs or slice(None)]
    assert torch.equal(values, expected)
