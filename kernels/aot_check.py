"""Compile every shipped kernel for Hopper (sm_90) on a machine without a GPU, and hold the result to limits.

    python kernels/aot_check.py [--json FILE] [--sm 80 89 90 100 120] [LAUNCH ...]

For each launch in `aot_cases.py`, those of `EVERYWHERE` for other architectures, or those named: registers a thread and spilled bytes as NVIDIA's
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
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import triton
from aot_cases import EVERYWHERE, Case, cases
from kinetics_kernels import configs, select
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability
from triton.compiler import ASTSource

SCHEDULERS = 4  # per multiprocessor; each starts one instruction of one warp a cycle
BYTES_A_CYCLE = 4.3e12 / 132 / 1.83e9  # for one multiprocessor of an H200: a copy's bandwidth, at 1.83 GHz
ROUNDS = 15  # of bisection, about the mean for 1024 normal scores (NOTES.md)
NVIDIA = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


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
    sm: int = 90

    @property
    def faults(self) -> list[str]:
        found = []
        if self.spill_bytes:
            found.append(f"{self.spill_bytes} bytes spilled")
        limit = 1024 * (configs.MULTIPROCESSORS[self.sm].shared_kb - 1)
        if self.shared_bytes > limit:
            found.append(f"{self.shared_bytes} bytes of shared memory, {limit} at most")
        if self.programs_per_sm < self.least_programs:
            fits = f"{self.programs_per_sm} programs fit a multiprocessor"
            found.append(f"{fits}, {self.least_programs} wanted")
        if self.most_issue is not None and self.issue > self.most_issue:
            found.append(f"instructions take {self.issue:.0%} of the time, {self.most_issue:.0%} at most")
        return found


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


def compile_case(case: Case, sm: int = 90) -> Row:
    """Compile for an architecture as a launch would: aligned pointers, ":16" for multiples of 16.

    The limits of ``Row`` that a Hopper's bandwidth sets are for sm_90; elsewhere one program must fit, unspilled.
    """
    names = case.kernel.arg_names
    signature = {a: "constexpr" if a in case.const else case.types[a].removesuffix(":16") for a in names}
    constants = {(names.index(a),): value for a, value in case.const.items()}
    aligned = [a for a, kind in case.types.items() if kind.startswith("*") or kind.endswith(":16")]
    attrs = {(names.index(a),): [["tt.divisibility", 16]] for a in aligned}
    source = ASTSource(fn=case.kernel, signature=signature, constexprs=constants, attrs=attrs)
    options = {"num_warps": case.warps, "num_stages": case.stages}
    made = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        file, binary = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        file.write_text(made.asm["ptx"])
        command = [
            get_ptxas(sm).path,
            "-v",
            f"--gpu-name={sm_arch_from_capability(sm)}",
            str(file),
            "-o",
            str(binary),
        ]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        loop, issue = issued(case, binary) if sm == 90 else (0, None)
    registers = int(re.search(r"Used (\d+) registers", report)[1])  # type: ignore[index]
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    spilled = int(spills[1]) + int(spills[2])  # type: ignore[index]
    fit = configs.programs_per_sm(registers, made.metadata.shared, case.warps, sm)
    least, most = (case.least, case.most) if sm == 90 else (1, None)
    return Row(case.name, case.warps, case.stages, registers, spilled, made.metadata.shared, fit, least, loop, issue, most,
               sm)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table as JSON")
    known_sm = sorted(configs.MULTIPROCESSORS)
    parser.add_argument(
        "--sm", type=int, nargs="+", default=[90], choices=known_sm, help="architectures (default: 90)"
    )
    parser.add_argument("launches", nargs="*", metavar="LAUNCH", help="as the table names it (default: all)")
    args = parser.parse_args(argv)
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("aot_check compiles kernels, so TRITON_INTERPRET must not be 1")
    known = {case.name: case for case in cases()}
    if unknown := [name for name in args.launches if name not in known]:
        sys.exit(f"launches must be among those of the table, got {', '.join(unknown)}")
    print(f"triton {triton.__version__}")
    print(f"{'kernel':34s}  sm warps stages registers spills  shared per SM  loop issue")
    names = args.launches or (known if args.sm == [90] else EVERYWHERE)
    rows = []
    for sm, name in product(args.sm, names):
        if sm < 89 and "fp8" in name:
            continue  # it has no instruction for it
        row = compile_case(known[name], sm)
        rows.append(row)
        print(f"{row.kernel:34s} {sm:3d} {row.warps:5d} {row.stages:6d} {row.registers:9d} {row.spill_bytes:6d} "
              f"{row.shared_bytes:7d} {row.programs_per_sm:6d} {row.loop:5d} {row.issue or 0:5.0%} "
              f"{'; '.join(row.faults)}", flush=True)  # fmt: skip
    if args.json:
        whole = {"triton": triton.__version__, "rows": [asdict(row) for row in rows]}
        part = args.json.with_name(args.json.name + ".part")
        part.write_text(json.dumps(whole, indent=1) + "\n")
        part.replace(args.json)
    failed = [row for row in rows if row.faults]
    print(f"{len(rows)} kernels, {len(failed)} over a limit")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
