"""Reading reasoning traces: four kinds of file become the trace table of ``kinetics_lab.traces.table``.

Files are read line by line and only numbers are kept, so a file may be far larger than memory. A bad line is an
error that names file, line, value and what would be right, unless ``skip_bad`` allows it.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import sys
import time
import warnings
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kinetics_lab.cost.policies import parse_policy
from kinetics_lab.errors import lookup
from kinetics_lab.traces.formats import FORMATS, Parse, recognise
from kinetics_lab.traces.table import COLUMNS, SETTING, check_traces
from kinetics_lab.traces.trial import Record, Run, Tokenizer, TraceFileError, Trial, shortened, token_counter


class _Progress:
    """One line on stderr, rewritten five times a second: lines, MB/s, time left."""

    def __init__(self, show: bool, total: int) -> None:
        self.show, self.total, self.done, self.lines = show, total, 0, 0
        self.start = self.shown = time.monotonic()

    def step(self, position: int) -> None:
        self.lines += 1
        now = time.monotonic()
        if self.show and now - self.shown > 0.2:
            self.shown = now
            self.print(self.done + position, now - self.start)

    def print(self, position: int, seconds: float, end: str = "") -> None:
        rate = max(position, 1) / max(seconds, 1e-9)
        left = max(self.total - position, 0) / rate
        text = f"{self.lines:,} lines, {rate / 1e6:.1f} MB/s, {position / max(self.total, 1):.0%}, {left:.0f} s left"
        sys.stderr.write("\r\x1b[K" + text + end)
        sys.stderr.flush()

    def close(self) -> None:
        if self.show:
            self.print(self.total, time.monotonic() - self.start, "\n")


class _Rows:
    """Trials in compact arrays: 30 bytes each, whatever their text was."""

    def __init__(self) -> None:
        self.settings: dict[tuple[str, ...], int] = {}  # (model, task, policy, problem) -> code
        self.prompts: dict[tuple[str, str, str], int] = {}  # (model, task, problem) -> tokens_in
        types = {"setting": "i", "tokens_out": "i", "correct": "b", "truncated": "b"}
        types |= {"trial": "i", "forced_at": "i", "mark": "q", "line": "i"}
        self.columns = {name: array(code) for name, code in types.items()}
        self.starts: list[tuple[int, Path]] = []  # first row of each file

    def start(self, path: Path) -> None:
        self.starts.append((len(self.columns["line"]), path))

    def add(self, line: int, trials: list[Trial]) -> None:
        for trial in trials:
            known = self.prompts.setdefault((trial.model, trial.task, trial.problem), trial.tokens_in)
            if known != trial.tokens_in:
                raise ValueError(
                    f"tokens_in must be the same in all traces of problem {trial.problem}, {known} so far; "
                    f"got {trial.tokens_in}"
                )
        for trial in trials:
            setting = (trial.model, trial.task, trial.policy, trial.problem)
            code = self.settings.setdefault(setting, len(self.settings))
            mark = 0 if trial.mark is None else hash((code, trial.mark))
            # in the order of the columns
            row = (code, trial.tokens_out, trial.correct, trial.truncated, trial.trial, trial.forced_at)
            for column, value in zip(self.columns.values(), (*row, mark, line), strict=True):
                column.append(value)

    def where(self, row: int) -> str:
        path = next(path for start, path in reversed(self.starts) if start <= row)
        return f"{path}:{self.columns['line'][row]}"

    def frame(self) -> pd.DataFrame:
        """The rows as a frame that shares their memory; none can be added after this."""
        arrays = {name: np.frombuffer(column, column.typecode) for name, column in self.columns.items()}
        return pd.DataFrame(arrays, copy=False)

    def without_repeats(self, frame: pd.DataFrame, keys: pd.DataFrame, what: str, bad: _Bad) -> pd.DataFrame:
        """The frame without the later ones of rows whose ``keys`` are equal, each of them told to ``bad``."""
        later = keys.index[keys.duplicated()]
        for row in later:
            first = (keys == keys.loc[row]).all(axis=1).idxmax()
            bad.add(f"{self.where(row)}: {what} as {self.where(first)}")
        return frame.drop(later) if len(later) else frame  # a large one is not copied for nothing

    def table(self, frame: pd.DataFrame) -> pd.DataFrame:
        """What is left of the rows' frame as a trace table, in the form that ``check_traces`` gives."""
        setting = frame["setting"].to_numpy()
        prompts = [self.prompts[model, task, problem] for model, task, _, problem in self.settings]
        made: dict[str, Any] = {"tokens_in": np.array(prompts, np.int32)[setting]}
        for place, name in enumerate(SETTING):
            by_setting = pd.Categorical([names[place] for names in self.settings])
            made[name] = by_setting.take(setting).remove_unused_categories()
        kinds = {"trial": np.int32, "tokens_out": np.int32, "correct": bool, "truncated": bool}
        made |= {name: frame[name].to_numpy(kind) for name, kind in kinds.items()}
        forced_at = frame["forced_at"].to_numpy()
        table = pd.DataFrame({name: made[name] for name in COLUMNS}, copy=False)
        if not forced_at.any():
            return table
        # a forced answer needs its free trace, which may be in another file
        return check_traces(table.assign(forced_at=pd.arrays.IntegerArray(forced_at, forced_at == 0)))


