"""What the book shows of a GPU: rows that were measured, or the limits of a GPU that nobody has timed yet.

A limit is never shown as a time: :class:`Rows` carries the word for titles and series, and the box that says
where its numbers come from. :func:`fit_time_law` turns times into the constants of the cost law.
"""

from __future__ import annotations

import html
import math
import os
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from kinetics_lab.data import data_dir
from kinetics_lab.errors import lookup, require, unknown
from kinetics_lab.measure.bench import HOST, digest_at
from kinetics_lab.measure.limits import GPUS, Rates, memory_of
from kinetics_lab.measure.runner import measured_rates, read_rows
from kinetics_lab.measure.suites import SUITES, chosen_suites, measure
from kinetics_lab.measure.timers import folder_of

FASTEST = 1.1  # largest share of a limit that a row may reach: what is faster has not done the work


@dataclass(frozen=True)
class Rows:
    """One suite on one GPU; as the last expression of a cell, a box that tells where its numbers come from.

    ``table``: a row for each case, with its key, ``bytes``, ``flops`` and ``limit_us``, and what was timed where
    ``measured``. ``rates``: what new limits divide by. ``label``: "measured" or "predicted", for titles.
    ``folder``: where rows were looked for.
    """

    gpu: str
    title: str
    measured: bool
    table: pd.DataFrame
    rates: Rates
    said: dict[str, str]
    folder: Path | None = None

    @property
    def label(self) -> str:
        return "measured" if self.measured else "predicted"

    def __repr__(self) -> str:
        return "\n".join([self.title, *(f"{term}: {text}" for term, text in self.said.items())])

    def _repr_html_(self) -> str:
        said = ((html.escape(term), html.escape(text)) for term, text in self.said.items())
        lines = "".join(f"<tr><th>{term}</th><td>{text}</td></tr>" for term, text in said)
        title = f'<p class="admonition-title">{html.escape(self.title)}</p>'
        kind = "note" if self.measured else "warning"
        # a table of class dataframe, as the theme paints any other HTML output on white, in the dark, too
        return f'<div class="admonition {kind}">{title}<table class="dataframe">{lines}</table></div>'


def rows(
    gpu: str, suite: str, measurements: str | Path | None = None, remeasure: bool = False, device: str = "cuda"
) -> Rows:  # fmt: skip
    """The rows of ``suite`` that a ``gpu`` ("nvidia-h200") has left, or every case's limit where it left none.

    ``measurements``: the folder of rows, by default the book's own. ``remeasure``: time the suite now, on this
    machine's GPU, whichever it is, into ``measurements`` (by default the folder of this run). ``device`` "host": the
    same of a computer's processor. One file can hold rows of several versions and kernel sources: the newest are
    shown, the others counted.

    Raises ``ValueError`` for an unknown suite, GPU or folder and for rows that no GPU has measured, ``RuntimeError``
    where ``remeasure`` finds no GPU.
    """
    (found,) = chosen_suites(suite, device)
    folder = Path(measurements or data_dir() / "measurements")
    if remeasure:
        run = os.environ.get("KINETICS_RUN_DIR") or tempfile.mkdtemp(prefix="kinetics-")
        folder = Path(measurements or Path(run) / "measurements")
        told = partial(print, flush=True)
        gpu = measure(f"roofline,{suite}", folder, device=device, say=told)[0].parent.name
    rates, memory = measured_rates(folder, gpu), memory_of(gpu)
    there = sorted(path.name for path in folder.glob("*") if path.is_dir())
    if measurements and gpu not in there:
        raise unknown(f"{folder}: gpu", gpu, there or ["none"])
    if gpu not in there and math.isnan(rates.bandwidth):
        raise unknown("gpu", gpu, [*there, *GPUS])
    table = read_rows(folder, gpu, suite)
    require(gpu == folder_of(gpu), "gpu must be lower-case letters and digits with - between them", gpu)
    if len(table):
        require(table["device"] == device, f"{gpu}/{suite}: rows must be of device {device}", table["device"])
        last = table.sort_values(["suite_version", "date"]).iloc[-1]
        version = ["suite_version", "kernels_digest"]
        same = table[version].eq(last[version]).all(axis=1)
        good = table[same & table["error"].isna()].reset_index(drop=True)
        if len(good):
            title = f"Measured on {', '.join(good['gpu'].unique())}"
            said = _provenance(good, table[same], int((~same).sum()), len(found.cases_on(device, memory)))
            return Rows(gpu, title, True, good, rates, said, folder)
    limits = pd.DataFrame([case | found.predict(case, rates) for case in found.cases_on(device, memory)])
    tried = f"; {len(table)} cases were tried and failed: {table['error'].iloc[0]}" if len(table) else ""
    on_gpu, on_host = "make gpu, on a machine with this GPU", "kinetics-lab measure --device host"
    shown = f"the limit of each case of the suite “{suite}”: its bytes and FLOP on {gpu} at {rates}"
    how = on_gpu if device == "cuda" else on_host
    said = {"Shown": shown, "Measured": f"nothing{tried}", "To measure": how}
    return Rows(gpu, "Predicted, not yet measured on this GPU", False, limits, rates, said, folder)


