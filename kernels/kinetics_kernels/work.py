"""Attention cut into parts by live lengths, and the parts' outputs joined.

Requests of one batch differ in length by ten times and more. With one program a request and KV head, the GPU waits for
the longest alone. So a small kernel reads the lengths, where they are, and lists the parts that attention takes: a
request, its first token, its end, longest part first, as programs start in the order of their numbers. A request no
longer than its share of the work is not cut. The host knows shapes only; a captured graph stays right while lengths
change.

Bytes moved: 4 a request for each program that lists, 16 a part. A cut request's outputs are written and read again in
fp32, 8 D a part and query head: at 4 query heads under 1 % of the keys and values of 1024 tokens. They are joined in
the order of the context, so that nothing depends on which program came first.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kinetics_kernels import configs

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _tiles_and_parts(lengths_ptr, row, batch, room, longest, splits, TILE: tl.constexpr):
    """Tiles of requests ``row (N,)`` and parts: ``splits`` of each, or, where that is 0, of ``longest`` tiles at most."""
    n = tl.load(lengths_ptr + row, mask=row < batch, other=0)  # (N,)
    tiles = tl.cdiv(tl.minimum(n, room), TILE)  # (N,)
    parts = tl.where(splits > 0, tl.minimum(tiles, splits), tl.cdiv(tiles, longest))  # (N,)
    return tiles, tl.where(row < batch, tl.maximum(parts, 1), 0)  # an empty one is a part, to write its zeros


@triton.jit(do_not_specialize=["batch", "room", "shares", "splits"])
def _list_kernel(
    lengths_ptr, item_ptr, cut_ptr, batch, room, shares, splits,
    TILE: tl.constexpr, LEAST: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    # grid (B / ROWS,): each program finds the places of ROWS requests among all, so that none waits for another
    c = tl.arange(0, CHUNK)  # (CHUNK,)
    total = tl.zeros([CHUNK], tl.int32)  # tiles
    for first in range(0, batch, CHUNK):
        total += _tiles_and_parts(lengths_ptr, first + c, batch, room, LEAST, splits, TILE)[0]
    longest = tl.maximum(tl.cdiv(tl.sum(total, 0), shares), LEAST)

    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)  # (ROWS,)
    tiles, parts = _tiles_and_parts(lengths_ptr, i, batch, room, longest, splits, TILE)  # (ROWS,)
    size = tl.cdiv(tiles, tl.maximum(parts, 1))  # tiles of a part; some have one fewer
    place, cut = tl.zeros([ROWS], tl.int32), tl.zeros([ROWS], tl.int32)  # (ROWS,): parts, cut requests before
    count, cuts = 0, 0  # of all requests
    for first in range(0, batch, CHUNK):
        j = first + c  # (CHUNK,)
        others, their_parts = _tiles_and_parts(lengths_ptr, j, batch, room, longest, splits, TILE)
        is_cut = (their_parts > 1).to(tl.int32)  # (CHUNK,)
        longer = tl.cdiv(others, tl.maximum(their_parts, 1))[None, :] - size[:, None]  # (ROWS, CHUNK)
        earlier = j[None, :] < i[:, None]  # (ROWS, CHUNK)
        ahead = (longer > 0) | ((longer == 0) & earlier)  # (ROWS, CHUNK)
        place += tl.sum(tl.where(ahead, their_parts[None, :], 0), 1)
        cut += tl.sum(tl.where(earlier, is_cut[None, :], 0), 1)
        count += tl.sum(their_parts, 0)
        cuts += tl.sum(is_cut, 0)

    tl.store(item_ptr, count)  # by every program the same
    tl.store(item_ptr + 1, cuts)
    for p in range(tl.max(parts, 0)):
        mine = p < parts  # (ROWS,)
        item = item_ptr + (1 + place + p) * 4  # (ROWS,)
        tl.store(item, i, mask=mine)
        tl.store(item + 1, p * tiles // tl.maximum(parts, 1) * TILE, mask=mine)
        tl.store(item + 2, (p + 1) * tiles // tl.maximum(parts, 1) * TILE, mask=mine)
        tl.store(item + 3, parts, mask=mine)
    cut_ptr += cut * 3  # (ROWS,)
    tl.store(cut_ptr, i, mask=parts > 1)
    tl.store(cut_ptr + 1, place, mask=parts > 1)
    tl.store(cut_ptr + 2, parts, mask=parts > 1)


@triton.jit
def softmax_step(s, peak, total):
    """One tile of scores ``s (R, N)`` on top of those before: 2^(s - peak), how much the sums so far shrink, new sums.

    ``peak (R,)``: the largest score, in powers of two; ``total (R,)``: the sum of 2^(score - peak).
    """
    new_peak = tl.maximum(peak, tl.max(s, 1))  # (R,)
    origin = tl.where(new_peak == float("-inf"), 0.0, new_peak)  # -inf - -inf would be NaN
    p = tl.exp2(s - origin[:, None])  # (R, N)
    shrink = tl.exp2(peak - origin)  # (R,)
    return p, shrink, new_peak, total * shrink + tl.sum(p, 1)


@triton.jit
def log_sum_exp(peak, total):
    """Natural logarithm of ``total * 2^peak``; -inf where nothing was summed, NaN where a NaN was."""
    return (peak + tl.log2(tl.where(total == 0, 1.0, total))) / LOG2_E


@triton.jit
def _join_kernel(
    item_ptr, cut_ptr, part_ptr, part_lse_ptr, out_ptr, lse_ptr, SP: tl.constexpr, D: tl.constexpr
):
    # grid (cuts at most, Hq): one program joins one query head of one cut request, SP parts at a time
    cut, n_q = tl.program_id(0), tl.num_programs(1)
    if cut >= tl.load(item_ptr + 1):
        return
    cut_ptr += cut * 3
    b, first, parts = tl.load(cut_ptr), tl.load(cut_ptr + 1), tl.load(cut_ptr + 2)
    s, d = tl.arange(0, SP), tl.arange(0, D)  # (SP,), (D,)
    peak, total = tl.full([1], float("-inf"), tl.float32), tl.zeros([1], tl.float32)  # (1,)
    acc = tl.zeros([1, D], tl.float32)  # (1, D)
    for start in range(0, parts, SP):
        ok = start + s < parts  # (SP,)
        at = (first + start + s).to(tl.int64) * n_q + tl.program_id(1)  # (SP,)
        lse = tl.load(part_lse_ptr + at, mask=ok, other=float("-inf"))  # (SP,)
        p, shrink, peak, total = softmax_step((lse * LOG2_E)[None, :], peak, total)  # p (1, SP)
        part = tl.load(part_ptr + at[:, None] * D + d[None, :], mask=ok[:, None], other=0.0)  # (SP, D)
        acc = acc * shrink[:, None] + tl.sum(tl.trans(p) * part, 0)[None, :]
    row = b.to(tl.int64) * n_q + tl.program_id(1) + tl.zeros([1], tl.int64)  # (1,)
    out = acc / tl.where(total == 0, 1.0, total)[:, None]  # (1, D)
    tl.store(out_ptr + row[:, None] * D + d[None, :], out.to(out_ptr.dtype.element_ty))
    tl.store(lse_ptr + row, log_sum_exp(peak, total))


def list_parts(
    lengths: Tensor, room: int, tile: int, n_kv: int, resident: int, splits: int | None
) -> tuple[Tensor, Tensor]:
    """The parts of a batch of requests: two int32 tensors, written by the GPU. Neither is read here.

    ``lengths [B]``, of which at most ``room`` tokens are read in tiles of ``tile``; ``resident`` programs run at
    once. ``splits`` cuts every request into so many parts, whatever the others' lengths, in place of equal work.
    Returns ``items [1 + M, 4]``: first how many there are and how many requests are cut, then each part's request, first
    token, end (in whole tiles) and number of parts of its request; and ``cuts [C, 3]``: request, first item and
    parts of each cut request.
    """
    batch = len(lengths)
    # Few requests: parts all alike, and at work at once. Many: so many parts that the last keep no one waiting long.
    few = 2 * batch * n_kv <= resident
    shares = resident // n_kv - batch if few else max(2 * resident // n_kv, 1)
    most, most_cut = min(batch + shares, batch * triton.cdiv(room, configs.LEAST_TILES * tile)), shares
    if splits is not None:
        most, most_cut = batch * splits, batch
    items = torch.empty(1 + most, 4, dtype=torch.int32, device=lengths.device)
    cuts = torch.empty(min(batch, most_cut), 3, dtype=torch.int32, device=lengths.device)
    _list_kernel[(triton.cdiv(batch, configs.LIST_ROWS),)](
        lengths, items, cuts, batch, room, shares, splits or 0, TILE=tile, LEAST=configs.LEAST_TILES,
        ROWS=configs.LIST_ROWS, CHUNK=configs.LIST_CHUNK, num_warps=configs.LIST_WARPS,
    )  # fmt: skip
    return items, cuts


def join_parts(
    items: Tensor, cuts: Tensor, part_out: Tensor, part_lse: Tensor, out: Tensor, lse: Tensor
) -> None:
    """Of cut requests ``part_out [M, Hq, D]``, ``part_lse [M, Hq]``, fp32, into ``out [B, Hq, D]``, ``lse [B, Hq]``."""
    _, n_q, head_dim = out.shape
    _join_kernel[(len(cuts), n_q)](
        items, cuts, part_out, part_lse, out, lse, SP=configs.JOIN_PARTS, D=head_dim, num_warps=4
    )
