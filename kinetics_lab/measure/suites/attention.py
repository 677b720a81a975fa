"""Suites of attention alone: dense beside the peers, the parts of block top-k, fp8; and their inputs.

The columns of a row are in :mod:`kinetics_lab.measure.runner`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from kinetics_lab.errors import sentence
from kinetics_lab.measure import limits
from kinetics_lab.measure.bench import Bench, Row
from kinetics_lab.measure.limits import Rates, attention_case, block_topk_case
from kinetics_lab.measure.peers import COMPILED, PEERS, RAGGED_PEERS
from kinetics_lab.measure.runner import Suite
from kinetics_lab.measure.timers import Call

PAPER = ((4096, 16384), (2048, 32768))  # batch, context: 34.36 GB of KV a layer and GPU, tensor parallel 8
BUDGETS = {128: 128, 256: 64, 512: 32, 1024: 16, 2048: 8}  # tokens chosen: tokens a block


def random_tensor(bench: Bench, *size: int, scale: float = 1.0) -> Any:
    import torch

    return torch.randn(size, **bench.kind).mul_(scale)


def filled_cache(case: Row, bench: Bench) -> tuple[Any, Any, dict[str, Call]]:
    """``q [B, Hq, D]``, a full cache, and the resets: full again, or one token short for calls that append.

    Only the pages that requests fill have memory; beyond them a row of the page table names page 0.
    """
    import torch
    from kinetics_kernels import PagedKVCache

    torch.manual_seed(0)
    batch, kv_heads, group, head_dim, context, page = (case[name] for name in limits.SHAPE)
    q = random_tensor(bench, batch, kv_heads * group, head_dim)
    block = limits.block_size(case)
    lengths = limits.lengths_of(case)
    *owned, width = (math.ceil(tokens / block) * block // page for tokens in (*lengths, context))  # pages
    full, used = (torch.tensor(x, dtype=torch.int32, device=q.device) for x in (lengths, owned))
    table = torch.zeros(batch, width, dtype=torch.int32, device=q.device)
    mine = torch.arange(width, device=q.device) < used[:, None]
    table = table.masked_scatter(mine, torch.randperm(sum(owned), device=q.device).int())
    cache = PagedKVCache(batch, kv_heads, head_dim, context, page_size=page, block_size=block, page_table=table,
                         n_pages=sum(owned), dtype=q.dtype, device=q.device)  # fmt: skip
    cache.k.normal_()
    cache.v.normal_()
    short = full - 1
    for tokens in (short, full):  # first the sum of the block that an append closes, then all means
        cache.lengths.copy_(tokens)
        cache.refresh()
    appending = ("append", "step", "layer", "dense_layer")
    one_short = dict.fromkeys(appending, lambda: cache.lengths.copy_(short))
    return q, cache, {"": lambda: cache.lengths.copy_(full), **one_short}


def attend_of(case: Row, cache: Any) -> Callable[[Any], Any]:
    """The case's attention of ``q`` over the cache: dense, or block top-k."""
    from kinetics_kernels import block_topk_decode, dense_decode

    if not case.get("budget"):
        return lambda q: dense_decode(q, cache)
    chosen = case["budget"] // case["block"]
    return lambda q: block_topk_decode(q, cache, chosen, window_blocks=case["window"])


def _dense_cases(on_gpu: bool) -> list[Row]:
    if not on_gpu:
        return [attention_case(2, 2, 2, 16, 64, 16), attention_case(1, 1, 5, 16, 40, 8)]
    wide, few = (128, 8, 8192), (8, 8, 32768)  # batch, KV heads, context: 4.3 and 1.1 GB
    rest = ((4096, 1, 16384), (2048, 1, 32768), (1, 8, 32768), (1, 8, 131072), (1, 1, 32768), (32, 8, 8192),
            (128, 8, 2048), (1024, 1, 8192), (256, 4, 8192))  # fmt: skip
    cases = [attention_case(batch, heads, 4, 128, n, 16) for batch, heads, n in (wide, few, *rest)]
    for batch, heads, context in (wide, few):
        cases += [attention_case(batch, heads, group, 128, context, 16) for group in (1, 2, 5, 8, 16)]
        cases += [attention_case(batch, heads, 4, 128, context, page) for page in (1, 8, 32, 64, 128)]
    return cases


