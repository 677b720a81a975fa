"""Reading reasoning traces: files of several formats become the trace table of ``kinetics_lab.traces.table``.

Files are read line by line and only numbers are kept, so a file may be far larger than memory. A bad line is an
error that names file, line, value and what would be right, unless ``skip_bad`` allows it.
"""

from __future__ import annotations

import csv
import os
import warnings
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from kinetics_lab.errors import among, check_name, lookup, require
from kinetics_lab.files import opened
from kinetics_lab.traces.formats import PARSERS, recognise
from kinetics_lab.traces.formats.tables import OURS
from kinetics_lab.traces.said import shortened
from kinetics_lab.traces.sources import MOST, paths_of, records
from kinetics_lab.traces.table import COLUMNS, GROUP, Complaints, again, normal_answer, repeated, repeats
from kinetics_lab.traces.trial import SHORT, Run, Tokenizer, TraceFileError, Trial, spelling, token_counter

_LONGEST, _MOST_ANSWERS = 100, 2**20  # characters of a final answer; how many different ones fit into memory


class _Trials:
    """Trials in compact arrays, 42 bytes each whatever their text was, and the bad lines so far."""

    def __init__(self, skip_bad: int) -> None:
        self.groups: dict[tuple[str, ...], int] = {}  # (model, task, policy, problem) -> code
        self.sizes = list[int]()  # trials numbered here, by group
        self.numbered = False  # whether a file has numbers of its own
        self.answers = {"": 0}  # final answer -> code
        kinds = {"group": "i", "tokens_in": "i", "tokens_out": "i", "correct": "b", "truncated": "b"}
        kinds |= {"trial": "i", "request": "q", "text": "q", "answer": "i", "line": "i"}
        self.columns = {name: array(kind) for name, kind in kinds.items()}
        self.fresh = list[tuple[Any, ...]]()  # rows that are not in the columns yet
        self.starts: list[int] = []  # first row of each file
        self.paths: list[Path] = []
        self.counts = np.zeros(0, int)  # trials of each group that are left in the table
        self.skip_bad, self.bad, self.notes = skip_bad, list[str](), list[str]()

    def __len__(self) -> int:
        return len(self.columns["line"]) + len(self.fresh)

    def refuse(self, message: str) -> None:
        """Count a bad line; one more than allowed is an error."""
        self.bad.append(message)
        if len(self.bad) > self.skip_bad:
            which = f" (bad line {len(self.bad)}; skip_bad={self.skip_bad} allows no more)"
            raise ValueError(message + which if self.skip_bad else message)

    def add(self, line: int, trials: list[Trial]) -> None:
        known = self.groups.get
        codes: list[Any] = [known(trial[:4]) for trial in trials]
        if None in codes:  # all of a line's trials are added, or none
            codes = [self._code(trial[:4]) for trial in trials]
        for code, trial in zip(codes, trials, strict=True):
            text, answer, number = trial.text, 0, trial.trial
            if number < 0:  # numbered in the order read
                number = self.sizes[code]
                self.sizes[code] += 1
            else:
                self.numbered = True
            if trial.answer and len(trial.answer) <= _LONGEST and len(self.answers) <= _MOST_ANSWERS:
                said = trial.answer.encode("utf-8", "replace").decode()
                answer = self.answers.setdefault(said, len(self.answers))
            request = 0 if trial.request is None else hash((code, trial.request, text))
            same = hash((code, text)) if len(text) >= 200 else 0  # shorter ones may well agree by chance
            row = (code, *trial[4:8], number, request, same, answer, line)  # in the order of the columns
            self.fresh.append(row)
        if len(self.fresh) > 4096:
            self.settle()

    def take(self, line: int, rows: pd.DataFrame) -> None:
        """Add rows that were checked, the first of which stands at ``line``."""
        self.settle()
        self.numbered = True
        code = rows.groupby(GROUP, observed=True, sort=False).ngroup().to_numpy()
        groups = rows[GROUP].drop_duplicates().itertuples(index=False, name=None)
        made = {"group": np.array([*map(self._code, groups)])[code], "line": line + np.arange(len(rows))}
        for name, column in self.columns.items():
            values = np.broadcast_to(made.get(name, rows.get(name, 0)), len(rows))
            column.frombytes(values.astype(column.typecode).tobytes())

    def settle(self) -> None:
        """Move what is fresh into the columns, many rows at a time."""
        for column, values in zip(self.columns.values(), zip(*self.fresh, strict=True), strict=False):
            column.extend(values)
        self.fresh.clear()

    def _code(self, group: tuple[str, ...]) -> int:
        for name, text in zip(GROUP, group, strict=True):
            if not text.strip():
                raise ValueError(f"{name} is empty")
            if name != "problem":  # that may be a question, of several lines
                check_name(text, name)
            elif "\x1b" in text or text != text.encode("utf-8", "replace").decode():
                raise ValueError(f"{name} must be text without escapes or surrogates; got {shortened(text)}")
        if group not in self.groups:
            self.groups[group] = len(self.groups)
            self.sizes.append(0)
        return self.groups[group]

    def where(self, row: int) -> str:
        return f"{self.paths[bisect_right(self.starts, row) - 1]}:{self.columns['line'][row]}"

    def table(self) -> pd.DataFrame:
        """All trials as a checked table, without the rows that contradict earlier ones: those are refused.

        The table shares the arrays' memory: nothing can be added after this.
        """

        def without(complaints: Complaints) -> pd.DataFrame:
            wrong, told = [], set[str]()
            for row, what in complaints:
                wrong.append(row)
                if (place := self.where(row)) not in told:  # one complaint a line
                    self.refuse(f"{place}: {what}")
                told.add(place)
            return table.drop(wrong) if wrong else table  # a large one is not copied for nothing

        self.settle()
        rows = {name: np.frombuffer(column, column.typecode) for name, column in self.columns.items()}
        flags = {name: rows[name].view(np.bool_) for name in ("correct", "truncated")}
        names = zip(GROUP, zip(*self.groups, strict=True), strict=True)
        texts: dict[str, Any] = {name: pd.Categorical(values).take(rows["group"]) for name, values in names}
        table = pd.DataFrame(texts | rows | flags, copy=False)
        if repeated(rows["request"]):
            asked = table.loc[table["request"] != 0, ["request"]]
            table = without(again(asked, "a copied line: the same answer to the same request", self.where))
        if same := repeated(table["text"].to_numpy()):
            self.notes.append(
                f"{same:,} of {len(table):,} answers equal an earlier one to the same problem, word for word; they count as "
                "samples (a file given twice under two names looks like this, and so does greedy decoding)"
            )
        table["tokens_in"] = self._prompts(table)
        table = table[[*COLUMNS, "answer", "group"]]
        if self.numbered:  # else nothing can be there twice
            table = without(repeats(table, self.where))
        codes, self.counts = table.pop("answer"), np.bincount(table.pop("group"), minlength=len(self.groups))
        if len(self.answers) > _MOST_ANSWERS:
            self.notes.append(
                f"more than {_MOST_ANSWERS:,} different final answers: the table has no column answer"
            )
        elif len(self.answers) > 1:
            answers = np.array([normal_answer(text) for text in self.answers], object)
            table = table.assign(answer=pd.Categorical(answers[codes]))
        if len(table) == len(self):
            return table
        used = {name: table[name].cat.remove_unused_categories() for name in GROUP}
        return table.assign(**used).reset_index(drop=True)

    def _prompts(self, table: pd.DataFrame) -> np.ndarray:
        """The longest length reported of each problem's prompt: servers report what their cache did not hold."""
        found, group = table["tokens_in"].to_numpy(), table["group"].to_numpy()
        names = [(model, task, problem) for model, task, _, problem in self.groups]
        codes = pd.factorize(pd.Series(names, dtype=object))[0].astype(np.int32)  # of the problem, by group
        most = np.zeros(len(names), np.int32)
        np.maximum.at(most, codes[group], found)
        longest = most[codes][group]
        for wrong in (longest < 1, found != longest):
            if not wrong.any():
                continue
            row = int(wrong.argmax())
            place, name = self.where(table.index[row]), names[group[row]][2]
            if not longest[row]:
                raise ValueError(f"{place}: tokens_in must be >= 1 in a trace of problem {name}; got 0")
            many = np.unique(codes[group[wrong]]).size
            self.notes.append(
                f"the prompt has several lengths in {many:,} problems (a cache, or another template), the longest is taken: "
                f"problem {name} has {found[row]} tokens at {place} and {longest[row]} elsewhere"
            )
        return longest


