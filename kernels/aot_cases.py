"""Every launch in `kinetics_kernels.configs`, each kernel in each of its forms, as `aot_check.py` compiles them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
from kinetics_kernels import append, configs, dense, score, select, work

DTYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


@dataclass(frozen=True)
class Case:
    """One kernel, compiled for one launch; ``least`` programs must fit on a multiprocessor.

    ``bytes`` of memory are the work its instructions are set against: what one pass of the loop reads, or, for
    selection, what scoring read before. They may take ``most`` of the time that those bytes take.
    """

    name: str
    kernel: triton.JITFunction
    types: dict[str, str]  # pointers and runtime numbers
    const: dict[str, int | bool | None]
    warps: int
    stages: int
    least: int
    bytes: int = 0
    most: float | None = None


def stored(types: dict[str, str], const: dict[str, int | bool | None], fp8: bool, *names: str) -> str:
    """Make ``names`` fp8 where keys and values are, and add their scales; returns what the case's name says."""
    scales = {"k_scale", "v_scale", "k_scale_ptr", "v_scale_ptr"}
    for name in scales & {*names}:
        (types if fp8 else const).update({name: "*fp32" if fp8 else None})
    types |= {name: "*fp8e4nv" for name in names if fp8 and name not in scales}
    return "/fp8" if fp8 else ""


def attend(
    head_dim: int, dtype: torch.dtype, page: int, *, per_head: bool = False, group: int = 4, fp8: bool = False
) -> Case:  # fmt: skip
    tile, warps, stages = configs.attend_launch(head_dim, dtype, fp8=fp8)
    pairs, x = configs.in_pairs(head_dim, dtype, fp8=fp8), DTYPES[dtype]
    types = {name: f"*{x}" for name in ("q_ptr", "k_ptr", "v_ptr", "out_ptr")}
    types |= {name: "*i32" for name in ("table_ptr", "tokens_ptr", "item_ptr")}
    types |= {name: "*fp32" for name in ("lse_ptr", "part_ptr", "part_lse_ptr")}
    types |= dict(scale="fp32", n_kv="i32", table_len="i32", page_stride="i32:16", head_stride="i32:16")
    const = dict(G=group, GP=16, D=head_dim, PAGE=page, TILE=tile, PER_HEAD=per_head, STAGES=stages)
    x += stored(types, const, fp8, "k_ptr", "v_ptr", "k_scale_ptr", "v_scale_ptr")
    if pairs:
        types |= dict(k_ptr="*i16", v_ptr="*i16")
    else:
        const["UPCAST"] = False
    name = f"attend {x} D={head_dim} page={page}" + (" selected" if per_head else "")
    plain = dtype == torch.float32  # multiplied without tensor cores
    size = (1 if fp8 else dtype.itemsize) * 2 * head_dim * tile
    most = None if plain or head_dim < 64 else 0.8
    kernel = dense._attend_pairs_kernel if pairs else dense._attend_kernel
    return Case(name, kernel, types, const, warps, stages, 1 if plain else 3, size, most)


def work_cases() -> Iterator[Case]:
    """The list of parts, and the join of their outputs."""
    types = {name: "*i32" for name in ("lengths_ptr", "item_ptr", "cut_ptr")}
    types |= {name: "i32" for name in ("batch", "room", "shares", "splits")}
    const: dict[str, int | bool | None] = dict(TILE=64, LEAST=configs.LEAST_TILES, ROWS=configs.LIST_ROWS,
                                               CHUNK=configs.LIST_CHUNK)  # fmt: skip
    yield Case("list parts", work._list_kernel, types, const, configs.LIST_WARPS, 3, 1)
    types = dict(item_ptr="*i32", cut_ptr="*i32", out_ptr="*bf16")
    types |= {name: "*fp32" for name in ("part_ptr", "part_lse_ptr", "lse_ptr")}
    for head_dim in (128, 256):
        const = dict(SP=configs.JOIN_PARTS, D=head_dim)
        yield Case(f"join parts D={head_dim}", work._join_kernel, types, const, 4, 3, 4)


def score_case(head_dim: int, dtype: torch.dtype, kind: str, *, fp8: bool = False) -> Case:
    tile, warps, stages = configs.score_launch(head_dim, quest=kind == "quest")
    x = DTYPES[dtype]
    types = dict(q_ptr=f"*{x}", key_ptr=f"*{x}", lengths_ptr="*i32", score_ptr="*fp32", scale="fp32",
                 table_len="i32:16", rows="i32:16")  # fmt: skip
    const = dict(G=4, GP=16, D=head_dim, UPCAST=False, PAGE=16, BLOCK=1 if kind == "tokens" else 32, TILE=tile,
                 CHUNK=configs.SCORE_CHUNK, STAGES=stages)  # fmt: skip
    for name, kind_of, type_ in (("low_ptr", "quest", f"*{x}"), ("table_ptr", "tokens", "*i32")):
        (types if kind == kind_of else const).update({name: type_ if kind == kind_of else None})
    x += stored(types, const, fp8, "key_ptr", "k_scale_ptr")
    plain = dtype == torch.float32
    size = (1 if fp8 else dtype.itemsize) * (2 if kind == "quest" else 1) * head_dim * tile
    limits = (2, size) if plain else (4, size, 0.8)
    name = f"score {kind} {x} D={head_dim}"
    return Case(name, score._score_kernel, types, const, warps, stages, *limits)


