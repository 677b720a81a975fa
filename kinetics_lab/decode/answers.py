"""The file of a generation: answers appended as they finish, continued after a stop, put in order at the end.

The layout is the published one (see ``read_traces``): a line of metadata, then one graded answer a line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from kinetics_lab.decode.grade import Grade, Problem
from kinetics_lab.files import locked, write_text

Grader = Callable[..., Grade]  # (an answer's text, the reference, finished=)
Line = dict[str, Any]


def sole_writer(path: Path) -> AbstractContextManager[None]:
    """Hold the file alone; ValueError where another process does."""
    busy = ValueError(f"{path} is being written by another process; give another folder")
    return locked(path.with_name(path.name + ".lock"), busy)


def read_lines(path: Path, metadata: dict[str, Any]) -> list[dict[str, Any]]:
    """The finished lines of a stopped run; a line torn by the stop is cut off.

    Raises ValueError where the file belongs to other settings, or is no such file at all.
    """
    if not path.exists():
        return []
    whole, _, torn = path.read_bytes().rpartition(b"\n")
    try:
        first, *lines = [json.loads(line) for line in whole.splitlines()] or [None]
    except ValueError as error:
        raise ValueError(f"{path} is no file of this command ({error}); give another folder") from None
    if first is not None and first != metadata:
        ours, theirs = (x.get("kinetics_lab", {}) for x in (metadata, first))
        other = [f"{k}: {theirs.get(k)!r} there, {v!r} here" for k, v in ours.items() if theirs.get(k) != v]
        raise ValueError(f"{path} was made with other settings ({'; '.join(other) or 'its first line'}); "
                         "give another folder, or the same settings")  # fmt: skip
    if torn:
        with path.open("r+b") as handle:
            handle.truncate(len(whole) + 1 if whole else 0)
    return lines


def _json(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def write_lines(path: Path, metadata: Line, lines: Sequence[Line] = ()) -> None:
    """Write the file anew."""
    write_text(path, "".join(map(_json, (metadata, *lines))))


def append_line(path: Path, line: Line) -> int:
    """Append one answer so that it survives a crash of the machine; returns where in the file it begins."""
    with path.open("ab") as handle:
        start = handle.tell()
        handle.write(_json(line).encode())
        handle.flush()
        os.fsync(handle.fileno())
    return start


def settle(path: Path, start: int, before: Line, after: Line) -> None:
    """Write the verdict over the line without one, which begins at ``start``, where it is not longer.

    Only the last bytes differ, padded with blanks. A longer one, an error's text, is written when all are there.
    """
    old, new = (_json(line).encode()[:-1] for line in (before, after))
    if len(new) <= len(old):
        with path.open("r+b") as handle:
            handle.seek(start)
            handle.write(new.ljust(len(old)))


def graded(line: Line, grade: Grader, problem: Problem, opening: str) -> Line:
    """The line with the grader's verdict: score 100 or 0, or no score and the error.

    opening: what the prompt began the answer with, ``<think>`` or nothing.
    """
    text, finished = opening + line["prediction"][0], line["stopped"] == "end"
    found = grade(text, problem.answer, finished=finished)
    return line | {"score": None if found.correct is None else 100.0 * found.correct, "error": found.error}


def graded_again(path: Path, metadata: Line, lines: list[Line], grade: Callable[[Line], Line]) -> list[Line]:
    """The lines, those without a score graded again; the file is rewritten where that changed one."""
    again = [line if line["score"] is not None else grade(line) for line in lines]
    if again != lines:
        summary_of(path).unlink(missing_ok=True)
        write_lines(path, metadata, again)
    return again


def summary_of(path: Path) -> Path:
    """The summary that stands beside a finished file."""
    return path.with_name(path.name + ".summary.json")


def finish(path: Path, metadata: Line, lines: list[Line], problems: list[str], speed: Line) -> None:
    """Put the finished file in the order of ``problems`` and trials, and write its summary beside it."""
    lines = sorted(lines, key=lambda line: (problems.index(line["problem"]), line["trial"]))
    write_lines(path, metadata, lines)
    scores = [line["score"] / 100 for line in lines if line["score"] is not None]
    ends = [line["stopped"] for line in lines]
    summary = {
        **metadata["kinetics_lab"],
        "answers": len(lines),
        "graded": len(scores),
        "accuracy": float(np.mean(scores)) if scores else None,
        "mean_tokens_out": float(np.mean([line["tokens_out"] for line in lines])),
        "stopped": {why: ends.count(why) for why in ("end", "length", "repetition")},
        "last_run": speed,
    }
    write_text(summary_of(path), json.dumps(summary, indent=1) + "\n")
