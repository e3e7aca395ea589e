"""Tests of Triton kernels run on a GPU as they are, else in Triton's interpreter: a process decides at its start."""

import os
import subprocess
import sys

import pytest
import torch

from loreloop.kernels import int4_gpu

pytest.importorskip("triton")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
runs_here = pytest.mark.skipif(not int4_gpu.supports(DEVICE), reason="no GPU; runs in the interpreter instead")


def run_in_the_interpreter(file: str) -> None:
    """All tests of a file."""
    if int4_gpu.supports(DEVICE):
        pytest.skip("they run by themselves")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file]
    run = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    assert " passed" in run.stdout
