"""The suite ``ragged``: attention over requests of unequal lengths, as reasoning leaves them, dense and block top-k.

A batch takes as long as its bytes if work is shared out by length, and far longer if a program has a whole request.
"""

from __future__ import annotations

from collections import Counter

from kinetics_lab.measure.bench import Row
from kinetics_lab.measure.limits import Rates, attention_case, block_size, block_topk_case, lengths_of, limits
from kinetics_lab.measure.runner import Suite
from kinetics_lab.measure.suites.attention import measure_beside_peers

SUMS = ("score_bytes", "attend_bytes", "attention_flops", "bytes", "flops")  # over requests


def _ragged_cases(on_gpu: bool) -> list[Row]:
    """Batches of equal, log-normal and straggling lengths: many heads of few requests, and one head of many."""
    if not on_gpu:
        kinds = [("straggler", 3, 2, 96, 16), ("lognormal", 3, 1, 64, 32)]
        budgets = [(0, 16), (16, 16)]
    else:
        kinds = [("straggler", 128, 8, 131072, 4096), ("straggler", 512, 1, 131072, 4096), ("lognormal", 128, 8, 65536, 8192),
                 ("lognormal", 512, 1, 65536, 8192), ("equal", 128, 8, 5120, 5120)]  # fmt: skip
        budgets = [(0, 64), (1024, 64)]
    return [
        {"lengths": kind, "typical": typical}
        | attention_case(batch, heads, 4, 128 if on_gpu else 16, context, 16)
        | block_topk_case(*budget)
        for kind, batch, heads, context, typical in kinds
        for budget in budgets
    ]


def _ragged_limits(case: Row, rates: Rates) -> Row:
    """The bytes of each request, added up; nothing for the room that shorter ones leave."""
    alike = Counter(lengths_of(case)).items()
    each = [limits(case | {"context": n, "batch": count}, rates) for n, count in alike]
    found = {name: sum(one[name] for one in each) for name in SUMS}
    limit = rates.us(found["bytes"], found["flops"])
    whole, tokens = limits(case, rates), case["batch"] * case["context"]  # room of mean keys and page table
    pages = 4 * case["kv_heads"] * case["head_dim"] * sum(lengths_of(case))
    means = 2 * case["kv_heads"] * case["head_dim"] * tokens // block_size(case)
    peers = 1 if case["budget"] else 4
    return whole | found | {
        "limit_us": limit, "round_us": peers * limit, "memory_bytes": pages + means + 20 * tokens / case["page"] + 1e9,
    }  # fmt: skip


RAGGED = Suite("ragged", 1, "ours_us", _ragged_cases, _ragged_limits, measure_beside_peers)
