"""The least time a step can take: its bytes and FLOP over the rates of a device."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from kinetics_lab.cost.hardware import HARDWARE
from kinetics_lab.measure.timers import Row

GPUS = [f"nvidia-{name}" for name, hardware in HARDWARE.items() if hardware.source.startswith("NVIDIA")]
SHAPE = ("batch", "kv_heads", "group", "head_dim", "context", "page")  # of an attention step


@dataclass(frozen=True)
class Rates:
    """What limits divide by: bytes/s, matrix FLOP/s, and ``source``: "measured", "datasheet H200 SXM" or "none"."""

    bandwidth: float
    matrix: float
    source: str

    def __str__(self) -> str:
        return f"{self.bandwidth / 1e12:.2f} TB/s and {self.matrix / 1e12:,.0f} TFLOP/s ({self.source})"

    def us(self, moved: float = 0.0, flops: float = 0.0) -> float:
        """The larger of transfer and matrix time, microseconds."""
        return max(moved / self.bandwidth, flops / self.matrix) * 1e6


def listed(gpu: str) -> str | None:
    """The hardware that a GPU's folder names: "a100" of "nvidia-a100-sxm4-80gb"; None where none is listed."""
    return max((name for name in HARDWARE if f"-{name}-" in f"-{gpu}-"), key=len, default=None)


def datasheet_rates(gpu: str) -> Rates:
    """Dense bf16 peak and bandwidth of a GPU by its folder ("nvidia-h200"); NaN for one that is not listed."""
    if one := HARDWARE.get(listed(gpu) or ""):
        return Rates(one.bandwidth, one.at("bf16").peak_flops, f"datasheet {one.title}")
    return Rates(math.nan, math.nan, "none")


def memory_of(gpu: str) -> float:
    """Memory of a GPU by its folder, bytes by the datasheet; an H200's where it is not listed."""
    return HARDWARE[listed(gpu) or "h200"].memory


def attention_case(*numbers: int) -> Row:
    """Key columns of an attention step: requests, KV heads, query heads a KV head, ..., tokens a page."""
    return dict(zip(SHAPE, numbers, strict=True))


def lengths_of(case: Row) -> list[int]:
    """Tokens of each request: ``context`` of all, unless ``lengths`` says "straggler" or "lognormal".

    A straggler has ``context`` tokens beside others of ``typical``. Log-normal lengths have that median and a standard
    deviation of 0.8 in the logarithm; they end at ``context``, and are whole blocks.
    """
    batch, longest, kind = case["batch"], case["context"], case.get("lengths", "equal")
    if kind == "equal":
        return [longest] * batch
    if kind == "straggler":
        return [case["typical"]] * (batch - 1) + [longest]
    draw, block = random.Random(0), block_size(case)
    drawn = (min(draw.lognormvariate(math.log(case["typical"]), 0.8), longest) for _ in range(batch))
    return [math.ceil(tokens / block) * block for tokens in drawn]


def block_topk_case(budget: int, block: int, window: int = 1) -> Row:
    """Key columns of block top-k: tokens chosen, tokens a block, last blocks read on top; budget 0 is dense."""
    return {"budget": budget, "block": block, "window": window}


def element(case: Row) -> int:
    """Bytes of a number: 2, where the case does not say (on a host, 4)."""
    return case.get("element_bytes", 2)


def kv_bytes(case: Row) -> int:
    """Keys and values in the cache, bytes."""
    return case["batch"] * case["kv_heads"] * case["context"] * 4 * case["head_dim"]


def limits(case: Row, rates: Rates) -> Row:
    """Bytes, FLOP and the limit of a step: attention's traffic and, in a layer, its products (hidden, ffn).

    Left out: q, output, page table, scores, page ids, append, activations. Products take the larger of
    arithmetic and their weights' traffic; attention follows them, so that the two times add up.
    """
    rows, dim, group = case["batch"] * case["kv_heads"], case["head_dim"], case["group"]
    blocks, tokens = 0, case["context"]
    if case.get("budget"):
        blocks = tokens // case["block"]
        tokens = min(tokens, case["budget"] + case["window"] * case["block"])
    score, attend = rows * blocks * 2 * dim, rows * tokens * 4 * dim
    flops = group * rows * dim * (4 * tokens + 2 * blocks)
    attention_us = rates.us(score + attend, flops)
    found = {
        "score_bytes": score, "attend_bytes": attend, "attention_flops": flops,
        "bytes": score + attend, "flops": flops, "limit_us": attention_us,
        # the cache, its mean keys, the page table (int64 while it is drawn), and 1 GB
        "memory_bytes": kv_bytes(case) * (1 + 0.5 / block_size(case)) + 20 * case["batch"] * case["context"] / case["page"] + 1e9,
    }  # fmt: skip
    if "hidden" not in case:
        return found
    q, kv = case["kv_heads"] * group * dim, case["kv_heads"] * 2 * dim
    weights = case["hidden"] * (2 * q + kv + 3 * case["ffn"])
    gemm_flops = 2 * weights * case["batch"]
    gemm_us = rates.us(2 * weights, gemm_flops)
    return found | {
        "weight_bytes": 2 * weights, "gemm_flops": gemm_flops, "gemm_limit_us": gemm_us,
        "attention_limit_us": attention_us, "bytes": score + attend + 2 * weights, "flops": flops + gemm_flops,
        "limit_us": gemm_us + attention_us, "memory_bytes": found["memory_bytes"] + 2 * weights,
    }  # fmt: skip


def block_size(case: Row) -> int:
    """Tokens a block of the case's cache."""
    return case.get("block") or max(case["page"], 16)