def _dense_limits(case: Row, rates: Rates) -> Row:
    found = limits.limits(case, rates)
    moved = found["memory_bytes"] + limits.kv_bytes(case)  # PyTorch's attention reads a contiguous copy
    return found | {"memory_bytes": moved, "round_us": (1 + len(PEERS)) * found["limit_us"]}


def measure_beside_peers(case: Row, bench: Bench) -> Row:
    """Ours and, where it is dense, every peer that runs: times, and the relative distance of its output from ours."""
    import torch

    q, cache, resets = filled_cache(case, bench)
    attend = attend_of(case, cache)
    calls: dict[str, Call] = {"ours": lambda: attend(q)}
    ours = attend(q).float()
    row: Row = {}
    for name, make in ({} if case.get("budget") else PEERS).items():
        if "lengths" in case and name not in RAGGED_PEERS:
            continue
        if name in COMPILED and bench.on_gpu and (case["group"], case["page"]) != (4, 16):
            continue  # compiled anew for every shape, which takes longer than all there is to time
        if bench.peers.get(name):  # it never ran here: its build is not tried again for every case
            row[f"{name}_error"] = bench.peers[name]
            continue
        try:
            call = make(q, cache)
            row[f"{name}_distance"] = float((call().float() - ours).norm() / ours.norm())
            calls[name] = call
            bench.peers[name] = ""
        except Exception as error:  # a fact about the peer: the row says so, and keeps ours
            row[f"{name}_error"] = sentence(error)
            if not isinstance(error, torch.OutOfMemoryError):  # which says nothing of other cases
                bench.peers.setdefault(name, sentence(error))
    return row | bench.time(calls, resets, optional=PEERS)


def _topk_cases(on_gpu: bool) -> list[Row]:
    if not on_gpu:
        return [
            attention_case(2, 1, 2, 16, 96, 16) | block_topk_case(32, 16),
            attention_case(1, 2, 2, 16, 64, 8) | block_topk_case(16, 16, 0),
        ]
    return [
        attention_case(batch, 1, 4, 128, context, min(block, 16)) | block_topk_case(budget, block, window)
        for batch, context in PAPER
        for budget, block in BUDGETS.items()
        for window in (1, 0)  # with and without the last block on top
    ]


def _topk_limits(case: Row, rates: Rates) -> Row:
    """The limit is that of scoring and attention; append and selection are overhead, to be kept small."""
    found = limits.limits(case, rates)
    append = case["batch"] * case["kv_heads"] * 18 * case["head_dim"]
    parts = {name: rates.us(found[f"{name}_bytes"]) for name in ("score", "attend")}
    # score, attend and the step; scoring once more before a selection; two selections, as long as scoring
    planned = 2 * (found["limit_us"] + rates.us(append)) + 4 * parts["score"]
    parts_us = {f"{name}_limit_us": us for name, us in parts.items()}
    return {**found, **parts_us, "append_bytes": append, "round_us": planned}


def _measure_topk(case: Row, bench: Bench) -> Row:
    """Each part alone, the step as one, and torch.topk on the same scores (with how often both agree).

    Alone, a part reads from memory what in a step the one before has just left in the cache. So selection is timed
    behind scoring, too: ``score_select``.
    """
    import torch
    from kinetics_kernels import score_blocks, select_top, sparse_decode

    q, cache, resets = filled_cache(case, bench)
    k, v = (random_tensor(bench, cache.batch, cache.n_kv_heads, cache.head_dim) for _ in range(2))
    chosen, window, attend = case["budget"] // case["block"], case["window"], attend_of(case, cache)
    scores = score_blocks(q, cache)
    selection = select_top(scores, cache, chosen, window_blocks=window)
    best = torch.topk(scores, chosen).indices.sort().values
    agree = (select_top(scores, cache, chosen, window_blocks=0).blocks == best).all(-1)

    def step() -> None:
        cache.append(k, v)
        attend(q)

    calls: dict[str, Call] = {
        "append": lambda: cache.append(k, v),
        "score": lambda: score_blocks(q, cache),
        "score_select": lambda: select_top(score_blocks(q, cache), cache, chosen, window_blocks=window),
        "select": lambda: select_top(scores, cache, chosen, window_blocks=window),
        "torch_topk": lambda: torch.topk(scores, chosen, sorted=False),
        "attend": lambda: sparse_decode(q, cache, selection),
        "step": step,
    }
    return {"torch_topk_agrees": float(agree.float().mean()), **bench.time(calls, resets)}


