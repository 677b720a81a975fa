"""What is measured on a GPU: roofline, dense, topk, layer, ragged, validate, fp8, model; and the limit of every case.

All but roofline and model are decode steps of one decoder layer on one GPU: 2-byte elements (in fp8, keys and values
of one byte beside), random data, every request at the same length (but in ragged), its pages in random order. A layer is its four
matrix products, the append and the attention; norms, rotary embedding, activation function, residuals and
communication are left out, with dense attention as with sparse. The other columns of a row are in
:mod:`kinetics_lab.measure.runner`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

from kinetics_lab.errors import lookup, report, require
from kinetics_lab.files import locked
from kinetics_lab.measure.bench import HOST, LEAST_FP8, Bench, open_bench
from kinetics_lab.measure.runner import Suite, expected_seconds, left, measured_rates, run_suite
from kinetics_lab.measure.suites.attention import BUDGETS, DENSE, FP8, PAPER, TOPK
from kinetics_lab.measure.suites.layers import LAYER, VALIDATE
from kinetics_lab.measure.suites.ragged import RAGGED
from kinetics_lab.measure.suites.roofline import ROOFLINE
from kinetics_lab.measure.suites.steps import MODEL

__all__ = ["BUDGETS", "PAPER", "SUITES", "chosen_suites", "measure"]

#: In the order of measurement: the first gives the rates that the others' limits are made of.
SUITES = {suite.name: suite for suite in (ROOFLINE, DENSE, TOPK, LAYER, RAGGED, VALIDATE, FP8, MODEL)}


def chosen_suites(names: str, device: str = "cuda") -> list[Suite]:
    """The suites of "all" or of a comma-separated list that the device has, in the order of measurement."""
    there = {name: suite for name, suite in SUITES.items() if device != HOST or suite.host is not list}
    wanted = list(there) if names == "all" else [name.strip() for name in names.split(",")]
    what = "suite on a host" if device == HOST else "suite"
    known = {lookup(there, name, what).name for name in wanted}
    return [suite for name, suite in there.items() if name in known]


def measure(
    names: str, out: Path, *, budget_s: float = math.inf, device: str = "cuda", say: Callable[[str], None] = report
) -> list[Path]:  # fmt: skip
    """Run suites on this machine's GPU ("cuda") or processor ("host"), at most ``budget_s`` seconds; their files.

    What was measured before is kept, and a run that was stopped goes on where it was:
    :func:`kinetics_lab.measure.runner.run_suite`.
    """
    chosen, deadline = chosen_suites(names, device), time.monotonic() + budget_s
    require(budget_s > 0, "budget_s must be positive (seconds)", budget_s)
    bench = open_bench(device, out)
    with locked(out / ".lock", FileExistsError(f"another process measures into {out}; one at a time")):
        return _measure(chosen, out, bench, deadline, say)


def _measure(
    chosen: list[Suite], out: Path, bench: Bench, deadline: float, say: Callable[[str], None]
) -> list[Path]:
    if bench.on_gpu and bench.capability < LEAST_FP8 and FP8 in chosen:
        say(f"fp8: left out, {bench.gpu} has no conversion from fp8; sm_89 or newer has (RTX 40, L4, H100)")
        chosen.remove(FP8)
    todo = {suite.name: left(suite, out, bench) for suite in chosen}
    if bench.on_gpu:
        from kinetics_lab.measure.ahead import compile_ahead

        planned = [(suite, case) for suite in chosen for part in todo[suite.name] for case in part]
        rates = measured_rates(out, bench.folder)
        minutes = sum(expected_seconds(suite.predict(case, rates)) for suite, case in planned) / 60
        about = "about" if math.isfinite(rates.bandwidth) else "at least"  # nothing is known of its speed yet
        then = "once kernels are compiled; a stopped run goes on with the same command"
        say(f"{bench.gpu}: {len(planned)} cases, {about} {minutes:.0f} minutes {then}")
        compile_ahead([(suite, case) for suite, case in planned if suite is not ROOFLINE], deadline, say)
    # What failed before comes after all else: it may end this process as it ended the one before.
    passes = [(suite, todo[suite.name][0]) for suite in chosen]
    passes += [(suite, todo[suite.name][1]) for suite in chosen if todo[suite.name][1]]
    for suite, cases in passes:
        if not run_suite(suite, out, bench, deadline, say, cases):
            break
    files = [out / bench.folder / f"{suite.name}.parquet" for suite in chosen]
    return [path for path in files if path.is_file()]
