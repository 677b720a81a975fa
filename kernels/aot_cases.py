"""Every launch in `kinetics_kernels.configs`, each kernel in each of its forms, as `aot_check.py` compiles them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
from kinetics_kernels import append, configs, dense, merge, score, select

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
    x = DTYPES[dtype]
    types = {name: f"*{x}" for name in ("q_ptr", "k_ptr", "v_ptr", "out_ptr")}
    types |= dict(table_ptr="*i32", tokens_ptr="*i32", lse_ptr="*fp32", scale="fp32", table_len="i32")
    types |= dict(page_stride="i32:16", head_stride="i32:16")
    const = dict(G=group, GP=16, D=head_dim, PAGE=page, TILE=tile, PER_HEAD=per_head, UPCAST=False,
                 PAIRS=configs.in_pairs(head_dim, dtype, fp8=fp8), STAGES=stages)  # fmt: skip
    x += stored(types, const, fp8, "k_ptr", "v_ptr", "k_scale_ptr", "v_scale_ptr")
    if const["PAIRS"]:
        types |= dict(k_ptr="*i16", v_ptr="*i16")
    name = f"attend {x} D={head_dim} page={page}" + (" selected" if per_head else "")
    plain = dtype == torch.float32  # multiplied without tensor cores
    size = (1 if fp8 else dtype.itemsize) * 2 * head_dim * tile
    most = None if plain or head_dim < 64 else 0.8
    return Case(name, dense._attend_kernel, types, const, warps, stages, 1 if plain else 3, size, most)


def score_case(head_dim: int, dtype: torch.dtype, kind: str, *, fp8: bool = False) -> Case:
    tile, warps, stages = configs.score_launch(head_dim, quest=kind == "quest")
    x = DTYPES[dtype]
    types = dict(q_ptr=f"*{x}", key_ptr=f"*{x}", low_ptr=f"*{x}", table_ptr="*i32", lengths_ptr="*i32",
                 score_ptr="*fp32", scale="fp32", table_len="i32:16", rows="i32:16")  # fmt: skip
    const = dict(G=4, GP=16, D=head_dim, UPCAST=False, PAGE=16, BLOCK=32, TILE=tile, CHUNK=configs.SCORE_CHUNK,
                 QUEST=kind == "quest", TOKENS=kind == "tokens", STAGES=stages)  # fmt: skip
    x += stored(types, const, fp8, "key_ptr", "low_ptr", "k_scale_ptr")
    plain = dtype == torch.float32
    size = (1 if fp8 else dtype.itemsize) * (2 if kind == "quest" else 1) * head_dim * tile
    limits = (2, size) if plain else (4, size, 0.8)
    name = f"score {kind} {x} D={head_dim}"
    return Case(name, score._score_kernel, types, const, warps, stages, *limits)


def select_case(n: int, kind: str = "top", *, rows: str = "i32:16") -> Case:
    """``rows``, the scores a head may have: most often a multiple of 16, which Triton compiles another program for."""
    pointers = ("lengths_ptr", "table_ptr", "block_ptr", "page_ptr", "tokens_ptr")
    types = {"score_ptr": "*fp32"} | {name: "*i32" for name in pointers}
    types |= dict(table_len="i32:16", rows=rows, sink="i32", window="i32", K="i32")
    span = 4 if kind == "strided" else 1
    const = dict(N_BLOCKS=16, SPAN=span, BLOCK=1 if kind == "tokens" else 32, PAGE=16,
                 TOKENS=kind == "tokens", N=n, KP=32)  # fmt: skip
    name, warps = f"select {kind} N={n}" + ("" if rows == "i32:16" else " odd"), configs.select_warps(n, span)
    size, most = (n * 128 * 2, 0.1) if kind == "top" and 512 <= n <= 4096 else (0, None)
    least = 1 if n > (4096 if kind == "top" else 2048) else 2
    return Case(name, select._select_kernel, types, const, warps, 3, least, size, most)


def append_case(
    kind: str, dtype: torch.dtype, head_dim: int = 128, heads: int = 8, *, fp8: bool = False
) -> Case:  # fmt: skip
    x = DTYPES[dtype]
    types = {name: f"*{x}" for name in ("k_new", "v_new", "k", "v", "mean", "low", "high")}
    types |= dict(counts="*i32", open_sum="*fp32", table="*i32", lengths="*i32")
    types |= dict(table_len="i32", max_blocks="i32")
    const: dict[str, int | bool | None] = dict(D=head_dim, PAGE=16, BLOCK=32, BOUNDS=True)
    types |= {name: "*fp16" for name in ("mean", "low", "high") if fp8}
    x += stored(types, const, fp8, "k", "v", "k_scale", "v_scale")
    if kind == "step":
        types["n_kv"], const["HEADS"], const["COUNTS"] = "i32", heads, True
        name, warps = (
            f"append step {x} D={head_dim} heads={heads}",
            configs.step_warps(heads * head_dim, fp8=fp8),
        )
        return Case(name, append.append_step_kernel, types, const, warps, 3, 1)
    types["T"], const["TILE"], const["REFRESH"] = "i32", configs.PROMPT_TILE, False
    return Case(f"append prompt {x} D={head_dim}", append.append_prompt_kernel, types, const, 4, 3, 4)


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
    types = dict(part_ptr="*fp32", part_lse_ptr="*fp32", out_ptr="*bf16", lse_ptr="*fp32", S="i32")
    for splits in (8, configs.MAX_SPLITS):
        const: dict[str, int | bool | None] = dict(SP=splits, D=128)
        yield Case(f"merge {splits} splits D=128", merge._merge_kernel, types, const, 4, 3, 1)
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
    types = dict(lengths_ptr="*i32", score_ptr="*fp32", seed="i32", rows="i32")
    yield Case("score random", score._random_kernel, types, dict(BLOCK=32, TILE=256), 1, 3, 4)
    yield append_case("step", bf16)
    yield append_case("step", bf16, head_dim=256, heads=64)
    yield append_case("prompt", bf16)
    yield append_case("step", bf16, fp8=True)
    yield append_case("step", bf16, head_dim=256, heads=64, fp8=True)
    yield append_case("prompt", bf16, fp8=True)
