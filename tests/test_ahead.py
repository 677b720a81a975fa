"""Compiling ahead, without a GPU: what is compiled must be what a launch looks for, and a failure only a sentence."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("torch", "triton"))), reason="needs torch and triton"
)

together = pytest.mark.xdist_group("ahead")

#: Kernels of a small case, compiled in a worker; then the same calls on real tensors, which must find them.
FOUND = """
import os, torch
from pathlib import Path
from types import SimpleNamespace
from kinetics_lab.measure import ahead
from kinetics_lab.measure.suites import SUITES

topk = (SUITES["topk"], SUITES["topk"].cases(False)[0])
torch.cuda.get_device_properties = lambda index: SimpleNamespace(major=9, minor=0, multi_processor_count=132)
os.cpu_count = lambda: 1
ahead.compile_ahead([topk, (SUITES["dense"], {"batch": 1})], float("inf"), print)
kernels = lambda: sorted(path.name for path in Path(os.environ["TRITON_CACHE_DIR"]).rglob("*.cubin"))
made = kernels()


class OnCpu(ahead.MetaBench):
    kind = {"dtype": torch.bfloat16, "device": "cpu"}


ahead.MetaBench = OnCpu
print(len(made), repr(ahead.compile_case((90, 132), topk)), kernels() == made)
ahead.MetaBench = OnCpu.__base__
"""

#: Launches of real shapes: pointers without memory beside pointers as PyTorch's allocator gives them.
ALIKE = """
import itertools
from triton.runtime.jit import JITFunction

storage, seen = itertools.count(2**46, 2**36 + 512), []


def pointer(x):
    if not isinstance(x, torch.Tensor):
        return x
    at = next(storage) + x.storage_offset() * x.element_size()
    return SimpleNamespace(dtype=x.dtype, data_ptr=lambda: at)


def looked_for(kernel, *args, grid, warmup, **options):
    binder = kernel.device_caches[0][-1]
    _, kind, chosen = binder(*args, debug=False, **options)
    seen.append((kind, chosen) == binder(*map(pointer, args), debug=False, **options)[1:])


JITFunction.run = looked_for
for name in ("dense", "topk", "layer", "ragged", "validate", "fp8"):
    for case in SUITES[name].cases(True)[::6]:
        assert not (error := ahead.compile_case((90, 132), (SUITES[name], case))), error
print(len(seen) > 200, all(seen))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What a process prints in which launches are compiled, not interpreted; its Triton's cache is empty."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env |= {
        "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", FOUND + ALIKE], capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@together
def test_a_launch_finds_what_was_compiled_ahead(said):
    assert said[0].startswith(
        "kernels of 2 cases compiled ahead, but 1 failed, the first with: dense batch=1: KeyError: "
    )
    assert said[1] == "7 '' True"


@together
def test_real_shapes_are_specialized_alike(said):
    assert said[2:] == ["True True"]


def test_compiling_ahead_never_fails_a_run(monkeypatch):
    import torch

    from kinetics_lab.measure import ahead

    said = []
    ahead.compile_ahead([], float("inf"), said.append)
    assert not said

    def gone(index):
        raise RuntimeError("no CUDA here\nand more")

    monkeypatch.setattr(torch.cuda, "get_device_properties", gone)
    ahead.compile_ahead([(SimpleNamespace(name="dense"), {})], float("inf"), said.append)
    assert said[0].startswith(
        "kernels of 1 cases compiled ahead, but 1 failed, the first with: RuntimeError: no CUDA here ("
    )
