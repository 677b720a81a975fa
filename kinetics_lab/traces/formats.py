"""One line parser per format of trace file (described in ``kinetics_lab.traces.read.read_traces``)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from kinetics_lab.cost.policies import parse_policy
from kinetics_lab.traces.layout import NAME, kinetics
from kinetics_lab.traces.table import COLUMNS
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
    stem_of,
    verdict_of,
    whole_number,
)


def _lm_eval(path: Path, first: Record, run: Run) -> Parse:
    """Samples logged by lm-evaluation-harness (see ``read_traces``)."""
    found = re.fullmatch(r"samples_(.+?)(?:_\d{4}-\d\d-\d\dT[\d.-]+)?", stem_of(path))
    task = run.task or (found[1] if found else run.said("task"))
    model, policy = run.said("model"), run.said("policy")
    metric, _, wanted = (run.metric or "").partition(",")
    seen: dict[str, Any] = {}
    documents: dict[str, Any] = {}

    def parse(record: Record) -> Iterable[Trial]:
        name = record.get("filter", "none")
        if wanted and name != wanted:
            return
        if seen.setdefault("filter", name) != name:
            both = f"{seen['filter']} and {name}"
            raise TraceFileError(
                f"two filters score the same answers ({both}); choose one: metric='exact_match,{name}'"
            )
        key = metric or _only_metric(record)
        doc = field_of(record, "doc", dict, "the task's document")
        questions = [v for k, v in doc.items() if k.lower() in ("problem", "question", "query")]
        if len(questions) == 1 and isinstance(questions[0], str):
            problem = problem_id(questions[0])
        else:
            problem = field_of(record, "doc_hash", str, "the document's hash")[:16]
        if problem in documents:
            raise ValueError(
                f"doc_id {record.get('doc_id')} asks what doc_id {documents[problem]} asked before"
            )
        answers = field_of(record, "resps", list, "a list with one list of answers")
        texts = answers[0] if len(answers) == 1 and isinstance(answers[0], list) else [None]
        if not all(isinstance(text, str) for text in texts):
            raise TraceFileError(
                "resps must hold one list of generated texts; this is no generate_until task"
            )
        score = field_of(record, key, object, "the score")
        scores = score if isinstance(score, list) else [score]
        if len(scores) != len(texts):
            raise TraceFileError(
                f"{len(texts)} answers but {len(scores)} value of {key}: which answers are right is not "
                "logged; run the task with repeats: 1 once per trial and give all files"
            )
        arguments = field_of(record, "arguments", (dict, list), "the prompt")
        try:
            prompt = arguments["gen_args_0"]["arg_0"] if isinstance(arguments, dict) else arguments[0][0]
            tokens_in = run.prompt_tokens(prompt)
        except (LookupError, TypeError, AttributeError):
            raise ValueError(
                f"arguments must hold the prompt's text first; got {shortened(arguments)}"
            ) from None
        documents[problem] = record.get("doc_id")
        for text, value in zip(texts, scores, strict=True):
            correct, tokens = verdict_of(value, key), run.tokens(text)
            yield Trial(
                model, task, policy, problem, tokens_in, tokens, correct, run.cut(tokens), mark=mark_of(text)
            )

    return parse


def _only_metric(record: Record) -> str:
    names = record.get("metrics") or (["exact_match"] if "exact_match" in record else [])
    if len(names) != 1:
        raise TraceFileError(
            f"which score says that an answer is right? give metric=..., one of {', '.join(names) or 'its names'}"
        )
    return names[0]


def _requests(path: Path, first: Record, run: Run) -> Parse:
    """What vLLM, SGLang and OpenAI-compatible servers answer, one request a line (see ``read_traces``)."""
    model_named: set[str] = set()

    def parse(record: Record) -> Iterable[Trial]:
        body = record["response"].get("body") if isinstance(record.get("response"), dict) else record
        if not isinstance(body, dict):
            raise ValueError(f"response must hold the server's answer as body; got {shortened(body)}")
        if isinstance(name := body.get("model", record.get("model")), str):
            model_named.add(name)
            if len(model_named) > 1:
                both = " and ".join(sorted(model_named))
                raise TraceFileError(
                    f"answers of two models in one file ({both}); one file per model, please"
                )
        model = run.model or (name.rsplit("/", 1)[-1].lower() if isinstance(name, str) else run.said("model"))
        task = record["task"] if isinstance(record.get("task"), str) else run.said("task")
        problem, prompt = _problem(record, body)
        meta = body.get("meta_info") or {}
        usage = body.get("usage") or meta
        answers = body.get("outputs", body.get("choices"))
        if answers is None:  # SGLang: the answer is the body itself
            answers = [body | {k: v for k, v in meta.items() if k == "finish_reason"}]
        if not isinstance(answers, list) or not answers or not all(isinstance(a, dict) for a in answers):
            raise ValueError(f"outputs (or choices) must be a list of answers; got {shortened(answers)}")
        if (ids := body.get("prompt_token_ids")) is not None:
            tokens_in = whole_number(_length(ids, "prompt_token_ids"), "number of prompt_token_ids", 1)
        elif "prompt_tokens" in usage:
            tokens_in = whole_number(usage["prompt_tokens"], "prompt_tokens", 1)
        elif prompt is not None:
            tokens_in = run.prompt_tokens(prompt)
        else:
            raise ValueError(
                "no prompt_token_ids, usage.prompt_tokens, meta_info.prompt_tokens or prompt text"
            )
        key = "correct" if "correct" in record or "correct" in answers[0] else "score"
        verdicts = [a[key] for a in answers] if all(key in a for a in answers) else record.get(key, [])
        verdicts = verdicts if isinstance(verdicts, list) else [verdicts]
        if len(verdicts) != len(answers):
            wanted = "a value of correct (or score)" + (" for each" if len(answers) > 1 else "")
            raise ValueError(f"{len(answers)} answers need {wanted}; got {len(verdicts)}")
        label = record.get("custom_id") or record.get("request_id") or body.get("id") or meta.get("id")
        for place, (answer, verdict) in enumerate(zip(answers, verdicts, strict=True)):
            text = answer.get("text", (answer.get("message") or {}).get("content"))
            ids = answer.get("token_ids", answer.get("output_ids"))
            if ids is not None:
                tokens = _length(ids, "token_ids")
            elif len(answers) == 1 and "completion_tokens" in usage:
                tokens = whole_number(usage["completion_tokens"], "completion_tokens")
            elif isinstance(text, str):  # usage counts all answers of a request together
                tokens = run.tokens(text)
            else:
                raise ValueError("no token_ids, completion_tokens (of a single answer) or text to count")
            yield Trial(
                model,
                task,
                run.said("policy"),
                problem,
                tokens_in,
                tokens,
                verdict_of(verdict, key),
                _ended_by_limit(answer["finish_reason"]) if "finish_reason" in answer else run.cut(tokens),
                mark=mark_of(str(ids or text or "")) or (f"{label}:{place}" if label else None),
            )

    return parse


def _length(ids: object, name: str) -> int:
    if not isinstance(ids, list):
        raise ValueError(f"{name} must be a list of token ids; got {shortened(ids)}")
    return len(ids)


def _ended_by_limit(reason: Any) -> bool:
    # SGLang: {"type": "length", "length": 8192}
    name = reason.get("type") if isinstance(reason, dict) else reason
    if name not in ("length", "stop", "eos", "tool_calls"):
        raise ValueError(f"finish_reason must be 'stop' or 'length' (an answer that ended); got {name!r}")
    return name == "length"


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


def _table(path: Path, first: Record, run: Run) -> Parse:
    """Rows that already have the trace table's columns (see ``read_traces``)."""

    def parse(record: Record) -> Iterable[Trial]:
        for name in ("problem", "tokens_in", "tokens_out", "correct"):
            if name not in record:
                raise TraceFileError(f"no column {name}; the trace table needs {', '.join(COLUMNS)}")
        if record["problem"] is None or not str(record["problem"]).strip():
            raise ValueError("problem is empty")
        tokens, forced = whole_number(record["tokens_out"], "tokens_out"), record.get("forced_at")
        yield Trial(
            model=_name(record, "model", run),
            task=_name(record, "task", run),
            policy=_name(record, "policy", run),
            problem=str(record["problem"]).strip(),
            tokens_in=whole_number(record["tokens_in"], "tokens_in", 1),
            tokens_out=tokens,
            correct=verdict_of(record["correct"], "correct"),
            truncated=verdict_of(record["truncated"], "truncated")
            if "truncated" in record
            else run.cut(tokens),
            trial=whole_number(record["trial"], "trial") if "trial" in record else -1,
            forced_at=0 if forced in (None, "") else whole_number(forced, "forced_at", 1),
        )

    return parse


