"""The formats of trace files: how each is recognised, and the parser of its lines.

A new format is one more sign in ``recognise``, and in ``PARSERS`` a function that makes its line parser. A parser
turns a record into trials; it raises ValueError for a bad line and ``TraceFileError`` for what is wrong with the file
as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from kinetics_lab.errors import require
from kinetics_lab.traces.layout import NAME, kinetics
from kinetics_lab.traces.table import COLUMNS, GROUP
from kinetics_lab.traces.trial import (
    Parse,
    Record,
    Run,
    TraceFileError,
    Trial,
    field_of,
    mark_of,
    problem_id,
    shortened,
    spelling,
    stem_of,
    verdict_of,
    whole_number,
)


def _table(path: Path, first: Record, run: Run) -> Parse:
    """Rows that have the trace table's columns already; ``trial`` may be missing, and what the caller says."""

    def name_of(record: Record, name: str) -> str:
        if name not in record:
            return run.said(name)
        value = "" if record[name] is None else str(record[name])
        return run.agreed(name, spelling(value) if name == "policy" else value, "the column")

    def parse(record: Record) -> Iterable[Trial]:
        for name in ("problem", "tokens_in", "tokens_out", "correct"):
            if name not in record:
                raise TraceFileError(f"no column {name}; the trace table needs {', '.join(COLUMNS)}")
        model, task, policy = (name_of(record, name) for name in GROUP[:3])
        problem = "" if record["problem"] is None else str(record["problem"]).strip()
        tokens_in = whole_number(record["tokens_in"], "tokens_in", 1)
        tokens = whole_number(record["tokens_out"], "tokens_out")
        right = verdict_of(record["correct"], "correct")
        cut = verdict_of(record["truncated"], "truncated") if "truncated" in record else run.cut(tokens)
        trial = whole_number(record["trial"], "trial") if "trial" in record else -1
        yield Trial(model, task, policy, problem, tokens_in, tokens, right, cut, trial)

    return parse


def _lm_eval(path: Path, first: Record, run: Run) -> Parse:
    """``samples_{task}_{date}.jsonl`` of lm-evaluation-harness: a line per document and filter.

    (``lm_eval/evaluator.py`` and ``loggers/evaluation_tracker.py`` there.) A line has ``doc_id``, ``doc``, ``arguments``
    (``gen_args_0.arg_0`` is the prompt), ``resps`` ([[text, one per repeat]]), ``filter``, ``metrics`` (names),
    ``doc_hash`` (where ``doc`` has no question) and one value per metric AND line: with repeats it does not say which
    answer was right, so one file per trial is needed. ``metric`` is "exact_match" or, as in the harness's results,
    "exact_match,strict-match" (metric, filter).
    """
    found = re.fullmatch(r"samples_(.+?)(?:_\d{4}-\d\d-\d\dT[\d.-]+)?", stem_of(path))
    task = run.task or (found[1] if found else run.said("task"))
    model, policy = run.said("model"), run.said("policy")
    metric, _, wanted = (run.metric or "").partition(",")
    seen: dict[str, Any] = {}  # the filter
    documents: dict[str, Any] = {}  # problem -> doc_id

    def parse(record: Record) -> Iterable[Trial]:
        name = record.get("filter", "none")
        if wanted and name != wanted:
            return
        if (one := seen.setdefault("filter", name)) != name:
            both = f"two filters score the same answers ({one} and {name})"
            raise TraceFileError(f"{both}; choose one: metric='exact_match,{name}'")
        key = metric or _only_metric(record)
        problem, identity = _document(record), record.get("doc_id")
        if problem in documents:
            raise ValueError(f"doc_id {identity} asks what doc_id {documents[problem]} asked before")
        scored = _scored(record, key)
        arguments = field_of(record, "arguments", (dict, list), "the prompt")
        try:
            prompt = arguments["gen_args_0"]["arg_0"] if isinstance(arguments, dict) else arguments[0][0]
            run.prompt_tokens(prompt)
        except (LookupError, TypeError, AttributeError):
            wrong = f"arguments must hold the prompt's text first; got {shortened(arguments)}"
            raise ValueError(wrong) from None
        documents[problem] = identity
        for text, value in scored:
            yield run.sampled(model, task, policy, problem, prompt, text, verdict_of(value, key))

    return parse


