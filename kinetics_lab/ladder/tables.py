"""The three tables of Part IV: the committed ones read, or all of it made anew. Only making needs PyTorch.

What is made stays in a folder of the preset's own: a stopped run goes on, and the next reader finds it done.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from kinetics_lab.data import read_table
from kinetics_lab.errors import absent, lookup, report, require
from kinetics_lab.files import locked, sole_writer, write_table, write_text
from kinetics_lab.ladder import Preset, model_name, preset
from kinetics_lab.ladder.task import support, verify
from kinetics_lab.traces.table import check_traces

if TYPE_CHECKING:
    from kinetics_lab.ladder.model import Reasoner

KINDS = ("traces", "training", "walks")
DEFAULT = "cpu"  # the preset that the chapters' sentences are about, and whose tables the project carries
FOLDER = "_build/ladder"
WALKS = 4  # trials of every problem whose walks are kept, the first ones


@dataclass(frozen=True)
class Tables:
    """What a chapter of Part IV shows, and how it may speak of it.

    traces: a trace table, tasks ``walk`` (layer 0 dense) and ``walk-all-sparse``. training: learning curves
    (:func:`kinetics_lab.ladder.train.train`) with ``model``. walks: a row for each step of the first trials, with the
    ``node`` written and the ``records`` of the prompt that agree with the step.
    """

    name: str
    retrained: bool
    traces: pd.DataFrame
    training: pd.DataFrame
    walks: pd.DataFrame

    @property
    def plan(self) -> Preset:
        return preset(self.name)

    @property
    def default(self) -> bool:
        """Whether the chapters' sentences are about this ladder."""
        return self.name == DEFAULT

    @property
    def note(self) -> str:
        """What is shown, in Markdown, and which sentences do not speak of it."""
        plan, made = self.plan, "made anew with" if self.retrained else "the committed tables of"
        sizes = f"{', '.join(plan.sizes)} with {len(plan.seeds)} training seed{'s' * (len(plan.seeds) > 1)}"
        exam = f"{plan.per_size * len(plan.world.sizes)} problems, {plan.trials} trials"
        said = f"Shown here: {made} the preset `{self.name}`: {sizes}, {exam}."
        if self.default:
            return said
        alone = " Sizes and seeds cannot be compared: there is one of each." if len(plan.runs()) == 1 else ""
        return (
            f"**{said}**{alone} Sentences about *the default ladder*, and what was expected of it, tell of the "
            f"preset `{DEFAULT}` and not of these charts and tables."
        )

    def caption(self, title: str, description: str, plain: str) -> dict[str, str]:
        """A chart's ``title`` and ``description``: what the default ladder shows, or of another only what is drawn."""
        if self.default:
            return {"title": title, "description": description}
        return {"title": f"{plain} ({self.name})", "description": f"{plain}, for the preset {self.name}."}


def tables(
    name: str, retrain: bool = False, folder: str | os.PathLike[str] | None = None, device: str = "cpu"
) -> Tables:
    """The tables of the preset ``name``: the committed ones, or with ``retrain`` those that :func:`make_table` makes.

    ``ValueError`` for an unknown preset and for one without committed tables.
    """
    preset(name)
    if retrain:
        found = {kind: pd.read_parquet(make_table(kind, name, folder, device=device)) for kind in KINDS}
    else:
        rule = f"preset must be {DEFAULT}, whose tables the project carries, unless retrain is true"
        require(name == DEFAULT, rule, name)
        found = {kind: read_table(f"ladder_{kind}") for kind in KINDS}
    return Tables(name, retrain, **found)


def make_table(
    kind: str, name: str, folder: str | os.PathLike[str] | None = None, *,
    out: Path | None = None, device: str = "cpu", only: Sequence[str] = (), progress: bool | None = None,
) -> Path:  # fmt: skip
    """Train and sample what ``folder/NAME`` does not hold yet and write one of :data:`KINDS` there; the file's path.

    out: another file to write. only: names of models (``w64-s0``), all if empty. progress: lines on stderr (None: on
    a terminal). Of two processes the second waits for the first. ``ValueError`` for an unknown kind, preset or model,
    a folder of another version of the preset, a device that is not there, or without PyTorch.
    """
    rows = lookup({"traces": _traces, "training": _training, "walks": _walks}, kind, "table of the ladder")
    plan, home = preset(name), Path(folder or FOLDER, name)
    try:
        import torch
    except ImportError:
        raise absent("torch", "training a ladder") from None
    show, threads = sys.stderr.isatty() if progress is None else progress, torch.get_num_threads()
    stamp = home / "preset.txt"
    with locked(home / ".lock"), sole_writer(out) if out else nullcontext():
        same = not stamp.exists() or stamp.read_text(encoding="utf-8") == repr(plan)
        require(same, "folder holds another version of this preset: delete it or name another", str(home))
        write_text(stamp, repr(plan))
        # Models this small lose time to a second thread, and results depend on the number of threads.
        torch.set_num_threads(1)
        try:
            table = rows(plan, home, _models(plan, home, device, only, show), show)
        finally:
            torch.set_num_threads(threads)
        part = "".join(f".{name}" for name in only)  # a part never replaces the whole
        return write_table(out or home / f"{kind}{part}.parquet", table)


