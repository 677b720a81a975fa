"""The file of a generation: answers appended as they finish, continued after a stop, put in order at the end.

The layout is the published one (see ``read_traces``): a line of metadata, then one graded answer a line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kinetics_lab.decode.grade import Grade, Problem
from kinetics_lab.errors import require
from kinetics_lab.files import write_text

Grader = Callable[..., Grade]  # (an answer's text, the reference, finished=)
Line = dict[str, Any]


def summary_of(path: Path) -> Path:
    """The summary that stands beside a finished file."""
    return path.with_name(path.name + ".summary.json")


class AnswerFile:
    """A generation's file and the answers in it, ``lines``, in the order they came; nobody else may write to it.

    problems: by name; openings: what a problem's prompt began its answers with, ``<think>`` or nothing. A stopped
    run's answers are read back and those without a verdict graded again. Raises ValueError where the file belongs to
    other settings or problems, or is no such file at all.
    """

    def __init__(
        self, path: Path, metadata: Line, problems: Mapping[str, Problem], openings: Mapping[str, str], grade: Grader
    ) -> None:  # fmt: skip
        self.path, self.metadata, self.grade = path, metadata, grade
        self.problems, self.openings = problems, openings
        read = _read_lines(path, metadata)
        strange = next((x["problem"] for x in read if x["problem"] not in problems), None)
        require(strange is None, f"{path} must hold problems that are given", strange)
        strange = next((x["problem"] for x in read if x["query"] != problems[x["problem"]].text), None)
        require(strange is None, f"{path} must hold the texts of the problems that are given", strange)
        self.lines = [self._graded(line) if line["score"] is None else line for line in read]
        if self.lines != read:
            summary_of(path).unlink(missing_ok=True)
        if self.lines != read or not read:
            self._write()

    @property
    def done(self) -> set[tuple[str, int]]:
        """Problem and trial of every answer that is there."""
        return {(line["problem"], line["trial"]) for line in self.lines}

    def add(self, line: Line) -> None:
        """Append an answer so that it survives a crash of the machine, and only then grade it: that can take seconds."""
        summary_of(self.path).unlink(missing_ok=True)
        line |= {"score": None, "error": "not graded yet"}
        with self.path.open("ab") as handle:
            start = handle.tell()
            handle.write(_json(line).encode())
            handle.flush()
            os.fsync(handle.fileno())
        self.lines.append(self._graded(line))
        old, new = (_json(each).encode()[:-1] for each in (line, self.lines[-1]))
        # Only the last bytes differ, padded with blanks. A longer one, an error's text, is written when all are there.
        if len(new) <= len(old):
            with self.path.open("r+b") as handle:
                handle.seek(start)
                handle.write(new.ljust(len(old)))

    def finish(self, speed: Line) -> None:
        """Put the file in the order of problems and trials, and write its summary beside it, unless that is there."""
        if summary_of(self.path).exists():
            return
        order = list(self.problems)
        self.lines.sort(key=lambda line: (order.index(line["problem"]), line["trial"]))
        self._write()
        scores = [line["score"] / 100 for line in self.lines if line["score"] is not None]
        ends = [line["stopped"] for line in self.lines]
        summary = {
            **self.metadata["kinetics_lab"],
            "answers": len(self.lines),
            "graded": len(scores),
            "accuracy": float(np.mean(scores)) if scores else None,
            "mean_tokens_out": float(np.mean([line["tokens_out"] for line in self.lines])),
            "stopped": {why: ends.count(why) for why in ("end", "length", "repetition")},
            "last_run": speed,
        }
        write_text(summary_of(self.path), json.dumps(summary, indent=1) + "\n")

    def _graded(self, line: Line) -> Line:
        """The line with the grader's verdict: score 100 or 0, or no score and the error."""
        name = line["problem"]
        text, finished = self.openings[name] + line["prediction"][0], line["stopped"] == "end"
        found = self.grade(text, self.problems[name].answer, finished=finished)
        score = None if found.correct is None else 100.0 * found.correct
        return line | {"score": score, "error": found.error}

    def _write(self) -> None:
        write_text(self.path, "".join(map(_json, (self.metadata, *self.lines))))


def _json(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _read_lines(path: Path, metadata: Line) -> Sequence[Line]:
    """The finished lines of a stopped run; a line torn by the stop is cut off."""
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