class _Bad:
    """Bad lines so far; one more than allowed is an error."""

    def __init__(self, allowed: int) -> None:
        self.allowed, self.seen = allowed, list[str]()

    def add(self, message: str) -> None:
        self.seen.append(message)
        if len(self.seen) > self.allowed:
            after = (
                f" (bad line {len(self.seen)}; skip_bad={self.allowed} allows no more)"
                if self.allowed
                else ""
            )
            raise ValueError(message + after)

    def report(self) -> None:
        if self.seen:
            shown = "; ".join(self.seen[:5]) + ("; ..." if len(self.seen) > 5 else "")
            warnings.warn(f"skipped {len(self.seen)} bad lines: {shown}", stacklevel=3)


@contextmanager
def _items(path: Path) -> Iterator[tuple[Callable[[], int], Iterator[tuple[int, Any]]]]:
    """Position in the file (bytes) and its items: line number with raw JSON, a record, or what is wrong with it."""
    with path.open("rb") as raw:
        data: Any = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
        kind = Path(path.name.removesuffix(".gz")).suffix
        if kind == ".parquet":
            yield raw.tell, _parquet_rows(raw)
        elif kind == ".csv":
            yield raw.tell, _csv_rows(data)
        else:
            yield raw.tell, ((number, line) for number, line in enumerate(data, 1) if line.strip())


def _csv_rows(data: Any) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(io.TextIOWrapper(data, "utf-8-sig", newline=""))
    for row in reader:
        cells = len(row) - (None in row) + len(row.get(None) or []) - list(row.values()).count(None)
        header = len(reader.fieldnames or [])
        wrong = ValueError(f"the row must have {header} cells like the header; got {cells}")
        yield reader.line_num, row if cells == header else wrong


def _parquet_rows(raw: Any) -> Iterator[tuple[int, Any]]:
    try:
        table = pd.read_parquet(raw)
    except (ValueError, OSError) as error:
        raise TraceFileError(f"not a Parquet file ({error})") from None
    for start in range(0, len(table), 65536):
        part = table.iloc[start : start + 65536]
        records = part.astype(object).where(part.notna(), None).to_dict("records")
        yield from enumerate(records, start + 1)


def _decode(item: Any) -> Record:
    if isinstance(item, ValueError):
        raise item
    if isinstance(item, dict):
        return item
    try:
        record = json.loads(item)
    except (ValueError, RecursionError) as error:
        text = item[:40].decode("utf-8", "replace").rstrip()
        raise ValueError(f"not a JSON object but {text!r} ({error})") from None
    if not isinstance(record, dict):
        raise ValueError(f"each line must be a JSON object; got {shortened(record)}")
    return record


