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
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import triton

MAX_SELECT = 8192  # scores one selection program holds in registers
SELECT_SLOTS = 1024  # chosen blocks whose pages one step looks up


class Launch(NamedTuple):
    """Rows of K (or scores) in one tile, warps per program, pipeline stages."""

    tile: int
    warps: int
    stages: int


# head_dim -> launch, for 16-bit queries. A K tile is tile * head_dim * 2 bytes, 16 KB from 128 on; of fp8 half.
ATTEND = {
    16: Launch(64, 4, 5),
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
LEAST_TILES = 4  # of a part: its output, written and read in fp32, stays a few per cent of keys and values
LIST_ROWS, LIST_CHUNK, LIST_WARPS = 16, 512, 8  # requests a program lists, and compares them with at a time
JOIN_PARTS = 32  # outputs that one step of the join adds


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


def step_launch(n_kv: int, head_dim: int, stored: torch.dtype) -> tuple[int, int]:
    """KV heads that the program which appends one token takes at a time, and its warps: 16 numbers a thread.

    At most 32 warps; 16 for fp32, and for fp8, whose rounding takes registers that 32 warps do not have.
    """
    most = 32 if stored.itemsize == 2 else 16
    heads = min(triton.next_power_of_2(n_kv), 512 * most // head_dim)
    return heads, min(max(heads * head_dim // 512, 1), most)


def prompt_tile(head_dim: int, stored: torch.dtype) -> int:
    """Tokens that one step of the prompt kernel copies."""
    return PROMPT_TILE // 2 if stored == torch.float32 and head_dim == 256 else PROMPT_TILE


class Multiprocessor(NamedTuple):
    """What one multiprocessor holds at once: threads, programs, KB of shared memory, of which a program has 1 less."""

    threads: int
    programs: int
    shared_kb: int


# Compute capability -> its multiprocessor (CUDA programming guide, technical specifications); each has 65536 registers.
MULTIPROCESSORS = {
    80: Multiprocessor(2048, 32, 164),
    86: Multiprocessor(1536, 16, 100),
    89: Multiprocessor(1536, 24, 100),
    90: Multiprocessor(2048, 32, 228),
    100: Multiprocessor(2048, 32, 228),
    120: Multiprocessor(1536, 24, 100),
}


def programs_per_sm(registers: int, shared: int, warps: int, capability: int) -> int:
    """Programs of ``warps`` warps, ``registers`` a thread and ``shared`` bytes that one multiprocessor holds.

    Registers are given out in eights, and 1 KB of shared memory a program is the driver's. A capability that is not
    in the table is taken for the one before.
    """
    sm = MULTIPROCESSORS[max(known for known in MULTIPROCESSORS if known <= capability)]
    by_registers = 65536 // (-(-registers // 8) * 8 * 32 * warps)
    return min(by_registers, sm.threads // (32 * warps), sm.programs, 1024 * sm.shared_kb // (shared + 1024))


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of the device; an H200's 132 where there is no GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


_resident: dict[Any, int] = {}


def resident(kernel: Any, arguments: Sequence[Any], how: Mapping[str, Any], device: torch.device) -> int:
    """Programs of a kernel, as compiled for these arguments, that the GPU runs at once; 3 a multiprocessor without one.

    Asked for once for every way ``how`` a kernel is launched; dtypes may stand for tensors.
    """
    if device.type != "cuda" or interpreted():
        return 3 * multiprocessors(device)
    key = (device, kernel, *how.items(), *(getattr(x, "dtype", None) for x in arguments))
    if key not in _resident:
        compiled = kernel.warmup(*arguments, grid=(1,), **how)
        compiled.run  # noqa: B018 (loads it, which is when the driver says how many registers it has)
        major, minor = torch.cuda.get_device_capability(device)
        each = programs_per_sm(
            compiled.n_regs, compiled.metadata.shared, how["num_warps"], 10 * major + minor
        )
        _resident[key] = each * multiprocessors(device)
    return _resident[key]


def interpreted() -> bool:
    """True where TRITON_INTERPRET=1 runs kernels as NumPy on the CPU.

    Its ``tl.dot`` gives wrong numbers for bfloat16 and says nothing. Kernels that multiply matrices therefore
    take a constexpr UPCAST, set only here, that converts bf16 to fp32 first; compiled code never does.
    """
    return bool(triton.knobs.runtime.interpret)
