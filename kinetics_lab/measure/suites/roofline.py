"""The suite ``roofline``: what memory and matrix products of a device reach, which the others' limits divide by."""

from __future__ import annotations

from kinetics_lab.measure.bench import Bench, Row
from kinetics_lab.measure.limits import Rates, element
from kinetics_lab.measure.runner import Suite
from kinetics_lab.measure.suites.attention import random_tensor
from kinetics_lab.measure.timers import Call


def _roofline_cases(on_gpu: bool) -> list[Row]:
    sizes = {"copy": (28, 30, 32), "read": (28, 30, 32), "matmul": (10, 11, 12, 13, 14), "both": (13,)}
    if not on_gpu:
        sizes = {"copy": (12,), "read": (12,), "matmul": (5,), "both": (6,)}
    return [{"kind": kind, "size": 2**power} for kind in sizes for power in sizes[kind]]


def _host_roofline() -> list[Row]:
    sizes = {"copy": (26, 28, 29), "read": (26, 28, 29), "matmul": (8, 9, 10, 11), "both": (11,)}
    return [{"kind": kind, "size": 2**power, "element_bytes": 4} for kind in sizes for power in sizes[kind]]


def _roofline_limits(case: Row, rates: Rates) -> Row:
    """``size``: bytes copied or read, or the side n of square matrices; "both" copies 32 n^2 numbers beside.

    Smaller copies would look faster than the memory is: what they leave in the L2 cache is written after the clock stops.
    """
    kind, n, size = case["kind"], case["size"], element(case)
    moved, flops = {"copy": (2 * n, 0), "read": (n, 0)}.get(kind, (3 * size * n * n, 2 * n**3))
    limit, copied = rates.us(moved, flops), 64 * size * n * n if kind == "both" else 0
    return {"bytes": moved, "flops": flops, "limit_us": limit, "memory_bytes": moved + copied + 1e9,
            "round_us": limit + rates.us(copied)}  # fmt: skip


def _measure_roofline(case: Row, bench: Bench) -> Row:
    """A copy counts bytes read and written. "both" gives the rates that other suites' limits are made of."""
    import torch

    torch.manual_seed(0)
    kind, n, size = case["kind"], case["size"], element(case)
    calls: dict[str, Call] = {}
    if kind == "read":
        source = random_tensor(bench, n // size).view(torch.int32)
        calls["time"] = lambda: source.amax()
    if kind in ("copy", "both"):
        original = random_tensor(bench, n // size if kind == "copy" else 32 * n * n)
        target = torch.empty_like(original)
        calls["time" if kind == "copy" else "copy"] = lambda: target.copy_(original)
    if kind in ("matmul", "both"):
        a, b = random_tensor(bench, n, n), random_tensor(bench, n, n)
        calls["time"] = lambda: a @ b
    row = bench.time(calls)
    if kind == "both":
        bandwidth, rate = 64 * size * n * n / row["copy_us"] * 1e6, 2 * n**3 / row["time_us"] * 1e6
        row |= {"bandwidth": bandwidth, "matrix_rate": rate, "intensity": rate / bandwidth}
    return row


ROOFLINE = Suite(
    "roofline", 1, "time_us", _roofline_cases, _roofline_limits, _measure_roofline, _host_roofline
)
