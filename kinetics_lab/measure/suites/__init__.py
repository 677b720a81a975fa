"""What is measured on a GPU: roofline, dense, topk, layer, validate, fp8, model; and the limit of every case.

All but roofline and model are decode steps of one decoder layer on one GPU: 2-byte elements (in fp8, keys and values
of one byte beside), random data, every request at the same length, its pages in random order. A layer is its four
matrix products, the append and the attention; norms, rotary embedding, activation function, residuals and
communication are left out, with dense attention as with sparse. The other columns of a row are in
:mod:`kinetics_lab.measure.runner`.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kinetics_lab.cost.models import MODELS
from kinetics_lab.errors import lookup, require
from kinetics_lab.measure.bench import HOST, Bench, Row, open_bench
from kinetics_lab.measure.limits import Rates, attention_case, block_topk_case, element, kv_bytes, limits
from kinetics_lab.measure.runner import Suite, left, run_suite, tell
from kinetics_lab.measure.suites.attention import (
    BUDGETS,
    DENSE,
    FP8,
    PAPER,
    TOPK,
    attend_of,
    filled_cache,
    random_tensor,
)
from kinetics_lab.measure.suites.model import MODEL
from kinetics_lab.measure.timers import Call

# ---- roofline -------------------------------------------------------------------------------------------------


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


# ---- layer and validate: attention beside the layer's products ------------------------------------------------


def _layer_cases(on_gpu: bool) -> list[Row]:
    def case(name: str, batch: int, context: int, budget: int, block: int) -> Row:
        model = MODELS[name]
        widths = {"hidden": model.hidden, "ffn": model.ffn // 8}
        step = attention_case(
            batch, model.n_kv_heads // 8, model.gqa_ratio, model.head_dim, context, min(block, 16)
        )
        return {"model": name, "tp": 8} | step | block_topk_case(budget, block) | widths

    if not on_gpu:
        return [case("qwen3-0.6b", 1, 64, 32, 16)]
    names = [name for name, model in MODELS.items() if model.family == "qwen3"]
    return [case(name, *paper, *budget) for name in names for paper in PAPER for budget in BUDGETS.items()]


def layer_limits(case: Row, rates: Rates) -> Row:
    """Limits of the sparse layer, of the same layer with dense attention, and of the speed-up."""
    found, dense = limits(case, rates), limits(case | {"budget": 0}, rates)
    return {
        **found,
        "dense_limit_us": dense["limit_us"],
        "speedup_limit": dense["limit_us"] / found["limit_us"],
        "round_us": 2 * (found["limit_us"] + dense["limit_us"]),
    }


def validate_cases(on_gpu: bool, count: int = 200, seed: int = 20250606) -> list[Row]:
    """Random layer shapes, every second one dense; few distinct block counts, as each compiles a kernel.

    Nearly all layers are bound by traffic, and then no law's arithmetic matters. So of the sparse ones half have at
    least 100 FLOP a byte, half of what an H200 does in the time of one.
    """
    if not on_gpu:
        tiny = attention_case(2, 1, 2, 16, 64, 16) | {"hidden": 32, "ffn": 64}
        return [tiny | block_topk_case(0, 16), tiny | block_topk_case(32, 16)]
    draw = random.Random(seed)
    cases: list[Row] = []
    while len(cases) < count:
        batch = round(2 ** draw.uniform(0, 12))
        context = 1024 * draw.choice((1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64))
        heads, group, dim = draw.choice((1, 2, 4, 8)), draw.choice((1, 2, 4, 5, 8)), draw.choice((64, 128))
        case = attention_case(batch, heads, group, dim, context, 16)
        case |= draw.choice(
            (
                block_topk_case(512, 16),
                block_topk_case(512, 32),
                block_topk_case(1024, 32),
                block_topk_case(2048, 64),
            )
        )
        case["hidden"] = draw.choice((1024, 2048, 2560, 4096, 5120))
        case["ffn"] = draw.choice((384, 768, 1536, 3072, 6144, 12288))
        fits = 2**25 <= kv_bytes(case) <= 6e9 and 2 * case["budget"] <= context
        if fits and len(cases) % 4 == 3:
            moved = limits(case, Rates(1.0, 1.0, "to count with"))
            fits = moved["flops"] >= 100 * moved["bytes"]
        if fits and case not in cases:
            cases.append(case | ({"budget": 0} if len(cases) % 2 == 0 else {}))
    return cases


def _validate_limits(case: Row, rates: Rates) -> Row:
    found = limits(case, rates)
    return found | {"round_us": 2 * found["limit_us"]}


def _measure_layer(case: Row, bench: Bench) -> Row:
    """The products, the case's attention, the layer with it; for a model's layer also with dense attention."""
    q0, cache, resets = filled_cache(case, bench)
    batch, hidden, ffn, dim = case["batch"], case["hidden"], case["ffn"], case["head_dim"]
    heads = [case["kv_heads"] * n for n in (case["group"], 1, 1)]
    x = random_tensor(bench, batch, hidden)
    sizes = ((hidden, sum(heads) * dim), (heads[0] * dim, hidden), (hidden, 2 * ffn), (ffn, hidden))
    w_qkv, w_out, w_up, w_down = (random_tensor(bench, *size, scale=size[0] ** -0.5) for size in sizes)
    attend, dense = attend_of(case, cache), attend_of(case | {"budget": 0}, cache)

    def layer(attention: Callable[[Any], Any], append: bool = True) -> Call:
        def run() -> Any:
            # one copy each of q, k and v, where a real layer applies the rotary embedding
            parts = (x @ w_qkv).split([n * dim for n in heads], 1)
            q, k, v = (part.contiguous().view(batch, -1, dim) for part in parts)
            if append:
                cache.append(k, v)
            up = attention(q).view(batch, -1) @ w_out @ w_up
            return up[:, :ffn] @ w_down

        return run

    calls: dict[str, Call] = {
        "gemm": layer(lambda q: q, append=False), "attention": lambda: attend(q0), "layer": layer(attend)
    }  # fmt: skip
    if "model" not in case:
        return bench.time(calls, resets)
    row = bench.time(calls | {"dense": lambda: dense(q0), "dense_layer": layer(dense)}, resets)
    return row | {"speedup": row["dense_layer_us"] / row["layer_us"]}


#: In the order of measurement: the first gives the rates that the others' limits are made of.
SUITES = {
    suite.name: suite
    for suite in (
        Suite("roofline", 1, "time_us", _roofline_cases, _roofline_limits, _measure_roofline, _host_roofline),
        DENSE,
        TOPK,
        Suite("layer", 1, "layer_us", _layer_cases, layer_limits, _measure_layer),
        Suite("validate", 1, "layer_us", validate_cases, _validate_limits, _measure_layer),
        FP8,
        MODEL,
    )
}


def chosen_suites(names: str, device: str = "cuda") -> list[Suite]:
    """The suites of "all" or of a comma-separated list that the device has, in the order of measurement."""
    there = {name: suite for name, suite in SUITES.items() if device != HOST or suite.host is not list}
    wanted = list(there) if names == "all" else [name.strip() for name in names.split(",")]
    what = "suite on a host" if device == HOST else "suite"
    known = {lookup(there, name, what).name for name in wanted}
    return [suite for name, suite in there.items() if name in known]


def measure(
    names: str,
    out: Path,
    *,
    budget_s: float = math.inf,
    device: str = "cuda",
    say: Callable[[str], None] = tell,
) -> list[Path]:
    """Run suites on this machine's GPU ("cuda") or processor ("host"), for at most ``budget_s`` seconds; returns their files.

    What was measured before is kept, and a run that was stopped goes on where it was:
    :func:`kinetics_lab.measure.runner.run_suite`.
    """
    chosen, deadline = chosen_suites(names, device), time.monotonic() + budget_s
    require(budget_s > 0, "budget_s must be positive (seconds)", budget_s)
    bench = open_bench(device, out)
    todo = {suite.name: left(suite, out, bench) for suite in chosen}
    if bench.on_gpu:
        from kinetics_lab.measure.ahead import compile_ahead

        launching = [suite for suite in chosen if suite.name != "roofline"]
        compile_ahead(
            [(s, case) for s in launching for cases in todo[s.name] for case in cases], deadline, say
        )
    # What failed before comes after all else: it may end this process as it ended the one before.
    passes = [(suite, todo[suite.name][0]) for suite in chosen]
    passes += [(suite, todo[suite.name][1]) for suite in chosen if todo[suite.name][1]]
    for suite, cases in passes:
        if not run_suite(suite, out, bench, deadline, say, cases):
            break
    files = [out / bench.folder / f"{suite.name}.parquet" for suite in chosen]
    return [path for path in files if path.is_file()]
