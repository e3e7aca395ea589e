"""The kernels at every level of instructions, and the variable that holds them down."""

import os
import subprocess
import sys

import pytest

from loreloop.kernels import build, isa

KERNEL_TESTS = [
    "tests/kernels/test_bf16_products.py",
    "tests/kernels/test_cpu.py",
    "tests/model/test_packed_weights.py",
    "tests/engine/test_own_attention.py",
]
needs_compiler = pytest.mark.skipif(build.find_compiler() is None, reason="no C compiler")
IS_HERE = {level.name: level.needs <= isa.processor_flags() for level in isa.LEVELS}


def run(code_or_args, **environment):
    return subprocess.run([sys.executable, *code_or_args], env=os.environ | environment, capture_output=True, text=True)


@needs_compiler
@pytest.mark.parametrize("level", isa.LEVELS, ids=lambda level: level.name)
def test_every_level_is_compiled_and_tested_where_it_can_run(level):
    if "avx" not in " ".join(isa.processor_flags()):
        pytest.skip("another kind of processor, whose compiler may not know these levels")
    assert build.built(build.find_compiler(), level).exists()
    if not IS_HERE[level.name]:
        missing = ", ".join(sorted(level.needs - isa.processor_flags()))
        pytest.skip(f"COMPILED AND NOT RUN: this processor has no {missing}")
    if level == isa.level():
        pytest.skip("the level that all other tests run at")
    done = run(["-m", "pytest", "-q", "-p", "no:cacheprovider", *KERNEL_TESTS], LORELOOP_ISA=level.name)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def test_a_compiler_that_was_updated_builds_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiler, libraries = tmp_path / "cc", set()
    for version in ("12.2", "13.1"):
        compiler.write_text(
            f'#!/bin/sh\n[ "$1" = --version ] && echo {version} && exit\n'
            'while [ "$1" != -o ]; do shift; done\ntouch "$2"\n'
        )
        compiler.chmod(0o755)
        libraries.add(build.built(str(compiler), isa.AVX2))
    assert len(libraries) == 2


def test_each_level_has_all_of_the_one_below():
    for above, below in zip(isa.LEVELS, isa.LEVELS[1:], strict=False):
        assert above.needs > below.needs
        assert set(above.compiler_flags) > set(below.compiler_flags)


@pytest.mark.parametrize("name", [name for name, is_here in IS_HERE.items() if is_here])
def test_the_library_is_held_down_with_the_kernels(name):
    code = (
        "import os; from loreloop.kernels import isa; os.environ |= isa.library_limits();"
        "import torch; print(isa.level().name, torch.backends.cpu.get_cpu_capability())"
    )
    done = run(["-c", code], LORELOOP_ISA=name)
    assert done.stdout.split() == [name, "AVX2" if name == "avx2" else "AVX512"], done.stderr


def test_a_level_that_is_not_there_is_refused_by_name():
    done = run(["-c", "from loreloop.kernels import isa; isa.level()"], LORELOOP_ISA="avx1024")
    assert "LORELOOP_ISA is 'avx1024'; this processor has" in done.stderr
