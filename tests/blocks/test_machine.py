"""What a process computes with, where its environment or another library has the say."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from blocks import machine
from blocks.machine import Machine

PORTABLE = {"OPENBLAS_CORETYPE": "Haswell", "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR"}
CODE = "from blocks import Machine, arrays; m = Machine.current(); print(m.kernel, *m.targets, m.is_portable, arrays.AVX_512)"


def here(**environ):
    """What a process with these variables says of itself."""
    own = {key: value for key, value in os.environ.items() if key not in PORTABLE}
    command = [sys.executable, "-c", CODE]
    return subprocess.run(command, env={**own, **environ}, capture_output=True, text=True, check=True).stdout.split()


def test_a_process_that_holds_both_variables_is_portable():
    assert here(**PORTABLE) == ["Haswell", "X86_V3", "True", "False"]


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"OPENBLAS_CORETYPE": "SandyBridge"}, ["Sandybridge", "X86_V3", "False", "False"]),
        # Without any target, NumPy lists none.
        ({"NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR"}, ["Haswell", "False", "False"]),
    ],
)
def test_one_variable_is_not_enough(environ, expected):
    assert here(**PORTABLE | environ) == expected


def test_the_way_of_small_products_is_that_of_the_kernels_in_use():
    if "avx512vl" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("no kernel for AVX-512 runs here")
    assert here()[-2:] == ["False", "True"]
    assert here(OPENBLAS_CORETYPE="Haswell")[-2:] == ["False", "False"]


def test_another_order_of_addition_is_not_portable(monkeypatch):
    """As of OpenBLAS 0.3.34 on an AMD processor with AVX-512, which names Haswell's kernels all the same."""
    held = Machine("2.5.5", "openblas 0.3.34", *machine.PORTABLE)
    for product, is_portable in ((machine.PRODUCT, True), ("another", False)):
        monkeypatch.setattr(machine, "_product", lambda product=product: product)
        assert held.is_portable == is_portable


@pytest.mark.parametrize("library", ["mkl", "flexiblas"])
def test_another_blas_is_not_portable_whatever_it_says(library, monkeypatch):
    loaded = {
        "user_api": "blas",
        "internal_api": library,
        "version": "1",
        "filepath": "/lib/libblas.so",
        "architecture": "Haswell",
    }
    monkeypatch.setattr(machine, "threadpool_info", lambda: [loaded])
    monkeypatch.setattr(np, "show_config", lambda mode: {"SIMD Extensions": {"found": ["X86_V3"]}})
    Machine.current.cache_clear()
    try:
        found = Machine.current()
        assert (found.blas, found.is_portable) == (f"{library} 1", False)
        assert str(found) == f"native: NumPy {np.__version__} with the targets X86_V3, {library} 1 with the kernel Haswell"
        monkeypatch.setattr(machine, "threadpool_info", list)
        Machine.current.cache_clear()
        assert (Machine.current().blas, Machine.current().kernel) == ("unknown", "unknown")
    finally:
        monkeypatch.undo()
        Machine.current.cache_clear()
