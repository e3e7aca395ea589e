"""What `precision = auto` becomes."""

import subprocess
import sys

import pytest
import torch

from loreloop.engine.precision import chosen_precision
from loreloop.kernels import bf16_products, isa

CPU = torch.device("cpu")
IS_FAST = isa.has_tiles() or bf16_products.supports(torch.empty(0, dtype=torch.bfloat16))


@pytest.mark.parametrize("wanted", ["bf16", "fp32"])
def test_what_is_asked_for_is_taken(wanted):
    assert chosen_precision(wanted, CPU) == wanted


def test_auto_is_bf16_where_its_products_are_fast():
    assert chosen_precision("auto", CPU) == ("bf16" if IS_FAST else "fp32")


@pytest.mark.skipif(isa.has_tiles(), reason="here the library's products are the fast ones")
def test_auto_is_fp32_without_kernels():
    code = (
        "import torch; from loreloop.engine.precision import chosen_precision;"
        "print(chosen_precision('auto', torch.device('cpu')))"
    )
    done = subprocess.run([sys.executable, "-c", code], env={"LORELOOP_KERNELS": "0"}, capture_output=True, text=True)
    assert done.stdout.strip() == "fp32", done.stderr
