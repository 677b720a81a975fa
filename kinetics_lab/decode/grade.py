"""Problems with known answers, and the verdict on a generated one by math-verify (extra ``generate``).

Grading runs in a child process. SymPy can take forever over an answer such as 9^9^9^9, and math-verify's own time
limit is a signal, which works in the main thread only. A child can be ended by the kernel whatever it does, so a
verdict is correct, wrong, or an error (no verdict): never wrong because the grader gave up.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from decimal import Decimal
from importlib import import_module
from itertools import accumulate
from pathlib import Path
from typing import Any

from kinetics_lab.decode import grader
from kinetics_lab.errors import absent, require, unknown
from kinetics_lab.traces.said import shortened
from kinetics_lab.traces.sources import records
from kinetics_lab.traces.trial import problem_id

DEEPEST = 200  # braces within braces of an answer


@dataclass(frozen=True)
class Problem:
    """A question, its name (``problem_id`` of the text where none is given) and its reference answer."""

    id: str
    text: str
    answer: str


@dataclass(frozen=True)
class Grade:
    """A verdict, or the error that kept the grader from one (``correct`` is None then)."""

    correct: bool | None
    error: str | None = None


@dataclass(frozen=True)
class HubSet:
    """A data set on the Hugging Face hub: repository, revision, file in it, and how many problems that holds."""

    repo: str
    revision: str
    file: str
    size: int


HUB = {
    "aime24": HubSet("HuggingFaceH4/aime_2024", "2fe88a2f1091d5048c0f36abc874fb997b3dd99a", "data/train-00000-of-00001.parquet", 30),
    "aime25": HubSet("math-ai/aime25", "563bb8404243c5f09de6ec262f2db674fe5bce9b", "test.jsonl", 30),
    "math-500": HubSet("HuggingFaceH4/MATH-500", "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be", "test.jsonl", 500),
    "gsm8k": HubSet("openai/gsm8k", "740312add88f781978c0658806c59bc2815b9866", "main/test-00000-of-00001.parquet", 1319),
}  # fmt: skip


def problems(source: str | os.PathLike[str]) -> list[Problem]:
    """The problems of a JSONL file, or of a known set: aime24, aime25, math-500, gsm8k (its test part).

    A line of the file is an object with the question as ``problem``, ``question`` or ``query``, and an ``answer``
    (text or number; where it holds ``####``, as in GSM8K, what follows that), and may have an ``id``. The known sets
    come from the Hugging Face hub at a fixed revision and are named by ``problem_id``, as the published traces are.
    Repositories, revisions, files, columns and sizes are as several public repositories pin and use them (AIME and
    MATH-500 with a checksum of the file); they were not downloaded to check.

    Raises ValueError with file, line, value and what would be right: a name neither known nor a file, a missing or
    doubled question, id or answer, and an answer no verdict could be given on, because math-verify cannot parse it.
    """
    grader.need_math_verify()
    name = os.fspath(source)
    if not (known := HUB.get(name)) and not Path(name).is_file():
        if os.sep in name or name.endswith((".jsonl", ".json", ".parquet", ".csv", ".gz")):
            raise FileNotFoundError(f"{name}: no such file")
        raise unknown("problem set (no file either)", name, sorted(HUB))
    path = _downloaded(name, known) if known else Path(name)
    found: list[Problem] = []
    seen: dict[str, int] = {}
    with path.open("rb") as file:
        for line, record in records(file):
            try:
                if isinstance(record, ValueError):
                    raise record
                problem = _problem(record, named=known is None)
                for what, key in (("id", problem.id), ("text", f"text {problem_id(problem.text)}")):
                    if (first := seen.setdefault(key, line)) != line:
                        raise ValueError(f"the {what} is that of line {first}: {shortened(problem.id)}")
                if error := grader.ask(_written(problem.answer), None, 60)[1]:
                    raise ValueError(f"answer {shortened(problem.answer)} cannot be graded: {error}")
            except ValueError as error:
                raise ValueError(f"{name}:{line}: {error}") from None
            found.append(problem)
    size = known.size if known else max(len(found), 1)
    require(len(found) == size, f"{name}: must hold {size} problem{'s' * (size > 1)}", len(found))
    return found


def _downloaded(name: str, known: HubSet) -> Path:
    try:
        fetch = import_module("huggingface_hub").hf_hub_download
    except ImportError:
        raise absent("huggingface_hub") from None
    try:
        return Path(fetch(known.repo, known.file, repo_type="dataset", revision=known.revision))
    except Exception as error:  # no network, no access, no such file: each with a class of its own
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{name} could not be fetched from the hub (data set {known.repo}: {why}); without a network, give a "
            "JSONL file with a problem and an answer a line"
        ) from error


def _problem(record: dict[str, Any], named: bool) -> Problem:
    texts = {key: record[key] for key in ("problem", "question", "query") if record.get(key) is not None}
    if len(texts) != 1:
        raise ValueError(
            f"one of problem, question and query must hold the text; got {', '.join(texts) or shortened(record)}"
        )
    ((key, text),) = texts.items()
    require(isinstance(text, str) and bool(text.strip()), f"{key} must be the question's text", text)
    answer = record.get("answer")
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = format(Decimal(str(answer)), "f")  # 1e-05 would be read as a product
    rule = "answer must be a text or a number"
    require(isinstance(answer, str) and bool(answer.rpartition("####")[2].strip()), rule, answer)
    name = record.get("id") if named else None
    rule = "id must be a text or a whole number"
    fine = isinstance(name, str | int) and not isinstance(name, bool) and bool(str(name).strip())
    require(name is None or fine, rule, name)
    name = problem_id(text) if name is None else str(name)
    return Problem(name, text, str(answer).rpartition("####")[2].strip())


def grade(answer: str, reference: str, *, finished: bool = True, timeout: float = 10.0) -> Grade:
    r"""Is the final answer of a generated text the reference?

    Only what follows the last ``</think>`` counts; a text that ends inside ``<think>`` is wrong (put ``<think>`` in
    front where the prompt's template opened it). There the last ``\boxed{}`` is the answer, or the last ones joined by
    "and", "or" or a comma. Without a box math-verify takes the last statement of an answer, or the last number, in the
    last 2,000 characters; not in a text that the limit cut (``finished`` false), where that would be luck. No
    answer at all is wrong. Numbers are compared as numbers (025 is 25, 1,234 is 1234); 10% counts as 10 and
    as 0.1. timeout: seconds after which there is no verdict, but an error.

    Raises ValueError without math-verify. Any thread may call it; verdicts are given one after the other.
    """
    require(timeout > 0, "timeout must be positive (seconds)", timeout)
    grader.need_math_verify()
    final = _final(answer, finished)
    if final is None:
        return Grade(False)
    if (deep := max(accumulate((c == "{") - (c == "}") for c in final))) > DEEPEST:
        return Grade(None, f"the answer nests {deep:,} braces, and at most {DEEPEST} are read")
    return Grade(*grader.ask(_written(reference), final, timeout))


_BOX = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\.|(?P<open>\{)|(?P<close>\})", re.DOTALL)
_BETWEEN_BOXES = re.compile(r"[\s$]*(?:,|,?\s*(?:and|or)\b)[\s$]*")
_NUMBER = re.compile(
    r"(?:\\?\$)?\s*([-−]?)\s*(?:\\?\$)?(\d{1,3}(?:(?:,|\{,\}|,?\\[,!; ]|[ ~])\d{3})+|\d+)(\.\d+)?"
)
_WORDS = re.compile(r"(?=.*[A-Za-z]{4})[A-Za-z][\w .'-]*", re.ASCII)


def _final(answer: str, finished: bool) -> str | None:
    """The part of an answer that math-verify shall judge; None where there is none."""
    text = answer.rpartition("</think>")[2]
    if "<think>" in text:
        return None
    boxes: list[tuple[int, int, int]] = []  # start, end, content's start, in the order in which they end
    braces: list[tuple[int, int] | None] = []  # open ones: start and content's start, if it is a box's
    for found in _BOX.finditer(text):
        if found["box"] or found["open"]:
            braces.append((found.start(), found.end()) if found["box"] else None)
        elif found["close"] and braces and (box := braces.pop()):
            boxes.append((box[0], found.end(), box[1]))
    if not boxes:
        cut = not finished or re.search(r"\\(?:boxed|fbox)\s*\{", text)
        return None if cut else text[-2000:].replace("−", "-").strip() or None
    chosen = [boxes.pop()]
    while boxes and _BETWEEN_BOXES.fullmatch(text, boxes[-1][1], max(chosen[-1][0], boxes[-1][1])):
        chosen.append(boxes.pop())
    return _boxed(", ".join(_plain(text[inner : end - 1]) for _, end, inner in reversed(chosen)))


def _plain(text: str) -> str:
    r"""A number without separators (math-verify reads 1\,234 as 1 + 234), words as text (not a product of letters)."""
    text = text.strip()
    if number := _NUMBER.fullmatch(text):
        return number[1].replace("−", "-") + re.sub(r"\D", "", number[2]) + (number[3] or "")
    return rf"\text{{{text}}}" if _WORDS.fullmatch(text) else text


def _boxed(text: str) -> str:
    return rf"\boxed{{{text}}}"


def _written(reference: str) -> str:
    return _boxed(_plain(reference))