Models = Iterator[tuple[str, int, "Reasoner", list[dict[str, float]]]]  # name, seed, model and learning curve


def _models(plan: Preset, home: Path, device: str, only: Sequence[str], show: bool) -> Models:
    """Each rung, trained where that is not done."""
    from kinetics_lab.ladder.train import train

    runs = {model_name(size, seed): (size, seed) for size, seed in plan.runs()}
    for name in only or runs:
        size, seed = lookup(runs, name, "model")
        yield name, seed, *train(plan, size, seed, home, device=device, progress=show)


def _kept(path: Path, do: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """The table at ``path``, made where it is not there yet."""
    if not path.is_file():
        write_table(path, do())
    return pd.read_parquet(path)


def _training(plan: Preset, home: Path, models: Models, show: bool) -> pd.DataFrame:
    return pd.DataFrame([{"model": name, **point} for name, _, _, curve in models for point in curve])


def _traces(plan: Preset, home: Path, models: Models, show: bool) -> pd.DataFrame:
    tables = []
    for name, seed, model, _ in models:
        jobs = [("walk", text, 1) for text in plan.policies]
        jobs += [("walk-all-sparse", text, 0) for text in plan.all_sparse]
        for task, text, dense in jobs if seed == plan.seeds[0] else [("walk", "dense", 1)]:
            part, begun = home / f"{name}.{task}.{text.replace(':', '-')}.parquet", time.monotonic()
            made = partial(trace_table, model, plan, name, text, task, dense_layers=dense)
            tables.append(_kept(part, made))
            if show:
                result = f"{tables[-1].correct.mean():.3f} right, {time.monotonic() - begun:.0f} s"
                report(f"{name} {task} {text}: {result}")
    return check_traces(pd.concat(tables, ignore_index=True))


def _walks(plan: Preset, home: Path, models: Models, show: bool) -> pd.DataFrame:
    tables = []
    for name, _, model, _ in (rung for rung in models if rung[1] == plan.seeds[0]):
        for text in plan.shown:
            part = home / f"{name}.walks.{text.replace(':', '-')}.parquet"
            tables.append(_kept(part, partial(walk_table, model, plan, name, text)))
    rule = f"walks are those of the first seed, {plan.seeds[0]}: model must name one of it"
    require(bool(tables), rule, "others only")
    texts = dict.fromkeys(("model", "policy", "problem"), "category")
    return pd.concat(tables, ignore_index=True).astype(texts)


def trace_table(
    model: Reasoner, plan: Preset, name: str, policy: str, task: str = "walk", **how: Any
) -> pd.DataFrame:
    """The trace table of one model under one policy (``how``: see :func:`kinetics_lab.ladder.sample.sampled_exam`)."""
    from kinetics_lab.ladder.sample import sampled_exam

    tables = []
    for rows, prompts, found in sampled_exam(model, plan, policy, plan.trials, **how):
        arrived = (found == prompts[:, -2:-1] - 2 * plan.world.nodes).any(1)
        facts = {"tokens_in": prompts.shape[1], "tokens_out": (found >= 0).sum(1), "truncated": ~arrived}
        tables.append(pd.DataFrame(rows | facts).assign(correct=verify(plan.world, prompts, found)))
    return check_traces(pd.concat(tables, ignore_index=True).assign(model=name, task=task, policy=policy))


def walk_table(model: Reasoner, plan: Preset, name: str, policy: str) -> pd.DataFrame:
    """The first trials step by step (:attr:`Tables.walks`)."""
    from kinetics_lab.ladder.sample import sampled_exam

    tables = []
    for rows, prompts, found in sampled_exam(model, plan, policy, WALKS):
        row, step = np.nonzero(found >= 0)
        facts = {"step": step, "node": found[row, step]}
        facts["records"] = support(plan.world, prompts, found)[row, step]
        tables.append(pd.DataFrame({key: values[row] for key, values in rows.items()} | facts))
    small = dict.fromkeys(("trial", "step", "node", "records"), np.int16)
    table = pd.concat(tables, ignore_index=True).astype(small).assign(model=name, policy=policy)
    return table[["model", "policy", "problem", *small]]