def _only_metric(record: Record) -> str:
    names = record.get("metrics") or (["exact_match"] if "exact_match" in record else [])
    if len(names) != 1:
        known = ", ".join(names) or "its names"
        raise TraceFileError(f"which score says that an answer is right? give metric=..., one of {known}")
    return names[0]


def _document(record: Record) -> str:
    """The problem's name: from the question's text, or the document's hash."""
    doc = field_of(record, "doc", dict, "the task's document")
    questions = [v for k, v in doc.items() if k.lower() in ("problem", "question", "query")]
    if len(questions) == 1 and isinstance(questions[0], str):
        return problem_id(questions[0])
    return field_of(record, "doc_hash", str, "the document's hash")[:16]


def _scored(record: Record, key: str) -> Iterable[tuple[str, Any]]:
    """The logged answers, each with its score."""
    answers = field_of(record, "resps", list, "a list with one list of answers")
    texts = answers[0] if len(answers) == 1 and isinstance(answers[0], list) else [None]
    if not all(isinstance(text, str) for text in texts):
        raise TraceFileError("resps must hold one list of generated texts; this is no generate_until task")
    score = field_of(record, key, object, "the score")
    scores = score if isinstance(score, list) else [score]
    if len(scores) != len(texts):
        raise TraceFileError(
            f"{len(texts)} answers but {len(scores)} value of {key}: which answers are right is not logged; "
            "run the task with repeats: 1 once per trial and give all files"
        )
    return zip(texts, scores, strict=True)


def _requests(path: Path, first: Record, run: Run) -> Parse:
    """A server's answer a line, with ``correct`` or ``score`` beside it (a list where there are several answers).

    The problem is an id in ``problem``, or the prompt's text. vLLM's RequestOutput: ``prompt_token_ids``,
    ``outputs[].token_ids``, ``outputs[].finish_reason``. OpenAI-compatible: ``usage.prompt_tokens``,
    ``usage.completion_tokens`` (of all answers together), ``choices[].finish_reason``, also as ``response.body`` of a
    batch. SGLang: ``meta_info.prompt_tokens``, ``completion_tokens``, ``finish_reason.type``.
    """
    models: set[str] = set()

    def parse(record: Record) -> Iterable[Trial]:
        body = record["response"].get("body") if isinstance(record.get("response"), dict) else record
        require(isinstance(body, dict), "response must hold the server's answer as body", body)
        if isinstance(name := body.get("model", record.get("model")), str):
            models.add(name)
        if len(models) > 1:
            both = " and ".join(sorted(models))
            raise TraceFileError(f"answers of two models in one file ({both}); one file per model, please")
        model = run.model or (name.rsplit("/", 1)[-1].lower() if isinstance(name, str) else run.said("model"))
        task = record["task"] if isinstance(record.get("task"), str) else run.said("task")
        problem, prompt = _problem(record, body)
        meta = body.get("meta_info") or {}
        usage = body.get("usage") or meta
        tokens_in = _length("prompt", body.get("prompt_token_ids"), usage, prompt, run.prompt_tokens)
        policy = run.said("policy")
        answers = body.get("outputs", body.get("choices"))
        if answers is None:  # SGLang: the answer is the body itself
            answers = [body | {k: v for k, v in meta.items() if k == "finish_reason"}]
        many = isinstance(answers, list) and answers and all(isinstance(a, dict) for a in answers)
        require(bool(many), "outputs (or choices) must be a list of answers", answers)
        label = record.get("custom_id") or record.get("request_id") or body.get("id") or meta.get("id")
        for place, (answer, verdict) in enumerate(zip(answers, _verdicts(record, answers), strict=True)):
            text = answer.get("text", (answer.get("message") or {}).get("content"))
            ids = answer.get("token_ids", answer.get("output_ids"))
            own = usage if len(answers) == 1 else {}  # it counts all answers of a request together
            tokens = _length("completion", ids, own, text, run.tokens)
            cut = _by_limit(answer["finish_reason"]) if "finish_reason" in answer else run.cut(tokens)
            mark = mark_of(str(ids or text or "")) or (f"{label}:{place}" if label else None)
            yield Trial(model, task, policy, problem, tokens_in, tokens, verdict, cut, mark=mark)

    return parse