@cache
def _spelling(policy: str) -> str:
    return str(parse_policy(policy))


def _name(record: Record, name: str, run: Run) -> str:
    """A name from its column, or from what the caller said where there is no such column."""
    if name not in record:
        return run.said(name)
    value = str(record[name])
    if record[name] is None or not value.strip():
        raise ValueError(f"{name} is empty")
    return run.agreed(name, _spelling(value) if name == "policy" else value, "the column")


FORMATS: dict[str, Callable[[Path, Record, Run], Parse]] = {
    "kinetics": kinetics,
    "lm-eval": _lm_eval,
    "requests": _requests,
    "table": _table,
}


def recognise(path: Path, first: Record) -> str:
    """The format of a file, from its name and its first record."""
    if "tokens_out" in first or path.name.removesuffix(".gz").endswith((".csv", ".parquet")):
        return "table"
    if "resps" in first:
        return "lm-eval"
    if not {"prediction", "attn_local", "kinetics_lab"}.isdisjoint(first) or NAME.fullmatch(stem_of(path)):
        return "kinetics"
    if not {"outputs", "choices", "meta_info", "usage", "response"}.isdisjoint(first):
        return "requests"
    raise TraceFileError(
        f"no known format; say format=... ({', '.join(FORMATS)}); the first line has {', '.join(first)}"
    )
