"""Suites of one decoder layer: attention beside the layer's products, for models (layer) and at random (validate)."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from kinetics_lab.cost.models import MODELS
from kinetics_lab.measure.bench import Bench, Row
from kinetics_lab.measure.limits import Rates, attention_case, block_topk_case, kv_bytes, limits
from kinetics_lab.measure.runner import Suite
from kinetics_lab.measure.suites.attention import BUDGETS, PAPER, attend_of, filled_cache, random_tensor
from kinetics_lab.measure.timers import Call


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


def _layer_limits(case: Row, rates: Rates) -> Row:
    """Limits of the sparse layer, of the same layer with dense attention, and of the speed-up."""
    found, dense = limits(case, rates), limits(case | {"budget": 0}, rates)
    ours, whole = found["limit_us"], dense["limit_us"]
    return found | {"dense_limit_us": whole, "speedup_limit": whole / ours, "round_us": 2 * (ours + whole)}


def _validate_cases(on_gpu: bool, count: int = 200, seed: int = 20250606) -> list[Row]:
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
        case |= block_topk_case(*draw.choice(((512, 16), (512, 32), (1024, 32), (2048, 64))))
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


LAYER = Suite("layer", 1, "layer_us", _layer_cases, _layer_limits, _measure_layer)
VALIDATE = Suite("validate", 1, "layer_us", _validate_cases, _validate_limits, _measure_layer)