def _read_file(path: Path, run: Run, form: str | None, rows: _Rows, bad: _Bad, bar: _Progress) -> None:
    """Add the trials of one file to ``rows``."""
    parse: Parse | None = None
    first: Record = {}
    line = trials = skipped = 0
    rows.start(path)
    with _items(path) as (position, items):
        try:
            for line, item in items:
                bar.step(position())
                try:
                    record = _decode(item)
                    if parse is None:
                        first, name = record, form or recognise(path, record)
                        parse = FORMATS[name](path, record, run)
                        if name == "kinetics":  # that was the metadata
                            continue
                    rows.add(line, found := list(parse(record)))
                    trials += len(found)
                except TraceFileError:
                    raise
                except ValueError as error:
                    skipped += 1
                    bad.add(f"{path}:{line}: {error}")
        except (TraceFileError, csv.Error) as error:
            raise ValueError(f"{path}:{line}: {error}" if line else f"{path}: {error}") from None
        except (EOFError, OSError, zlib.error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}:{line + 1}: cannot be read on ({error}); is the file whole?") from None
    if not trials and not skipped:
        raise ValueError(
            f"{path}: no trials in it" + (f" scored as {run.metric!r}" if run.metric and line else "")
        )
    total = first.get("total_example")
    if isinstance(total, int) and total != trials + skipped:
        raise ValueError(
            f"{path}: the metadata promise {total} trials, the file has {trials + skipped}; is it whole?"
        )


def _paths(given: Any) -> list[Path]:
    """The files to read: as given, folders replaced by what they hold."""
    some = [given] if isinstance(given, (str, os.PathLike)) else list(given)
    found: list[Path] = []
    for path in map(Path, some):
        if path.is_dir():
            inside = [
                p for p in sorted(path.rglob("*")) if re.search(r"\.(jsonl|csv|parquet)(\.gz)?$", p.name)
            ]
            if not inside:
                raise ValueError(f"{path}: no .jsonl, .csv or .parquet file in this folder")
            found += inside
        elif not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        else:
            found.append(path)
    if not found:
        raise ValueError("no trace file given; at least one is needed")
    real = [path.resolve() for path in found]
    for path in found:
        if real.count(path.resolve()) > 1:
            raise ValueError(f"{path} was given twice: its trials would count twice")
    return found


def _warn_of_uneven(table: pd.DataFrame) -> None:
    """Report problems with fewer trials than others of the same model, task and policy."""
    free = table[table["forced_at"].isna()] if "forced_at" in table else table
    sizes = free.groupby(SETTING, observed=True).size()
    for (model, task, policy), group in sizes.groupby(SETTING[:3], observed=True):
        few = group[group < group.max()]
        if len(few):
            problems = few.index.get_level_values("problem")
            names = ", ".join(f"{name} ({size})" for name, size in list(zip(problems, few, strict=True))[:5])
            warnings.warn(
                f"{model}, {task}, {policy}: {len(few)} of {len(group)} problems have fewer than {group.max()} "
                f"trials: {names}{', ...' if len(few) > 5 else ''}",
                stacklevel=3,
            )


