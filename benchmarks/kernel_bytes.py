"""Every byte that the kernels load and store, by address, in Triton's interpreter: makes ``data/kernel_bytes.csv``.

    python benchmarks/kernel_bytes.py [OUT]      # OUT: data/kernel_bytes.csv; the sum for data/MANIFEST.toml is printed

The interpreter runs the programs of a launch one by one and passes the address of every element to two functions.
Here they write the addresses down. So this counts what a kernel asks for, whichever GPU it is compiled for; what a GPU's
caches make of repeated addresses it cannot say.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

if __name__ == "__main__":  # and not where tests on a GPU import this
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported

import numpy as np
import pandas as pd
import torch
from kinetics_kernels import (
    PagedKVCache,
    dense_decode,
    ladder,
    reference,
    score_blocks,
    select_top,
    sparse_decode,
)
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder

SECTOR = 32  # bytes, the least that an NVIDIA GPU reads of its memory
REST = "the rest"
#: The step that the book's table is of.
STEP = {
    "batch": 2,
    "kv_heads": 2,
    "group": 4,
    "head_dim": 128,
    "context": 1024,
    "page": 16,
    "block": 32,
    "chosen": 8,
}


@contextmanager
def traced(tensors: dict[str, Tensor]) -> Iterator[list[dict[str, object]]]:
    """A list that holds, once the block has ended, rows of what the kernels run in it did with each tensor.

    ``asked``: bytes of all elements loaded or stored. ``distinct``: of different addresses. ``sectors``: of all
    32-byte sectors that these touch. What belongs to none of the named tensors is :data:`REST`.
    """
    seen, rows = defaultdict[tuple[str, int], list[np.ndarray]](list), list[dict[str, object]]()

    def watched(op: str, function: Callable[..., object], mask_at: int) -> Callable[..., object]:
        def run(self: object, pointers: object, *rest: object) -> object:
            size = pointers.get_element_ty().primitive_bitwidth // 8
            mask = np.asarray(rest[mask_at].data, bool)  # the interpreter's are whole numbers at times
            seen[op, size].append(np.broadcast_to(pointers.data, mask.shape)[mask])
            return function(self, pointers, *rest)

        return run

    with (
        patch.object(InterpreterBuilder, "create_masked_load", watched("loaded", InterpreterBuilder.create_masked_load, 0)),
        patch.object(InterpreterBuilder, "create_masked_store", watched("stored", InterpreterBuilder.create_masked_store, 1)),
    ):  # fmt: skip
        yield rows
    for (op, size), parts in seen.items():
        addresses = np.concatenate(parts)
        left = np.ones(len(addresses), bool)
        for name, x in tensors.items():
            inside = (addresses >= x.data_ptr()) & (addresses < x.data_ptr() + x.nbytes)
            rows += counted(name, op, size, addresses[inside])
            left &= ~inside
        rows += counted(REST, op, size, addresses[left])


def counted(tensor: str, op: str, size: int, addresses: np.ndarray) -> list[dict[str, object]]:
    """The row of one tensor and operation; none without addresses."""
    row = {
        "tensor": tensor, "op": op, "asked": size * len(addresses), "distinct": size * len(np.unique(addresses)),
        "sectors": SECTOR * len(np.unique(addresses // SECTOR)),
    }  # fmt: skip
    return [row] if len(addresses) else []


def filled(
    batch: int, kv_heads: int, group: int, head_dim: int, context: int, page: int, block: int, seed: int = 0
):
    """``q [B, Hq, D]`` and a cache of ``context`` tokens, on shuffled pages, fp16."""
    draw = torch.Generator().manual_seed(seed)
    table = torch.randperm(batch * context // page, generator=draw).int().view(batch, -1)
    cache = PagedKVCache(batch, kv_heads, head_dim, context, page_size=page, block_size=block, page_table=table,
                         n_pages=table.numel(), device="cpu")  # fmt: skip
    cache.k.normal_(generator=draw)
    cache.v.normal_(generator=draw)
    for tokens in (context - 1, context):  # first the sum of the block that an append closes, then all means
        cache.lengths.fill_(tokens)
        cache.refresh()
    return torch.randn(batch, kv_heads * group, head_dim, generator=draw).half(), cache


def step(chosen: int, **sizes: int) -> pd.DataFrame:
    """All rows of a decode step: the four small kernels, dense attention, and block top-k part by part."""
    q, cache = filled(**sizes)
    heads = (cache.batch, cache.n_kv_heads, cache.head_dim)
    k_new, v_new = torch.randn(heads).half(), torch.randn(heads).half()
    pairs = [reference.context(cache, b, q.dtype) for b in range(cache.batch)]
    k, v = (
        torch.stack(part).contiguous() for part in zip(*pairs, strict=True)
    )  # one run a request and KV head
    scores = score_blocks(q, cache)
    selection = select_top(scores, cache, chosen, window_blocks=0)
    stored = {
        "keys": cache.k, "values": cache.v, "page table": cache.page_table, "mean keys": cache.key_means,
        "sum of the open block": cache.open_sum, "lengths": cache.lengths,
    }  # fmt: skip
    calls: dict[str, tuple[Callable[[], object], dict[str, Tensor]]] = {
        name: (lambda name=name: ladder.attend(name, q, k, v), {"keys": k, "values": v})
        for name in ("one query", "grouped", "split")
    }
    calls |= {
        "paged": (lambda: ladder.attend("paged", q, cache.k, cache.v, cache.page_table, cache.lengths), stored),
        "dense": (lambda: dense_decode(q, cache), stored),
        "score": (lambda: score_blocks(q, cache), stored),
        "select": (lambda: select_top(scores, cache, chosen, window_blocks=0), stored | {"scores": scores}),
        "attend": (lambda: sparse_decode(q, cache, selection), stored | {"selected pages": selection.pages}),
        "append": (lambda: cache.append(k_new, v_new), stored | {"new key": k_new, "new value": v_new}),
    }  # fmt: skip
    rows = []
    for name, (call, tensors) in calls.items():
        if name == "append":
            cache.lengths.sub_(1)
        with traced({"query": q} | tensors) as found:
            call()
        rows += [{"call": name} | row for row in found]
    table = (
        pd.DataFrame(rows).groupby(["call", "tensor", "op"], sort=False).sum()
    )  # elements of several sizes
    return table.reset_index()


if __name__ == "__main__":
    out = Path(*sys.argv[1:] or ("data", "kernel_bytes.csv"))
    step(**STEP).to_csv(out, index=False)
    print(f'sha256 = "{hashlib.sha256(out.read_bytes()).hexdigest()}"')
