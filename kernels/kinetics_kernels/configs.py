"""Launch numbers of every kernel: one small table, chosen by shape, instead of autotuning at run time.

Autotuning would time kernels inside the first decode step, differ from run to run, and break a CUDA-graph
capture. The numbers are starting points from compiled code (registers, shared memory, `aot_check.py`);
NOTES.md says which of them a GPU has confirmed.

How deep is the pipeline? A page id must arrive before the keys it points to can be asked for. Triton then
gives each of the two loads half the stages: ``stages = 5`` holds 2 tiles of keys and values ahead of the
arithmetic.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton

PROGRAMS_PER_SM = 3  # attention programs that fit one multiprocessor at once: splits fill one wave
MAX_SPLITS = 64
MAX_SELECT = 8192  # scores one selection program holds in registers


class Launch(NamedTuple):
    """Rows of K (or scores) in one tile, warps per program, pipeline stages."""

    tile: int
    warps: int
    stages: int


# head_dim -> launch, for 16-bit queries. A K tile is tile * head_dim * 2 bytes, 16 KB from 128 on; of fp8 half.
ATTEND = {
    16: Launch(128, 4, 5),
    32: Launch(128, 4, 5),
    64: Launch(128, 4, 5),
    128: Launch(64, 4, 5),
    256: Launch(32, 4, 5),
}
# A checking precision, multiplied without tensor cores: at D = 128 a tile of 32 already spills registers.
ATTEND_FP32 = Launch(16, 4, 3)
ATTEND_FP32_FP8 = Launch(16, 4, 1)  # and there a pipeline spills, too
SCORE_ELEMENTS = 8192  # of all search keys in one tile
SCORE_CHUNK = 256  # rows one scoring program walks through, in tiles
PROMPT_TILE = 32  # tokens one step of the prompt kernel copies


def attend_launch(head_dim: int, dtype: torch.dtype, *, fp8: bool) -> Launch:
    """Tile, warps and stages of the attention kernel for queries of ``dtype``."""
    if dtype == torch.float32:
        return ATTEND_FP32_FP8 if fp8 else ATTEND_FP32
    return ATTEND[head_dim]


def in_pairs(head_dim: int, dtype: torch.dtype, *, fp8: bool) -> bool:
    """Whether attention reads fp8 as 16-bit words. At 16 and 32 that takes more registers; fp32 has no need."""
    return fp8 and dtype != torch.float32 and head_dim >= 64


def score_launch(head_dim: int, *, quest: bool) -> Launch:
    """Tile, warps and stages of the scoring kernel; Quest has two search keys a block."""
    return Launch(SCORE_ELEMENTS // head_dim // (2 if quest else 1), 4, 3)


def select_warps(n: int, span: int = 1) -> int:
    """Warps of a selection program over ``n`` scores: 16 scores a thread, or 8 where windows need registers, too.

    Each warp also starts some 600 instructions whatever ``n`` is; with more than 16 scores too few warps fit a
    multiprocessor to hide that a round waits for the one before.
    """
    return max(n // 512 if span == 1 else min(n // 256, 16), 1)


def step_warps(n: int, *, fp8: bool) -> int:
    """Warps of the program that appends one token, ``n`` numbers of all its KV heads: 16 a thread, 32 at most.

    Rounding to fp8 takes registers, of which 32 warps have too few.
    """
    return min(max(n // 512, 1), 16 if fp8 else 32)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of the device; an H200's 132 where kernels are interpreted on the CPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def choose_splits(rows: int, max_tokens: int, tile: int, device: torch.device) -> int:
    """Programs that share one (request, KV head): enough to fill the GPU, never fewer than 4 tiles each.

    Decided from shapes alone: the live lengths stay on the GPU, where each program takes its part of them.
    """
    wanted = PROGRAMS_PER_SM * multiprocessors(device) // rows
    return max(1, min(wanted, triton.cdiv(max_tokens, 4 * tile), MAX_SPLITS))


def interpreted() -> bool:
    """True where TRITON_INTERPRET=1 runs kernels as NumPy on the CPU.

    Its ``tl.dot`` gives wrong numbers for bfloat16 and says nothing. Kernels that multiply matrices therefore
    take a constexpr UPCAST, set only here, that converts bf16 to fp32 first; compiled code never does.
    """
    return bool(triton.knobs.runtime.interpret)