def _provenance(good: pd.DataFrame, kept: pd.DataFrame, others: int, cases: int) -> dict[str, str]:
    """Where rows come from, and what is missing among them."""
    suite, on_gpu = good["suite"].iloc[0], good["device"].eq("cuda").all()
    names = ["driver", "torch", "triton", "flashinfer", "flash_attn", "transformers", "commit"]
    found = good.reindex(columns=names).apply(
        lambda column: ", ".join(sorted(set(column.dropna().astype(str)))) or "none"
    )
    libraries = found.drop("commit") if on_gpu else found[["torch", "transformers"]]
    days, failed = sorted(good["date"].str[:10]), kept["error"].dropna()
    what = "kernels have" if on_gpu else "timed code has"
    said = {
        "Versions": ", ".join(f"{name} {value}" for name, value in libraries.items()),
        "Commit": found["commit"] + ", with changes" * bool(good["dirty"].eq(True).any()),
        "Date": days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}",
        "Clocks": _clocks(good),
        "Cases": f"{len(good)} of {cases} of the suite “{suite}”",
        "Failed": f"{len(failed)} cases, the first with: {failed.iloc[0]}" if len(failed) else "",
        "Left out": f"{others} rows of an older version of the suite or of other kernels" if others else "",
        "Mind": "" if good["current"].all() else f"the {what} changed since",
    }
    return {term: text for term, text in said.items() if text}


def _clocks(good: pd.DataFrame) -> str:
    """What the GPU did while it was timed; nothing where nobody looked."""
    seen = good.reindex(columns=["sm_mhz", "power_w", "throttle"]).dropna(subset=["sm_mhz"])
    if seen.empty:
        return ""
    held = int(seen["throttle"].fillna("nothing").ne("nothing").sum())
    low, high, power = seen["sm_mhz"].min(), seen["sm_mhz"].max(), seen["power_w"].max()
    return f"{low:,.0f} to {high:,.0f} MHz and up to {power:,.0f} W under load, held back in {held} of {len(seen)} cases"


def check(path: str | Path) -> None:
    """Whether a file of rows, ``<gpu>/<suite>.parquet``, can be what that device left: ``ValueError`` with the row that cannot.

    A row must name its device, a commit without changes, the digest of the source that it had there and the versions; stand there once; have the
    bytes, FLOP and limit that the suite counts; and have times in order, none faster than its bytes can move.
    """
    path = Path(path)
    suite = lookup(SUITES, path.stem, f"{path}: suite")
    table = read_rows(path.parent.parent, path.parent.name, suite.name)
    case, counted = list(suite.cases(False)[0]), ["bytes", "flops", "limit_us"]
    rates = ["rate_bytes_per_s", "rate_flops_per_s"]
    code = ["commit", "dirty", "kernels_digest", "torch", "triton"]
    told = [*code, "device", "gpu", "driver", "date", "error", "share_of_limit"]
    missing = sorted({*case, *counted, *told, *rates, suite.headline} - set(table))
    require(not missing, f"{path}: columns of {suite.name} must be there", missing)
    good, on_host = table[table["error"].isna()], table["device"].eq(HOST)
    current = good[good["suite_version"].eq(suite.version)]
    again = pd.DataFrame([
        suite.predict(row, Rates(row[rates[0]], row[rates[1]], ""))  # type: ignore[arg-type]
        for row in current.to_dict("records")
    ], index=current.index, columns=counted)  # fmt: skip
    commits = table["commit"].astype("string")
    named = commits.str.fullmatch("[0-9a-f]{40}").fillna(False)
    there = {one: digest_at(one) for one in commits[named].unique()}
    source = commits.map(there).where(~on_host)  # a host's lies elsewhere
    same, unknown_there = source.eq(table["kernels_digest"]), source.isna()
    ends = [good[suite.headline.replace("_us", end)] for end in ("_p20_us", "_us", "_p80_us")]
    rules = [
        ("gpu", f"that of the folder {path.parent.name}", table["gpu"].map(folder_of).eq(path.parent.name)),
        ("suite", "the name of the file", table["suite"].eq(suite.name)),
        ("device", "cuda or host: a rehearsal is no measurement", table["device"].isin(["cuda", HOST])),
        ("commit", "the 40 digits of a commit", named),
        ("kernels_digest", "that of the source at the row's commit", unknown_there | same),
        ("dirty", "False: measured by code that is committed", table["dirty"].eq(False) | table["dirty"].isna() & same),
        ("kernels_digest", "12 hexadecimal digits", table["kernels_digest"].str.fullmatch("[0-9a-f]{12}")),
        ("date", "a time in UTC", table["date"].str.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00")),
        ("torch", "a version", table["torch"].notna()),
        ("triton", "a version", table["triton"].notna() | on_host),
        ("driver", "a version", table["driver"].notna() | on_host),
        (case[0], "of a case that no other row has", ~table.duplicated([*case, "suite_version", "kernels_digest"])),
        (suite.headline, "positive, between its percentiles", (ends[0] > 0) & (ends[0] <= ends[1]) & (ends[1] <= ends[2])),
        ("share_of_limit", f"at most {FASTEST}", ~(good["share_of_limit"] > FASTEST)),
        *((name, "as the suite counts it", (one.sub(two).abs() <= 1e-9 * one.abs()) | (one.isna() & two.isna()))
          for name in counted for one, two in [(current[name], again[name])]),
    ]  # fmt: skip
    for column, rule, kept in rules:
        for row in kept.index[~kept.fillna(False).astype(bool)]:
            require(False, f"{path}, row {row}: {column} must be {rule}", table[column].tolist()[row])
