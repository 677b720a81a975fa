"""The runner that turns suites of cases into rows, each with its limit and its provenance.

A suite is a list of cases (plain dicts: the key columns of a row), a prediction (bytes, FLOP and the limit they
set) and a function that measures one case. Rows go to ``<out>/<gpu>/<suite>.parquet``, rewritten whole after
every case. A case whose key, suite version and kernel source already have a row is not measured again; rows of
other versions or sources stay beside it, labelled by theirs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from kinetics_lab.errors import report, require, sentence, unknown
from kinetics_lab.files import write_table
from kinetics_lab.measure.bench import HOST, MOVED, Bench, Row, kernels_digest
from kinetics_lab.measure.limits import GPUS, Rates, datasheet_rates, listed, memory_of
from kinetics_lab.measure.timers import WARM_S, CudaTimer, rounds, this_gpu

SHARE = 0.95  # of the memory that was free, which a case may take
#: Columns that may be empty.
TEXTS = ["error", "driver", "throttle", "flashinfer", "flash_attn", "transformers"]


def measured_rates(out: Path, gpu: str) -> Rates:
    """The newest rates of the roofline suite under ``out``; the datasheet's before it has run.

    A GPU's bandwidth is the larger of what copies and reads reach: attention hardly writes. (On a host that of copies.)
    """
    table, known = read_rows(out, gpu, "roofline"), ["bandwidth", "matrix_rate"]
    found = table.dropna(subset=known).sort_values("date") if "matrix_rate" in table else table[:0]
    if found.empty:
        return datasheet_rates(gpu)
    bandwidth, matrix = found[known].iloc[-1].tolist()
    reads = table[table["kind"].eq("read") & table["device"].eq("cuda")].sort_values("date")
    reads = reads.groupby("size").tail(1)
    return Rates(max([bandwidth, *(reads["bytes"] / reads["time_us"] * 1e6).dropna()]), matrix, "measured")


@dataclass(frozen=True)
class Suite:
    """What is measured. Raise ``version`` when a column changes its meaning: older rows then stay apart.

    ``cases(on_gpu)``: key columns; tiny ones for the interpreter. ``host``: those for a computer's own processor, if
    any. ``filling(memory)``: those for a GPU with so many bytes free; without it ``cases`` are made to fit.
    ``predict(case, rates)``: ``bytes``, ``flops``, ``limit_us`` and others, with ``memory_bytes`` (peak) and
    ``round_us`` (limit of everything one round times) for planning. ``measure(case, bench)``: measured columns.
    ``headline``: the column the limit belongs to.
    """

    name: str
    version: int
    headline: str
    cases: Callable[[bool], list[Row]]
    predict: Callable[[Row, Rates], Row]
    measure: Callable[[Row, Bench], Row]
    host: Callable[[], list[Row]] = list
    filling: Callable[[float], list[Row]] | None = None

    @property
    def stamp(self) -> Row:
        """The columns by which a row belongs to this suite."""
        return {"suite": self.name, "suite_version": self.version}

    def cases_on(self, device: str, memory: float | None = None) -> list[Row]:
        """The cases on "cuda", on the host, or in a rehearsal. ``memory``: a GPU's, bytes; by default what this one has free."""
        if device != "cuda":
            return self.host() if device == HOST else self.cases(False)
        memory = memory or (this_gpu() or ("", memory_of("nvidia-h200")))[1]
        return self.filling(memory) if self.filling else self.fitting(SHARE * memory)

    def fitting(self, memory: float) -> list[Row]:
        """The cases, their batch (or size) halved until they take at most ``memory`` bytes; those that never do are left out."""
        found: list[Row] = []
        for case in self.cases(True):
            size = "batch" if "batch" in case else "size"
            while (too_large := self.needs(case) > memory) and case.get(size, 1) > 1:
                case = case | {size: case[size] // 2}
            if not too_large and case not in found:
                found.append(case)
        return found

    def needs(self, case: Row) -> float:
        """Bytes that a case takes at most."""
        return float(self.predict(case, Rates(1.0, 1.0, "none"))["memory_bytes"])


def expected_seconds(predicted: Row) -> float:
    """Seconds a case takes: set-up, filling memory, warming, repetitions at 70 % of the limit; and PyTorch's compiler."""
    limit_us = predicted["round_us"] if math.isfinite(predicted["round_us"]) else 0.0  # no rates: no estimate
    round_s = limit_us * 1e-6 / 0.7 + 0.5e-3
    timed_s = WARM_S + predicted["memory_bytes"] / 0.4e12 + (rounds(round_s, CudaTimer) + 6) * round_s
    return 0.4 + timed_s + predicted.get("compile_s", 0.0)


def read_rows(out: Path, gpu: str, suite: str) -> pd.DataFrame:
    """A suite's rows, none before it has run; ``current`` marks those of the kernels' source as it is now.

    One file can hold rows of several suite versions and kernel sources: never average over them.
    """
    path = Path(out) / gpu / f"{suite}.parquet"
    if not path.is_file():
        return pd.DataFrame()
    table = pd.read_parquet(path)
    lacks = sorted({"device", "kernels_digest", "date", "error", "gpu", "suite_version"} - {*table})
    require(not lacks, f"{path} must have the columns of measured rows; it lacks some", lacks)
    now = {device: kernels_digest(device) for device in table["device"].unique()}
    return table.assign(current=table["kernels_digest"].replace(MOVED) == table["device"].map(now))


def write_rows(path: Path, rows: list[Row]) -> None:
    """All rows of a suite at once: whenever the run is stopped, the file is whole, the old one or the new."""
    table = pd.DataFrame(rows)
    texts = table.columns.intersection(TEXTS)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(path, table.astype(dict.fromkeys(texts, "string")))  # also while every value is missing


def kept_rows(suite: Suite, out: Path, bench: Bench) -> list[Row]:
    """All rows that its file has, as they were written."""
    table = read_rows(out, bench.folder, suite.name).drop(columns="current", errors="ignore")
    return [dict(zip(table.columns, values, strict=True)) for values in table.itertuples(index=False)]


def is_of(row: Row, case: Row, suite: Suite, bench: Bench) -> bool:
    """Whether a row is of this case, in this version of the suite and of the kernels."""
    wanted = {**case, **suite.stamp, "kernels_digest": bench.code["kernels_digest"]}
    return all(row.get(key) == value for key, value in wanted.items())


def left(suite: Suite, out: Path, bench: Bench) -> tuple[list[Row], list[Row]]:
    """The cases that are to be measured: those without a row of this code, and those that have failed before."""
    rows, fresh, failed = kept_rows(suite, out, bench), list[Row](), list[Row]()
    for case in suite.cases_on(bench.device):
        errors = [isinstance(row["error"], str) for row in rows if is_of(row, case, suite, bench)]
        if all(errors):
            (failed if errors else fresh).append(case)
    return fresh, failed


def run_suite(
    suite: Suite, out: Path, bench: Bench, deadline: float = math.inf, say: Callable[[str], None] = report,
    todo: list[Row] | None = None,
) -> bool:  # fmt: skip
    """Measure ``todo``, or all that is :func:`left`, a line of progress each; True when none is left of it.

    A case that fails, or that the memory cannot hold, becomes a row with one sentence in ``error``; the next run
    tries it again, after the others. No case starts that would pass ``deadline`` (``time.monotonic()``).
    Raises ``RuntimeError`` only where the GPU, or PyTorch in this process, is of no more use.
    """
    rates = datasheet_rates(bench.folder) if suite.name == "roofline" else measured_rates(out, bench.folder)
    rows, count = kept_rows(suite, out, bench), len(suite.cases_on(bench.device))
    rated = {
        "rate_bytes_per_s": rates.bandwidth,
        "rate_flops_per_s": rates.matrix,
        "rates_from": rates.source,
    }
    if todo is None:
        todo = [case for cases in left(suite, out, bench) for case in cases]
    say(f"{suite.name}: {len(todo)} of {count} cases to measure, limits from rates: {rates.source}")
    for number, case in enumerate(todo, 1):
        start, predicted = time.monotonic(), suite.predict(case, rates)
        if start + expected_seconds(predicted) > deadline:
            rest = f"{len(todo) - number + 1} cases are left; the same command goes on from here"
            say(f"{suite.name}: the time is up, {rest}")
            return False
        measured, error = _measure(suite, case, predicted, bench)
        predicted = {key: value for key, value in predicted.items() if key not in ("round_us", "compile_s")}
        result = f"error: {error}"
        if error is None:
            us = measured[suite.headline]
            share = predicted["limit_us"] / us
            measured |= {"share_of_limit": share, "bytes_per_s": predicted["bytes"] / us * 1e6}
            result = f"{us:.1f} us, {share:.0%} of the limit"
        row = case | predicted | rated | measured | {"error": error} | suite.stamp | bench.provenance()
        row["date"] = datetime.now(UTC).isoformat(timespec="seconds")
        rows = [old for old in rows if not is_of(old, case, suite, bench)] + [row]
        write_rows(out / bench.folder / f"{suite.name}.parquet", rows)
        say(f"{suite.name} {number}/{len(todo)} {words(case)}: {result} ({time.monotonic() - start:.1f} s)")
        if error and not bench.works():
            kept = "the row is kept, and the same command goes on with the other cases"
            after = f"{suite.name} {words(case)}: {error}; {kept}"
            raise RuntimeError(f"nothing more can be measured in this process after {after}")
    return True


def _measure(suite: Suite, case: Row, predicted: Row, bench: Bench) -> tuple[Row, str | None]:
    """Measured columns and no error, or none and one sentence."""
    try:
        if not bench.has_memory(predicted["memory_bytes"]):
            return {}, f"needs {predicted['memory_bytes'] / 1e9:.1f} GB of memory, more than is free"
        return suite.measure(case, bench), None
    except Exception as error:  # whatever it is, it is recorded: a case without a row would look unmeasured
        return {}, sentence(error)


def words(case: Row) -> str:
    """A case's key in one line."""
    return " ".join(f"{key}={value}" for key, value in case.items())


def dry_run(suites: Iterable[Suite], out: Path, gpu: str = "") -> list[str]:
    """Lines of a dry run: every case with limit, expected seconds and memory. Needs no GPU and no PyTorch.

    ``gpu``: "nvidia-a100"; by default this machine's, or else "nvidia-h200".
    """
    if gpu and not listed(gpu):
        raise unknown("gpu", gpu, GPUS)
    gpu, memory = (gpu, memory_of(gpu)) if gpu else this_gpu() or ("nvidia-h200", memory_of("nvidia-h200"))
    rates = measured_rates(out, gpu)
    lines = [f"limits of {gpu} at {rates}; seconds are estimated from them, before kernels are compiled"]
    total = 0.0
    for suite in suites:
        each = [(case, suite.predict(case, rates)) for case in suite.cases_on("cuda", memory)]
        seconds = sum(expected_seconds(found) for _, found in each)
        peak = max(found["memory_bytes"] for _, found in each) / 1e9
        total += seconds
        lines.append(f"{suite.name}: {len(each)} cases, {seconds:.0f} s, up to {peak:.1f} GB")
        for case, found in each:
            needs = f"{expected_seconds(found):.1f} s, {found['memory_bytes'] / 1e9:.1f} GB"
            lines.append(f"  {words(case)}: limit {found['limit_us']:.1f} us, {needs}")
    return [*lines, f"all: {total:.0f} s = {total / 60:.1f} min"]