def read_traces(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    tokenizer: Tokenizer | str | None = None,
    model: str | None = None,
    task: str | None = None,
    policy: str | None = None,
    format: str | None = None,
    limit: float | None = None,
    metric: str | None = None,
    prompt: Callable[[str], str] | None = None,
    skip_bad: int = 0,
    progress: bool | None = None,
) -> pd.DataFrame:
    """The trace table (see ``kinetics_lab.traces.table``) of one or more files, or of all files in a folder.

    Problems are named by ``problem_id`` of the question's text (or by the id the file gives), trials are numbered
    in the order read, over all files. Progress (lines, MB/s, time left) goes to stderr where that is a terminal;
    ``progress`` says otherwise. ``.gz`` files are read as they are. Formats, recognised by content or ``format``:

    - ``kinetics``: the data set published with the paper (InfiniAILab/Kinetics-generations on the hub). The name
      is ``{task}_{model}_dense``, ``..._local{l}_topk{B}`` or ``..._local{l}_block{b}_blocktopk{k}`` (k blocks of b
      tokens: B = b k) and must agree with the first line (``attn_local``, ``attn_topk``, ``attn_block_size``,
      ``attn_block_topk``); then one trial a line: ``query``, ``prediction`` (a list with one text), ``score`` 0 or 100.
      local > 0 beside top-k is a window of recent tokens, which no policy has: refused unless ``policy`` says what
      it counts as. The engine's 4 sink tokens and its dense first layer are in neither name nor metadata and so
      not in the policy. ``query`` is the bare question; ``prompt`` makes the text the model saw of it. A file whose
      first line has ``kinetics_lab`` (this package's own) says model, task, policy, token counts and what was cut
      itself, whatever its name; an answer without a score is a bad line.
    - ``lm-eval``: ``samples_{task}_{date}.jsonl`` of lm-evaluation-harness (``lm_eval/evaluator.py`` and
      ``loggers/evaluation_tracker.py`` there): a line per document and filter with ``doc_id``, ``doc``, ``arguments``
      (``gen_args_0.arg_0`` is the prompt), ``resps`` ([[text, one per repeat]]), ``filter``, ``metrics`` (names),
      ``doc_hash`` (where ``doc`` has no question) and one value per metric AND line: with repeats it does not say
      which answer was right, so one file per trial is needed. ``metric`` is "exact_match" or, as in the
      harness's results, "exact_match,strict-match" (metric, filter).
    - ``requests``: a server's answer a line with ``correct`` or ``score`` beside it (a list where there are several
      answers) and a ``problem`` id or the prompt's text. vLLM's RequestOutput: ``prompt_token_ids``,
      ``outputs[].token_ids``, ``outputs[].finish_reason``. OpenAI-compatible: ``usage.prompt_tokens``,
      ``usage.completion_tokens`` (of all answers together), ``choices[].finish_reason``, also as ``response.body`` of
      a batch. SGLang: ``meta_info.prompt_tokens``, ``completion_tokens``, ``finish_reason.type``.
    - ``table``: CSV, Parquet or JSON lines with the trace table's columns; ``trial`` may be missing.

    tokenizer: where no counts are stored, a function from text to a number of tokens or to its ids, or a
    tokenizer's name on the hub or file (package ``tokenizers``, extra ``traces``); special tokens are not counted.
    model, task, policy: for files that do not say; where both say, they must agree (a server's model name apart).
    limit: generation limit in tokens, for files that do not say which answers it cut; tokens counted anew differ by
    a few (30,738 to 30,778 for a limit of 30,767 in the paper's own tables): give the smallest that counts as cut.

    Raises ValueError with file, line, value and what would be right: for broken lines beyond ``skip_bad`` (those
    skipped are listed in a warning), and for anything wrong with a file as a whole: no trials, name against
    metadata, two models, two filters, counts promised and found. Warns where problems have unequally many trials.
    """
    if skip_bad < 0:
        raise ValueError(f"skip_bad must be >= 0; got {skip_bad}")
    if format is not None:
        lookup(FORMATS, format, "trace format")
    if policy is not None:
        policy = str(parse_policy(policy))
    files = _paths(paths)
    run = Run(model, task, policy, limit, metric, prompt, token_counter(tokenizer))
    rows, bad = _Rows(), _Bad(skip_bad)
    shown = sys.stderr.isatty() if progress is None else progress
    bar = _Progress(shown, sum(path.stat().st_size for path in files))
    try:
        for path in files:
            _read_file(path, run, format, rows, bad, bar)
            bar.done += path.stat().st_size
    finally:
        bar.close()
    if not rows.settings:
        raise ValueError(f"no trials are left in {files[0]} after bad lines: {bad.seen[0]}")
    frame = rows.frame()
    copied = "a copied line, or not sampled at all: the same answer, word for word, or the same request"
    frame = rows.without_repeats(frame, frame.loc[frame["mark"] != 0, ["mark"]], copied, bad)
    bare = frame["trial"] < 0  # numbered in the order read
    setting = frame.loc[bare, "setting"]
    frame.loc[bare, "trial"] = setting.groupby(setting).cumcount().astype(np.int32)
    if not bare.all():  # else nothing can be there twice
        trials, again = frame[["setting", "trial", "forced_at"]], "the same trial of the same problem"
        frame = rows.without_repeats(frame, trials, again, bad)
    bad.report()
    table = rows.table(frame)
    del rows, frame  # of a large file, before the next step needs memory
    _warn_of_uneven(table)
    return table
