"""A model, not a measurement: how long the GPU waits for the last programs of one step of dense attention.

Run: python benchmarks/tail.py. It needs no GPU: `list_parts` of `kinetics_kernels.work` runs interpreted, and its items
are what is timed here.

The rule. A GPU holds ``RESIDENT`` programs; the next starts, in the order of the grid, as soon as one ends. Programs
that run share the bandwidth equally, but none gets more than 1 / ``K`` of it: K = 66 is half the multiprocessors of an
H200, since one program keeps 64 KB in flight, about twice what its multiprocessor needs for its share. A program
takes 512 bytes of keys and values a token (D = 128, 2 bytes each); one of several parts of a request also writes its
output in fp32, which the join reads again (8 bytes x D x 4 query heads). Nothing else takes time: no launch, no first
load, no list, no arithmetic. The limit is the keys and values over the bandwidth.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Sequence

import numpy as np
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported

RESIDENT, K = 3 * 132, 66
TOKEN_BYTES, PART_BYTES = 512, 8 * 128 * 4
TILE = 64


def duration(programs: Sequence[float], resident: int = RESIDENT, k: int = K) -> float:
    """Time of programs of so many bytes, started in this order, at a bandwidth of 1 byte a unit of time."""
    waiting, ends = (
        iter(programs),
        list[float](),
    )  # ends: bytes that each has read when it ends, all being equal
    read = time = 0.0
    while True:
        while len(ends) < resident and (size := next(waiting, None)) is not None:
            heapq.heappush(ends, read + size)
        if not ends:
            return time
        end = heapq.heappop(ends)
        time += (end - read) * max(len(ends) + 1, k)
        read = end


def one_each(lengths: Sequence[int], n_kv: int) -> list[float]:
    """Bytes of a program for each KV head and request, in the order of a grid whose requests run fastest."""
    return [n * TOKEN_BYTES for _ in range(n_kv) for n in lengths]


def listed(lengths: Sequence[int], n_kv: int) -> list[float]:
    """Bytes of the programs that the kernels' list of parts starts."""
    from kinetics_kernels.work import list_parts

    device = "cuda" if torch.cuda.is_available() else "cpu"
    held = torch.tensor(lengths, dtype=torch.int32, device=device)
    items = list_parts(held, max(lengths), TILE, n_kv, RESIDENT, None)[0].tolist()
    programs = []
    for request, start, stop, parts in items[1 : 1 + items[0][0]]:
        tokens = min(stop, lengths[request]) - start
        programs += [tokens * TOKEN_BYTES + PART_BYTES * (parts > 1)] * n_kv
    return programs


def shares(lengths: Sequence[int], n_kv: int) -> tuple[float, float]:
    """Share of the limit's bandwidth that one program a head reaches, and that the list does."""
    limit = sum(one_each(lengths, n_kv))
    return limit / duration(one_each(lengths, n_kv)), limit / duration(listed(lengths, n_kv))


def log_normal(
    seed: int, batch: int = 128, median: int = 8192, spread: float = 0.6, most: int = 131072
) -> list[int]:
    """Lengths of reasoning traces: log-normal, the standard deviation of the logarithm being ``spread``."""
    drawn = median * np.exp(spread * np.random.default_rng(seed).standard_normal(batch))
    return np.clip(drawn, 1, most).astype(int).tolist()


CASES = {
    "127 x 4K and 1 x 128K, 8 KV heads": ([4096] * 127 + [131072], 8),
    "511 x 4K and 1 x 128K, 1 KV head": ([4096] * 511 + [131072], 1),
    **{f"128 log-normal, 8 KV heads, draw {seed}": (log_normal(seed), 8) for seed in range(4)},
    "100 slots, 99 of them finished, 1 KV head": ([0] * 99 + [32768], 1),
    "4096 x 16K, 1 KV head": ([16384] * 4096, 1),
    "128 x 8K, 8 KV heads": ([8192] * 128, 8),
    "8 x 32K, 8 KV heads": ([32768] * 8, 8),
    "32 x 8K, 8 KV heads": ([8192] * 32, 8),
}


def main() -> None:
    """Print both shares for every case."""
    print(f"{'model, share of the limit':44s} one a head   listed")
    for name, case in CASES.items():
        before, after = shares(*case)
        print(f"{name:44s} {before:10.1%} {after:8.1%}")


if __name__ == "__main__":
    main()
