"""Compiling ahead: the kernels of the cases that are to be measured, on all cores, before the first is timed.

Some two hundred kernels take minutes on one core, and the GPU waits. Worker processes run the suites' own calls on
tensors that have a shape and no memory (PyTorch's "meta"), where a launch compiles and does nothing else. What they
make lies in Triton's ordinary cache on disk, where the launches that are timed find it. There is no second list of
launches to keep in step, and a kernel that is missing there is compiled when it is first launched, as ever.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kinetics_lab.errors import sentence
from kinetics_lab.measure.bench import Bench, Row
from kinetics_lab.measure.peers import PEERS
from kinetics_lab.measure.runner import Suite, words
from kinetics_lab.measure.timers import Call, WallTimer

LONGEST_S = 120.0  # what is not compiled by then is compiled when it is timed
Case = tuple[Suite, Row]


class MetaBench(Bench):
    """Calls everything once, on tensors without memory; its times mean nothing."""

    @property
    def kind(self) -> Row:
        return {"dtype": torch.bfloat16, "device": "meta"}

    def time(
        self, calls: Mapping[str, Call], resets: Mapping[str, Call] | None = None, optional: Collection[str] = ()
    ) -> Row:  # fmt: skip
        for call in calls.values():
            call()
        return {f"{name}_us": 1.0 for name in calls}


class NoValues(TorchDispatchMode):
    """Where a suite reads a number back, it gets 1: without memory there is none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1
        return func(*args, **(kwargs or {}))


@functools.cache
def only_compile(capability: int, multiprocessors: int) -> None:
    """From now on launches in this process compile for such a GPU, and nothing runs."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from kinetics_kernels import configs
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia import driver
    from triton.runtime import driver as active
    from triton.runtime.jit import JITFunction

    # What Triton asks a driver before it compiles, answered for a GPU that this process never opens.
    active.set_active(SimpleNamespace(
        get_current_device=lambda: 0, get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", capability, 32),
    ))  # fmt: skip
    configs.multiprocessors = lambda device: multiprocessors
    run, launchers = JITFunction.run, set[str]()

    def compiling(self: Any, *args: Any, **options: Any) -> Any:
        kernel = run(self, *args, **options | {"warmup": True})
        if hasattr(driver, "make_launcher") and kernel.hash not in launchers:
            launchers.add(kernel.hash)  # Triton 3.6 launches by C code, which is compiled, too
            with contextlib.suppress(Exception):
                driver.CudaLauncher(kernel.src, kernel.metadata)
        return kernel

    JITFunction.run = compiling


def compile_case(gpu: tuple[int, int], case: Case) -> str:
    """Compile what a case launches; returns "", or what went wrong."""
    suite, key = case
    peers = dict.fromkeys(PEERS, "compiled when it is timed")
    try:
        only_compile(*gpu)
        with NoValues():
            suite.measure(key, MetaBench("meta", "", WallTimer(), peers=peers, code={}))
    except Exception as error:
        return f"{suite.name} {words(key)}: {sentence(error)}"
    return ""


def compile_ahead(cases: Sequence[Case], deadline: float, say: Callable[[str], None]) -> None:
    """Compile what the cases launch on this machine's GPU, one worker a core; says what it did, and never raises."""
    start, failed = time.monotonic(), list[str]()
    if not cases:
        return
    try:
        found = torch.cuda.get_device_properties(0)
        gpu = (10 * found.major + found.minor, found.multi_processor_count)
        with multiprocessing.get_context("spawn").Pool(min(os.cpu_count() or 1, len(cases))) as pool:
            results = pool.imap_unordered(functools.partial(compile_case, gpu), cases)
            for _ in cases:
                failed.append(results.next(max(0.0, min(start + LONGEST_S, deadline) - time.monotonic())))
    except multiprocessing.TimeoutError:
        failed.append("the time is up")
    except Exception as error:  # whatever it is, measuring does not need this
        failed.append(sentence(error))
    failed = [error for error in failed if error]
    but = f", but {len(failed)} failed, the first with: {failed[0]}" if failed else ""
    say(f"kernels of {len(cases)} cases compiled ahead{but} ({time.monotonic() - start:.1f} s)")
