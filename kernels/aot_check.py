"""Compile every shipped kernel for Hopper (sm_90) on a machine without a GPU, and hold the result to limits.

    python kernels/aot_check.py [--json FILE]

For each kernel and launch in `kinetics_kernels.configs`: registers a thread and spilled bytes as NVIDIA's
assembler (ptxas, part of the Triton wheel) reports them, shared memory, how many programs fit on one
multiprocessor, and the instructions of its inner loop (nvdisasm, likewise). Instructions take time whatever memory
does: a multiprocessor starts four a cycle. Exit code 1 if anything spills, asks for more shared memory than there is,
leaves room for too few programs, or would take too much of its time for starting instructions.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

if os.environ.get("TRITON_INTERPRET") == "1":
    sys.exit("aot_check compiles kernels, so TRITON_INTERPRET must not be 1")

import torch
import triton
from kinetics_kernels import append, configs, dense, merge, score, select
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

SHARED_LIMIT = 227 * 1024  # bytes one program may ask for on sm_90; a multiprocessor has 228 KB
REGISTERS = 65536  # per multiprocessor
THREADS = 2048
SCHEDULERS = 4  # per multiprocessor; each starts one instruction of one warp a cycle
BYTES_A_CYCLE = 4.3e12 / 132 / 1.83e9  # for one multiprocessor of an H200: a copy's bandwidth, at 1.83 GHz
ROUNDS = 15  # of bisection, about the mean for 1024 normal scores (NOTES.md)
DTYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
NVIDIA = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


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


@dataclass(frozen=True)
class Row:
    """What the compiler made of it. Bytes; registers are per thread.

    ``loop``: instructions a warp starts in one pass of the inner loop, 0 without one. ``issue``: the least time it
    takes to start them all (selection: the whole program, ``ROUNDS`` passes), over the time of the case's bytes.
    """

    kernel: str
    warps: int
    stages: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    programs_per_sm: int
    least_programs: int
    loop: int = 0
    issue: float | None = None
    most_issue: float | None = None

    @property
    def faults(self) -> list[str]:
        found = []
        if self.spill_bytes:
            found.append(f"{self.spill_bytes} bytes spilled")
        if self.shared_bytes > SHARED_LIMIT:
            found.append(f"{self.shared_bytes} bytes of shared memory, {SHARED_LIMIT} at most")
        if self.programs_per_sm < self.least_programs:
            fits = f"{self.programs_per_sm} programs fit a multiprocessor"
            found.append(f"{fits}, {self.least_programs} wanted")
        if self.most_issue is not None and self.issue > self.most_issue:
            found.append(f"instructions take {self.issue:.0%} of the time, {self.most_issue:.0%} at most")
        return found


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


def machine_code(file: Path) -> tuple[list[str], list[tuple[int, int]]]:
    """Instructions of a compiled kernel, and its branches: from which instruction to which."""
    command = [str(NVIDIA / "nvdisasm"), "-c", str(file)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    code: list[str] = []
    label: dict[str, int] = {}
    for line in text.splitlines():
        if at := re.match(r"\s*(\.L_x_\d+):", line):
            label[at[1]] = len(code)
        elif found := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            code.append(found[1])
    jumps = [(i, re.search(r"\bBRA\b.*(\.L_x_\d+)", line)) for i, line in enumerate(code)]
    return code, [(i, label[to[1]]) for i, to in jumps if to]


def issued(case: Case, file: Path) -> tuple[int, float | None]:
    """``Row.loop`` and ``Row.issue`` of a compiled case."""
    code, branches = machine_code(file)

    def work(first: int, stop: int) -> int:
        return sum("NOP" not in line for line in code[first:stop])

    loops = [(to, at + 1) for at, to in branches if to < at]
    if selects := case.kernel is select._select_kernel:  # it counts with REDUX; its other loops do not matter
        loops = [(a, b) for a, b in loops if any("REDUX" in line for line in code[a:b])]
    if not loops:
        return 0, None
    first, stop = max(loops, key=lambda ends: work(*ends))
    loop = program = work(first, stop)
    if selects:  # the longest branch after it skips what only equals at the threshold need
        skip = max(((at + 1, to) for at, to in branches if stop <= at < to), key=lambda ends: work(*ends))
        program = ROUNDS * loop + work(0, first) + work(stop, len(code)) - work(*skip)
    cycles = program * case.warps / SCHEDULERS
    return loop, round(cycles * BYTES_A_CYCLE / case.bytes, 3) if case.bytes else None


def compile_case(case: Case) -> tuple[Row, str]:
    """Compile for sm_90 as a launch would: aligned pointers, ":16" for multiples of 16. The row and the PTX."""
    names = case.kernel.arg_names
    signature = {a: "constexpr" if a in case.const else case.types[a].removesuffix(":16") for a in names}
    constants = {(names.index(a),): value for a, value in case.const.items()}
    aligned = [a for a, kind in case.types.items() if kind.startswith("*") or kind.endswith(":16")]
    attrs = {(names.index(a),): [["tt.divisibility", 16]] for a in aligned}
    source = ASTSource(fn=case.kernel, signature=signature, constexprs=constants, attrs=attrs)
    options = {"num_warps": case.warps, "num_stages": case.stages}
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    ptx = made.asm["ptx"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        file.write_text(ptx)
        binary = Path(folder) / "kernel.cubin"
        command = [str(NVIDIA / "ptxas"), "-v", "--gpu-name=sm_90a", str(file), "-o", str(binary)]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        loop, issue = issued(case, binary)
    registers = int(re.search(r"Used (\d+) registers", report)[1])  # type: ignore[index]
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    shared, threads = made.metadata.shared, 32 * made.metadata.num_warps
    allotted = (
        -(-registers // 8) * 8
    )  # registers are given out in eights, and 1 KB of shared memory is the driver's
    fit = [
        REGISTERS // (allotted * threads),
        THREADS // threads,
        32,
        (SHARED_LIMIT + 1024) // (shared + 1024),
    ]
    spilled = int(spills[1]) + int(spills[2])  # type: ignore[index]
    row = Row(
        case.name,
        case.warps,
        case.stages,
        registers,
        spilled,
        shared,
        min(fit),
        case.least,
        loop,
        issue,
        case.most,
    )
    return row, ptx


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table as JSON")
    args = parser.parse_args(argv)
    print(f"triton {triton.__version__}, sm_90")
    print(f"{'kernel':34s} warps stages registers spills  shared per SM  loop issue")
    rows = []
    for case in cases():
        row, _ = compile_case(case)
        rows.append(row)
        print(f"{row.kernel:34s} {row.warps:5d} {row.stages:6d} {row.registers:9d} {row.spill_bytes:6d} "
              f"{row.shared_bytes:7d} {row.programs_per_sm:6d} {row.loop:5d} {row.issue or 0:5.0%} "
              f"{'; '.join(row.faults)}", flush=True)  # fmt: skip
    if args.json:
        whole = {"triton": triton.__version__, "target": "sm_90", "rows": [asdict(row) for row in rows]}
        part = args.json.with_name(args.json.name + ".part")
        part.write_text(json.dumps(whole, indent=1) + "\n")
        part.replace(args.json)
    failed = [row for row in rows if row.faults]
    print(f"{len(rows)} kernels, {len(failed)} over a limit")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