def select_case(n: int, kind: str = "top", *, rows: str = "i32:16", slots: int = 32) -> Case:
    """``slots`` blocks may be chosen, of ``rows``: most often a multiple of 16, for which Triton compiles another program."""
    pointers = ("lengths_ptr", "table_ptr", "block_ptr", "page_ptr", "tokens_ptr")
    types = {"score_ptr": "*fp32"} | {name: "*i32" for name in pointers}
    types |= dict(table_len="i32:16", rows=rows, sink="i32", window="i32", K="i32")
    span = 4 if kind == "strided" else 1
    const = dict(N_BLOCKS=16, SPAN=span, BLOCK=1 if kind == "tokens" else 32, PAGE=16,
                 TOKENS=kind == "tokens", N=n, KP=slots, SLOTS=min(slots, configs.SELECT_SLOTS))  # fmt: skip
    name, warps = f"select {kind} N={n}", configs.select_warps(n, span)
    name += ("" if rows == "i32:16" else " odd") + ("" if slots == 32 else f" K={slots}")
    size, most = (n * 128 * 2, 0.1) if kind == "top" and 512 <= n <= 4096 else (0, None)
    least = 1 if n > (4096 if kind == "top" else 2048) else 2
    return Case(name, select._select_kernel, types, const, warps, 3, least, size, most)


def append_case(
    kind: str, dtype: torch.dtype, head_dim: int = 128, heads: int = 8, *, fp8: bool = False
) -> Case:  # fmt: skip
    x = DTYPES[dtype]
    types = {name: f"*{x}" for name in ("k_new", "v_new", "k", "v", "mean", "low", "high")}
    types |= dict(counts="*i32", open_sum="*fp32", table="*i32", lengths="*i32", max_blocks="i32")
    const: dict[str, int | bool | None] = dict(D=head_dim, PAGE=16, BLOCK=32)
    types |= {name: "*fp16" for name in ("mean", "low", "high") if fp8}
    held = torch.float8_e4m3fn if fp8 else dtype
    x += stored(types, const, fp8, "k", "v", "k_scale", "v_scale")
    if kind == "step":
        types["n_kv"] = "i32"
        const["HEADS"], warps = configs.step_launch(heads, head_dim, held)
        name = f"append step {x} D={head_dim} heads={heads}"
        return Case(name, append.append_step_kernel, types, const, warps, 3, 1)
    types, const = types | dict(T="i32", blocks="i32"), const | dict(TILE=configs.prompt_tile(head_dim, held))
    least = 2 if dtype == torch.float32 else 4
    return Case(f"append prompt {x} D={head_dim}", append.append_prompt_kernel, types, const, 4, 3, least)


#: Compiled for every architecture: each kernel in the forms that models of today ask for, and the largest selections.
EVERYWHERE = (
    "attend bf16 D=64 page=16", "attend bf16 D=128 page=16", "attend bf16 D=256 page=16", "attend fp32 D=128 page=16",
    "attend bf16 D=128 page=16 selected", "attend bf16/fp8 D=64 page=16", "attend bf16/fp8 D=128 page=16",
    "list parts", "join parts D=128", "score means bf16 D=128", "score quest bf16 D=128", "score tokens bf16 D=128",
    "select top N=1024", "select top N=8192 K=8192", "select strided N=8192",
    "append step bf16 D=128 heads=8", "append step bf16 D=256 heads=128", "append prompt bf16 D=128",
    "append step bf16/fp8 D=128 heads=8", "append prompt bf16/fp8 D=128",
)  # fmt: skip


def cases() -> Iterator[Case]:
    """Every launch in `configs`, each kernel in each of its forms."""
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    for head_dim in configs.ATTEND:
        yield attend(head_dim, bf16, 16)
        yield attend(head_dim, fp32, 16)
    yield attend(128, fp16, 16)
    for page in (1, 8, 32, 64, 128):
        yield attend(128, bf16, page)
    for page in (8, 16, 128):
        yield attend(128, bf16, page, per_head=True)
    yield attend(256, bf16, 16, per_head=True)
    for head_dim in configs.ATTEND:
        yield attend(head_dim, bf16, 16, fp8=True)
        yield attend(head_dim, fp32, 16, fp8=True)
    yield attend(128, fp16, 16, fp8=True)
    for page in (1, 8, 128):
        yield attend(128, bf16, page, fp8=True)
    yield attend(128, bf16, 16, per_head=True, fp8=True)
    yield attend(256, bf16, 16, per_head=True, fp8=True)
    yield from work_cases()
    for head_dim in (64, 128, 256):
        yield score_case(head_dim, bf16, "means")
    yield score_case(128, fp32, "means")
    yield score_case(128, bf16, "quest")
    yield score_case(128, bf16, "tokens")
    yield score_case(128, bf16, "tokens", fp8=True)
    for n in (128, 512, 1024, 2048, 4096, configs.MAX_SELECT):
        yield select_case(n)
    yield select_case(1024, rows="i32")
    for n in (512, 4096, configs.MAX_SELECT):
        yield select_case(n, "strided")
    yield select_case(configs.MAX_SELECT, "tokens")
    for kind in ("top", "strided", "tokens"):
        yield select_case(configs.MAX_SELECT, kind, slots=configs.MAX_SELECT)
    for fp8 in (False, True):
        yield append_case("step", bf16, fp8=fp8)
        yield append_case("step", bf16, head_dim=256, heads=64, fp8=fp8)
        yield append_case("step", bf16, head_dim=256, heads=128, fp8=fp8)
        for dtype, head_dim in ((bf16, 128), (fp32, 128), (fp32, 256)):
            yield append_case("prompt", dtype, head_dim, fp8=fp8)
    yield append_case("step", fp32, head_dim=256, heads=128)
