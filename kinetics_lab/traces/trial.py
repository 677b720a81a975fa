"""What the readers of trace files share: records of a file, one trial, the caller's word, checks of single values."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pandas as pd

from kinetics_lab.cost.policies import parse_policy
from kinetics_lab.errors import require

Record = dict[str, Any]
Tokenizer = Callable[[str], Any]
_VERDICTS = dict.fromkeys(("true", "1", "1.0", "100", "100.0"), True)
_VERDICTS |= dict.fromkeys(("false", "0", "0.0"), False)
_UNSAID = {
    "tokenizer": "token counts are not stored here; give tokenizer=... (a function, or a name on the hub)",
    "limit": "the file does not say which answers the generation limit cut; give limit=... in tokens (answers at least "
    "that long count as cut; math.inf: none)",
}


class TraceFileError(ValueError):
    """Wrong about the file as a whole: never skipped."""


class Trial(NamedTuple):
    """One answer as a line parser hands it on; the first four fields are the table's ``GROUP``."""

    model: str
    task: str
    policy: str
    problem: str
    tokens_in: int
    tokens_out: int
    correct: bool
    truncated: bool
    trial: int = -1  # to be numbered in the order read
    mark: object = None  # what tells a copy of the line: the answer's text or ids, or the request's id


Parse = Callable[[Record], Iterable[Trial]]


def records(file: BinaryIO) -> Iterator[tuple[int, Record | ValueError]]:
    """Line numbers and records of a JSONL, CSV or Parquet file (by its name), or what is wrong with a line."""
    name = Path(file.name)
    kind = Path(name.name.removesuffix(".gz")).suffix
    if kind == ".parquet":
        return _parquet_rows(file)
    data: Any = gzip.GzipFile(fileobj=file) if name.suffix == ".gz" else file
    return _csv_rows(data) if kind == ".csv" else _json_lines(data)


def _json_lines(data: Any) -> Iterator[tuple[int, Record | ValueError]]:
    for number, line in enumerate(data, 1):
        if line.strip():
            try:
                record = json.loads(line)
                if not isinstance(record, dict):
                    record = ValueError(f"each line must be a JSON object; got {shortened(record)}")
            except (ValueError, RecursionError) as error:
                text = line[:40].decode("utf-8", "replace").rstrip()
                record = ValueError(f"not a JSON object but {text!r} ({error})")
            yield number, record


def _csv_rows(data: Any) -> Iterator[tuple[int, Record | ValueError]]:
    reader = csv.reader(io.TextIOWrapper(data, "utf-8-sig", newline=""))
    header = next(reader, [])
    for cells in filter(None, reader):
        rule = f"the row must have {len(header)} cells like the header; got {len(cells)}"
        whole = len(cells) == len(header)
        yield reader.line_num, dict(zip(header, cells, strict=True)) if whole else ValueError(rule)


def _parquet_rows(data: Any) -> Iterator[tuple[int, Record | ValueError]]:
    try:
        table = pd.read_parquet(data)
    except (ValueError, OSError) as error:
        raise TraceFileError(f"not a Parquet file ({error})") from None
    for start in range(0, len(table), 65536):
        part = table.iloc[start : start + 65536]
        yield from enumerate(part.astype(object).where(part.notna(), None).to_dict("records"), start + 1)


def problem_id(text: str) -> str:
    """First 16 hex digits of the SHA-256 of the text, runs of white space made one blank: a problem's name."""
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:16]


def mark_of(text: str) -> str | None:
    """The answer itself where it is long enough that two samples cannot agree by chance."""
    return text if len(text) >= 200 else None


def stem_of(path: Path) -> str:
    """The file's name without its suffixes, ``.jsonl.gz`` for example."""
    return path.name.removesuffix(".gz").rsplit(".", 1)[0]


def shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def field_of(record: Any, name: str, kind: type | tuple[type, ...], what: str) -> Any:
    """``record[name]``, refused unless it is there and of the kind described by ``what``."""
    require(isinstance(record, dict), "expected a JSON object", record)
    if name not in record:
        found = ", ".join(map(str, record)) or "nothing"
        raise ValueError(f"no {name!r}; it must be {what} (found: {found})")
    require(isinstance(record[name], kind), f"{name} must be {what}", record[name])
    return record[name]


def whole_number(value: Any, name: str, least: int = 0) -> int:
    """A whole number from JSON or from the text of a CSV cell."""
    if type(value) is int and least <= value < 2**31:
        return value  # as nearly all are
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    require(number % 1 == 0 and least <= number < 2**31, f"{name} must be a whole number >= {least}", value)
    return int(number)


def verdict_of(value: Any, name: str) -> bool:
    """A verdict: true or false, 1 or 0, or the percentage 100 or 0."""
    verdict = _VERDICTS.get(str(value).strip().lower())
    require(verdict is not None, f"{name} must be 0, 1 or 100 (or true, false)", value)
    return bool(verdict)


@cache
def spelling(policy: str) -> str:
    """A policy's one spelling: topk:512:true is topk:512."""
    return str(parse_policy(policy))


def token_counter(given: Tokenizer | str | None) -> Tokenizer | None:
    """A function text -> number of tokens."""
    if given is None:
        return None
    if isinstance(given, str):
        try:
            hub = import_module("tokenizers").Tokenizer
        except ImportError:
            needs = f"tokenizer {given!r} needs the package tokenizers: pip install 'kinetics-lab[traces]'"
            raise ValueError(f"{needs} (or give a function from text to a number of tokens)") from None
        try:
            loaded = hub.from_file(given) if Path(given).is_file() else hub.from_pretrained(given)
        except Exception as error:  # the package raises plain Exception
            raise ValueError(f"tokenizer {given!r} could not be loaded: {error}") from error
        return lambda text: len(loaded.encode(text, add_special_tokens=False).ids)

    def count(text: str) -> int:
        found = given(text)
        if isinstance(found, Mapping):  # what a Hugging Face transformers tokenizer returns when called
            found = found["input_ids"]
        return whole_number(len(found) if hasattr(found, "__len__") else found, "the tokenizer's count")

    return count


@dataclass
class Run:
    """What the caller says about the files, and the lookups that a line parser needs."""

    model: str | None
    task: str | None
    policy: str | None
    limit: float | None
    metric: str | None
    prompt: Callable[[str], str] | None
    tokenizer: Tokenizer | None
    prompts: dict[str, int] = field(default_factory=dict)  # tokens of each prompt, counted once

    def said(self, name: str) -> Any:
        """What the caller says where the file does not."""
        if (value := getattr(self, name)) is None:
            which = f"the file does not say which {name} this is; give {name}=..."
            raise TraceFileError(_UNSAID.get(name, which))
        return value

    def agreed(self, name: str, found: str, where: str) -> str:
        """The file's model, task or policy, which the caller must not contradict."""
        given = getattr(self, name)
        if given not in (None, found):
            raise TraceFileError(f"{name}={given!r} was given, but {where} says {found!r}")
        return found

    def tokens(self, text: str) -> int:
        return self.said("tokenizer")(text)

    def prompt_tokens(self, text: str) -> int:
        name = problem_id(text)
        if name not in self.prompts:
            self.prompts[name] = self.tokens(text)
        return self.prompts[name]

    def cut(self, tokens_out: int) -> bool:
        return tokens_out >= self.said("limit")

    def sampled(
        self, model: str, task: str, policy: str, problem: str, prompt: str, text: str, correct: bool
    ) -> Trial:
        """The trial of an answer of which the text is all there is: prompt and answer are counted here."""
        tokens_in, tokens_out = self.prompt_tokens(prompt), self.tokens(text)
        cut, mark = self.cut(tokens_out), mark_of(text)
        return Trial(model, task, policy, problem, tokens_in, tokens_out, correct, cut, mark=mark)