def _problem(record: Record, body: Record) -> tuple[str, str | None]:
    """Name of the problem (its id, or the hash of its text) and the text of the prompt where there is one."""
    request = record.get("request") or {}
    messages = record.get("messages", body.get("messages", request.get("messages")))
    texts = [record.get(name, body.get(name)) for name in ("query", "question", "prompt")]
    if isinstance(messages, list):
        texts += [m.get("content") for m in messages[::-1] if isinstance(m, dict) and m.get("role") == "user"]
    text = next((t for t in texts if isinstance(t, str) and t.strip()), None)
    for name in ("problem", "problem_id"):
        value = record.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value), text
        if isinstance(value, str) and value.strip():
            return (problem_id(value), text or value) if re.search(r"\s", value) else (value, text)
    if text is None:
        raise ValueError(
            "no problem: give each line a problem (its id) or the prompt's text as prompt or messages"
        )
    return problem_id(text), text


def _length(kind: str, ids: Any, usage: Record, text: Any, count: Callable[[str], int]) -> int:
    """Tokens of a prompt or a completion: of its ids, as the server says of it alone, or counted."""
    name, least = ("prompt_token_ids", 1) if kind == "prompt" else ("token_ids", 0)
    key = f"{kind}_tokens"
    if ids is not None:
        require(isinstance(ids, list), f"{name} must be a list of token ids", ids)
        return whole_number(len(ids), f"number of {name}", least)
    if key in usage:
        return whole_number(usage[key], key, least)
    if not isinstance(text, str):
        raise ValueError(f"no {name}, usage.{key}, meta_info.{key} (of a single answer) or text to count")
    return count(text)


def _verdicts(record: Record, answers: list[Record]) -> list[bool]:
    """One verdict for each answer, from the answers themselves or from beside them."""
    key = "correct" if "correct" in record or "correct" in answers[0] else "score"
    found = [a[key] for a in answers] if all(key in a for a in answers) else record.get(key, [])
    found = found if isinstance(found, list) else [found]
    if len(found) != len(answers):
        wanted = "a value of correct (or score)" + (" for each" if len(answers) > 1 else "")
        raise ValueError(f"{len(answers)} answers need {wanted}; got {len(found)}")
    return [verdict_of(value, key) for value in found]


def _by_limit(reason: Any) -> bool:
    """Whether the generation limit ended an answer."""
    name = reason.get("type") if isinstance(reason, dict) else reason  # SGLang: {"type": "length", ...}
    if name not in ("length", "stop", "eos", "tool_calls"):
        raise ValueError(f"finish_reason must be 'stop' or 'length' (an answer that ended); got {name!r}")
    return name == "length"


def recognise(path: Path, first: Record) -> str:
    """The format of a file, from its name and its first record."""
    if "tokens_out" in first or path.name.removesuffix(".gz").endswith((".csv", ".parquet")):
        return "table"
    if "resps" in first:
        return "lm-eval"
    if first.keys() & {"prediction", "attn_local", "kinetics_lab"} or NAME.fullmatch(stem_of(path)):
        return "kinetics"
    if first.keys() & {"outputs", "choices", "meta_info", "usage", "response"}:
        return "requests"
    known, found = ", ".join(sorted(PARSERS)), ", ".join(first)
    raise TraceFileError(f"no known format; say format=... ({known}); the first line has {found}")


#: The makers of line parsers, by the names of the formats.
PARSERS: dict[str, Callable[[Path, Record, Run], Parse]] = {
    "table": _table, "lm-eval": _lm_eval, "kinetics": kinetics, "requests": _requests
}  # fmt: skip