def _read_file(path: Path, run: Run, form: str | None, trials: _Trials) -> None:
    """Add the trials of one file."""
    parse, promised, line, run.path, run.scales = None, None, 0, path, {}
    before, skipped = len(trials), len(trials.bad)
    trials.starts.append(before)
    trials.paths.append(path)
    shown = tqdm(desc=path.name, total=path.stat().st_size, unit="B", unit_scale=True, disable=None)
    with opened(path) as file, shown as bar:
        try:
            plain = form in (None, "table") and not (run.columns or run.model or run.task or run.policy)
            for line, record in records(file, plain):
                run.line = line
                if len(trials) > MOST:
                    raise TraceFileError(f"more than {MOST:,} trials fit into no memory; read them in parts")
                if isinstance(record, pd.DataFrame):
                    trials.take(line, record)
                    bar.update(file.tell() - bar.n)
                    continue
                if not line % 64:
                    bar.update(file.tell() - bar.n)
                try:
                    if isinstance(record, ValueError):
                        raise record
                    if parse is None:
                        promised, name = record.get("total_example"), form or recognise(path, record, run)
                        parse = PARSERS[name](path, record, run)
                        if name == "kinetics":  # that was the metadata
                            continue
                    trials.add(line, list(parse(record)))
                except TraceFileError:
                    raise
                except (ValueError, RecursionError) as error:
                    trials.refuse(f"{path}:{line}: {error}")
            bar.update(file.tell() - bar.n)
        except (TraceFileError, csv.Error) as error:
            raise ValueError(f"{path}:{line}: {error}" if line else f"{path}: {error}") from None
        except (EOFError, OSError, zlib.error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}:{line + 1}: cannot be read on ({error}); is the file whole?") from None
    if not (found := len(trials) - before + len(trials.bad) - skipped):
        scored = f" scored as {run.metric!r}" if run.metric and line else ""
        raise ValueError(f"{path}: no trials in it{scored}")
    if isinstance(promised, int) and promised != found:
        promise = f"the metadata promise {promised} trials, the file has {found}"
        raise ValueError(f"{path}: {promise}; is it whole?")