def _fp8_cases(on_gpu: bool) -> list[Row]:
    """Cases of `dense` (budget 0) and `topk`, in files of their own: a row there goes on meaning 16 bits."""
    if not on_gpu:
        return [
            attention_case(2, 2, 5, 32, 64, 16) | block_topk_case(0, 16),
            attention_case(2, 1, 2, 16, 96, 16) | block_topk_case(32, 16),
        ]
    dense = [(128, 8, group, 8192, 16) for group in (1, 4, 8)] + [(128, 8, 4, 8192, 64), (8, 8, 4, 32768, 16)]
    cases = [attention_case(b, h, g, 128, n, page) | block_topk_case(0, page) for b, h, g, n, page in dense]
    chosen = ((0, 16), (256, 64), (1024, 16))
    many = attention_case(4096, 1, 4, 128, 16384, 16)
    return cases + [many | block_topk_case(*budget) for budget in chosen]


def _fp8_limits(case: Row, rates: Rates) -> Row:
    """Keys and values at one byte, mean keys at two as before; the limit in 16 bits beside."""
    sixteen = limits.limits(case, rates)
    moved = sixteen["score_bytes"] + sixteen["attend_bytes"] // 2
    limit = rates.us(moved, sixteen["flops"])
    return sixteen | {
        "attend_bytes": sixteen["attend_bytes"] // 2, "bytes": moved, "limit_us": limit, "bf16_limit_us": sixteen["limit_us"],
        "speedup_limit": sixteen["limit_us"] / limit, "round_us": limit + sixteen["limit_us"],
        "memory_bytes": sixteen["memory_bytes"] + limits.kv_bytes(case),  # fp8, and half of 16 bits while it is made
    }  # fmt: skip


def _measure_fp8(case: Row, bench: Bench) -> Row:
    """Both times, and the relative distance of the output from that of 16 bits: what quantization costs here."""
    import torch
    from kinetics_kernels import PagedKVCache

    q, cache, resets = filled_cache(case, bench)
    unit = torch.full((cache.n_kv_heads,), 2.0**-5, device=q.device)  # normal numbers reach 6, of 14 in range
    eight = PagedKVCache(cache.batch, cache.n_kv_heads, cache.head_dim, cache.max_tokens, page_size=cache.page_size,
                         block_size=cache.block_size, page_table=cache.page_table, n_pages=cache.k.shape[0],
                         dtype=torch.float8_e4m3fn, device=q.device, k_scale=unit, v_scale=unit)  # fmt: skip
    eight.k.copy_(cache.k * 32)
    eight.v.copy_(cache.v * 32)
    eight.lengths.copy_(cache.lengths)
    eight.refresh()
    ours, bf16 = attend_of(case, eight), attend_of(case, cache)
    distance = float((ours(q).float() - bf16(q).float()).norm() / bf16(q).float().norm())
    row = bench.time({"fp8": lambda: ours(q), "bf16": lambda: bf16(q)}, resets)
    return row | {"fp8_distance": distance, "speedup": row["bf16_us"] / row["fp8_us"]}


DENSE = Suite("dense", 1, "ours_us", _dense_cases, _dense_limits, measure_beside_peers)
TOPK = Suite("topk", 1, "step_us", _topk_cases, _topk_limits, _measure_topk)
FP8 = Suite("fp8", 1, "fp8_us", _fp8_cases, _fp8_limits, _measure_fp8)
