"""What the readers of trace files share: one trial, the caller's word, checks of single values, what to report."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from kinetics_lab.cost.policies import parse_policy
from kinetics_lab.errors import absent, require
from kinetics_lab.traces.said import Record, cut_by, spoken, thinks, whole_number

Tokenizer = Callable[[str], Any]
_VERDICTS = dict.fromkeys(("true", "1", "1.0", "100", "100.0"), True)
_VERDICTS |= dict.fromkeys(("false", "0", "0.0"), False)
_SCALES = dict.fromkeys(("1", "1.0"), "of 1") | dict.fromkeys(("100", "100.0"), "of 100")
_UNSAID = {
    "tokenizer": "token counts are not stored here; give tokenizer=... (a function, or a name on the hub)",
    "limit": "the file does not say which answers the generation limit cut; give limit=... in tokens (answers at least "
    "that long count as cut; math.inf: none)",
}

#: What ``Run.seen`` counts, and what it says of lengths that may lack reasoning.
SHORT = {
    "empty": "{empty:,} of {all:,} answers have no tokens at all: an answer that was not logged has an unusable length",
    "thoughtless": "{thoughtless:,} of {texts:,} lengths were counted from texts that show no thinking (no </think>, no reasoning "
    "beside the answer): if the model thought, it was cut before logging, and these lengths are unusable",
    "short": "{short:,} of {counts:,} answers have more text than the tokens counted for them can hold (over 10 characters each): "
    "these counts leave something out, the reasoning perhaps",
    "beside": "{beside:,} answers have tokens in the total, or in reasoning_tokens, that the completion's count does not hold; they "
    "were added to the answers' lengths as reasoning",
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
    request: object = None  # the request's own id: only a copied line has it, and the text, again
    text: str = ""  # of the answer; equal samples are kept, and counted
    answer: str = ""  # the final one, if the file has it


Parse = Callable[[Record], Iterable[Trial]]


def problem_id(text: str) -> str:
    """First 16 hex digits of the SHA-256 of the text, runs of white space made one blank: a problem's name."""
    return hashlib.sha256(" ".join(text.split()).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def stem_of(path: Path) -> str:
    """The file's name without its suffixes, ``.jsonl.gz`` for example."""
    return path.name.removesuffix(".gz").rsplit(".", 1)[0]


def field_of(record: Any, name: str, kind: type | tuple[type, ...], what: str) -> Any:
    """``record[name]``, refused unless it is there and of the kind described by ``what``."""
    require(isinstance(record, dict), "expected a JSON object", record)
    if name not in record:
        found = ", ".join(map(str, record)) or "nothing"
        raise ValueError(f"no {name!r}; it must be {what} (found: {found})")
    require(isinstance(record[name], kind), f"{name} must be {what}", record[name])
    return record[name]


@cache
def spelling(policy: str) -> str:
    """A policy's one spelling: topk:512:true is topk:512."""
    return str(parse_policy(policy))


def model_name(name: str) -> str:
    """A model as this package writes it: Qwen/Qwen3-8B is qwen3-8b."""
    return name.rsplit("/", 1)[-1].lower()


def token_counter(given: Tokenizer | str | None) -> Tokenizer | None:
    """A function text -> number of tokens."""
    if given is None:
        return None
    if isinstance(given, str):
        try:
            hub = import_module("tokenizers").Tokenizer
        except ImportError:
            raise absent("tokenizers", f"tokenizer {given!r}") from None
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
    """What the caller says about the files, where in them the reader is, and what it has to report in the end."""

    model: str | None
    task: str | None
    policy: str | None
    limit: float | None
    metric: str | None
    prompt: Callable[[str], str] | None
    tokenizer: Tokenizer | None
    columns: Mapping[str, str] = field(default_factory=dict)  # theirs -> ours
    prompts: dict[str, int] = field(default_factory=dict)  # tokens of each prompt, counted once
    path: Path = Path()
    line: int = 0
    #: Of the file's verdicts, since which line.
    scales: dict[str, tuple[str, int]] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)

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

    def verdict(self, value: Any, name: str) -> bool:
        """A verdict: true or false, 1 or 0, or the percentage 100 or 0. A file that has 1 and 100 is refused."""
        text = str(value).strip().lower()
        verdict = _VERDICTS.get(text)
        require(verdict is not None, f"{name} must be 0, 1 or 100 (or true, false)", value)
        if (scale := _SCALES.get(text)) is not None:
            other, line = self.scales.setdefault(name, (scale, self.line))
            if other != scale:
                here = f"{name} is {value} here and {other.removeprefix('of ')} at {self.path}:{line}"
                raise TraceFileError(
                    f"{here}: 1 of 100 is nearly wrong, 1 of 1 is right; give all on one scale"
                )
        return bool(verdict)

    def tokens(self, text: str) -> int:
        return self.said("tokenizer")(text)

    def prompt_tokens(self, text: str) -> int:
        name = problem_id(text)
        if name not in self.prompts:
            self.prompts[name] = self.tokens(text)
        return self.prompts[name]

    def answer(
        self, names: tuple[str, str, str], problem: str, said: Any, right: bool, *,
        counts: tuple[int | None, int | None] = (None, None), prompt: str | None = None, reason: Any = None,
        cut: bool | None = None, trial: int = -1, request: object = None, final: Any = "",
    ) -> Trial:  # fmt: skip
        """The trial of an answer: what a server counted of it, or of its text and its prompt's, counted here.

        names: model, task, policy. said: the answer's text, or the message that holds it. counts: of prompt and
        answer, None where not known. Lengths that may be too short are counted in ``seen``.
        """
        tokens_in, tokens = counts
        if tokens_in is None:
            if prompt is None:
                raise ValueError(
                    "no prompt_tokens (or input_tokens, tokens_in, prompt_token_ids) and no prompt's text to count"
                )
            tokens_in = self.prompt_tokens(prompt)
        text = spoken(said)
        if tokens is None:
            tokens = self.tokens(text)
            self.seen["texts"] += 1
            self.seen["thoughtless"] += not thinks(said)
        else:
            self.seen["counts"] += 1
            self.seen["short"] += len(text) > 200 + 10 * tokens
        if cut is None:
            cut = tokens >= self.said("limit") if reason in (None, "", "unknown") else cut_by(reason)
        answer = final if type(final) is str else "" if final is None else str(final)
        return Trial(*names, problem, tokens_in, tokens, right, cut, trial, request, text, answer)