def _reports(table: pd.DataFrame, run: Run, trials: _Trials) -> Iterator[str]:
    """What a reader of the table must know: bad lines, lengths that may be too short, problems with fewer trials."""
    if bad := trials.bad:
        yield f"skipped {len(bad)} bad lines: {'; '.join(bad[:5])}{'; ...' if len(bad) > 5 else ''}"
    run.seen["empty"], run.seen["all"] = int((table["tokens_out"] == 0).sum()), len(table)
    yield from (text.format_map(run.seen) for name, text in SHORT.items() if run.seen[name])
    yield from trials.notes
    kept = sorted(row for row in zip(trials.groups, trials.counts.tolist(), strict=True) if row[1])
    for setting, rows in groupby(kept, key=lambda row: row[0][:3]):
        sizes = {group[3]: count for group, count in rows}
        most = max(sizes.values())
        few = [f"{problem} ({size})" for problem, size in sizes.items() if size < most]
        names = ", ".join(few[:5]) + (", ..." if len(few) > 5 else "")
        if few:
            what = f"{len(few)} of {len(sizes)} problems have fewer than {most} trials: {names}"
            yield f"{', '.join(setting)}: {what}"


def read_traces(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *,
    tokenizer: Tokenizer | str | None = None,
    model: str | None = None, task: str | None = None, policy: str | None = None, format: str | None = None,
    limit: float | None = None, metric: str | None = None, prompt: Callable[[str], str] | None = None,
    columns: Mapping[str, str] | None = None, skip_bad: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """The checked trace table (see ``check_traces``) of one or more files, or of all files in a folder.

    Problems are named by ``problem_id`` of the question's text (or by the id the file gives), trials are numbered
    in the order read, over all files; ``.gz`` files are read as they are. Progress goes to stderr where that is a
    terminal. Formats, recognised by content or ``format`` (see ``traces.formats``): kinetics (the published data set
    and this package's own), lm-eval, inspect, evalscope, requests (vLLM, SGLang, OpenAI, Anthropic), table (CSV,
    Parquet, JSON with the table's columns). JSON may be lines or a document. Where final answers are logged, the
    table has a column ``answer``.

    tokenizer: where no counts are stored, a function from text to a number of tokens or to its ids, or a
    tokenizer's name on the hub or file (package ``tokenizers``, extra ``traces``); special tokens are not counted.
    model, task, policy: for files that do not say; where both say, they must agree (a server's model name apart).
    limit: generation limit in tokens, for files that do not say which answers it cut; tokens counted anew differ by
    a few (30,738 to 30,778 for a limit of 30,767 in the paper's own tables): give the smallest that counts as cut.
    metric: the score of a harness that says what is right. prompt: makes the text the model saw of a bare question.
    columns: their names of a table's columns -> ours (``formats.tables.OURS``); "usage.output_tokens" is a field of a field.

    Raises ValueError with file, line, value and what would be right: for broken lines beyond ``skip_bad`` (those
    skipped are listed in a warning), and for anything wrong with a file as a whole: no trials, name against
    metadata, two models, two filters, two scales, counts promised and found, more than memory holds. Warns where
    lengths may lack reasoning, of equal answers, of prompts of several lengths, and of unequally many trials.
    """
    require(skip_bad >= 0, "skip_bad must be >= 0", skip_bad)
    if format is not None:
        lookup(PARSERS, format, "trace format")
    for ours in (columns or {}).values():
        among(OURS, ours, "columns: a column of ours")
    policy = None if policy is None else spelling(policy)
    files, trials = paths_of(paths), _Trials(skip_bad)
    run = Run(model, task, policy, limit, metric, prompt, token_counter(tokenizer), columns or {})
    for path in files:
        _read_file(path, run, format, trials)
    if not len(trials):
        raise ValueError(f"no trials are left in {files[0]} after bad lines: {trials.bad[0]}")
    table = trials.table()
    for message in _reports(table, run, trials):
        warnings.warn(message, stacklevel=2)
    return table
