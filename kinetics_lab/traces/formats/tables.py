"""Plain tables: a row an answer, with this package's columns or with others that the caller maps to them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kinetics_lab.errors import require
from kinetics_lab.traces.said import Record, spoken, usage_of, whole_number
from kinetics_lab.traces.table import COLUMNS, GROUP
from kinetics_lab.traces.trial import Parse, Run, TraceFileError, Trial, problem_id, spelling

#: What a table's columns may be mapped to: those of the trace table, and texts that are counted where it has no counts.
OURS = (*COLUMNS, "answer", "prompt", "text", "finish_reason")


def table(path: Path, first: Record, run: Run) -> Parse:
    """Rows that have the trace table's columns; ``trial`` may be missing, and what the caller says.

    Counts may have the names that servers give them (also in ``usage``), or be those of the columns ``text`` and
    ``prompt``, which a tokenizer counts. Where ``correct`` is a list, the row holds that many answers, and other lists
    one value for each.
    """

    def name_of(record: Record, name: str) -> str:
        if name not in record:
            return run.said(name)
        value = "" if record[name] is None else str(record[name])
        return run.agreed(name, spelling(value) if name == "policy" else value, "the column")

    def parse(row: Record) -> Iterable[Trial]:
        record = _mapped(row, run)
        for name, other in (("correct", "correct"), ("problem", "prompt")):
            if name not in record and other not in record:
                raise TraceFileError(_lacks(name, record))
        model, task, policy = (name_of(record, name) for name in GROUP[:3])
        for one in _answers(record):
            yield _trial(one, (model, task, policy), run)

    return parse


def _mapped(record: Record, run: Run) -> Record:
    """The record with the caller's columns under our names; ``usage.output_tokens`` is a field of a field."""
    found = dict(record)
    for theirs, ours in run.columns.items():
        value: Any = record
        for step in [theirs] if theirs in record else theirs.split("."):
            if not isinstance(value, dict) or step not in value:
                raise ValueError(f"no column {theirs!r} to map to {ours} (found: {', '.join(record)})")
            value = value[step]
        found[ours] = value
    return found


def _lacks(name: str, record: Record) -> str:
    needs = f"the trace table needs {', '.join(COLUMNS)}"
    return f"no column {name}; {needs}; say which column it is with --map THEIRS={name} (found: {', '.join(record)})"


def _answers(record: Record) -> Iterable[Record]:
    if not isinstance(many := record["correct"], list):
        return [record]
    lists = {name: value for name, value in record.items() if name in OURS and isinstance(value, list)}
    for name, value in lists.items():
        rule = f"{name} must have a value for each of the {len(many)} verdicts"
        require(len(value) == len(many), rule, len(value))
    return [record | dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


def _trial(record: Record, names: tuple[str, str, str], run: Run) -> Trial:
    text, prompt = record.get("text"), record.get("prompt")
    problem = record.get("problem", problem_id(spoken(prompt)))
    counts = usage_of(record["usage"] if isinstance(record.get("usage"), dict) else record, run.seen)
    for name, count, source in (("tokens_in", counts[0], prompt), ("tokens_out", counts[1], text)):
        if count is None and source is None:
            if name in record:
                whole_number(record[name], name)  # says what is wrong with it
            raise ValueError(_lacks(name, record))
    return run.answer(
        names, "" if problem is None else str(problem).strip(), text or "", run.verdict(record["correct"], "correct"),
        counts=counts, prompt=None if prompt is None else spoken(prompt), reason=record.get("finish_reason"),
        cut=run.verdict(record["truncated"], "truncated") if "truncated" in record else None,
        trial=whole_number(record["trial"], "trial") if "trial" in record else -1, final=record.get("answer"),
    )  # fmt: skip
