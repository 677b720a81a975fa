"""Logs of servers, an answer to a request a line: vLLM, SGLang, OpenAI (completions, chats, responses, batches), Anthropic."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kinetics_lab.errors import require
from kinetics_lab.traces.said import Record, part_of, shortened, spoken, usage_of
from kinetics_lab.traces.trial import Parse, Run, TraceFileError, Trial, model_name, problem_id


def requests(path: Path, first: Record, run: Run) -> Parse:
    """A server's answer a line, with ``correct`` or ``score`` beside it (a list where there are several answers).

    The problem is an id in ``problem``, the prompt's text, or a batch's ``custom_id``. vLLM's RequestOutput:
    ``prompt_token_ids``, ``outputs[].token_ids``, ``outputs[].finish_reason``. OpenAI-compatible: ``usage`` (of all
    answers together), ``choices[].finish_reason``; the Responses API: ``output``, ``status``; Anthropic:
    ``content``, ``stop_reason``. All also as ``response``, ``response.body`` or ``result.message``. SGLang:
    ``meta_info`` with counts and ``finish_reason.type``.
    """
    models, policy = set[str](), run.said("policy")

    def parse(record: Record) -> Iterable[Trial]:
        body = _body(record)
        if isinstance(name := body.get("model", record.get("model")), str):
            models.add(name)
        if len(models) > 1:
            both = " and ".join(sorted(models))
            raise TraceFileError(f"answers of two models in one file ({both}); one file per model, please")
        model = run.model or (model_name(name) if isinstance(name, str) else run.said("model"))
        task = record["task"] if isinstance(record.get("task"), str) else run.said("task")
        meta, names = part_of(body, "meta_info"), (model, task, policy)
        tokens_in, counted = usage_of(part_of(body, "usage") or meta, run.seen)
        if (ids := body.get("prompt_token_ids")) is not None:
            require(isinstance(ids, list) and ids, "prompt_token_ids must be a list of token ids", ids)
            tokens_in = len(ids)
        problem, prompt = _problem(record, body, tokens_in is None)
        answers = _answers(body, meta)
        label = record.get("request_id") or body.get("id") or meta.get("id") or record.get("id")
        verdicts, lengths = _verdicts(record, answers, run), _lengths(answers, counted, run)
        for place, (answer, tokens) in enumerate(zip(answers, lengths, strict=True)):
            said: Any = answer if (ids := _ids(answer)) is None else spoken(answer) or str(ids)
            yield run.answer(
                names, problem, said, verdicts[place],
                counts=(tokens_in, tokens), prompt=prompt, reason=answer.get("finish_reason", answer.get("stop_reason")),
                request=(str(label), place) if label else None,
            )  # fmt: skip

    return parse


def _body(record: Record) -> Record:
    """The server's answer in a record, or an error that says that, and why, the request failed."""
    response, result = record.get("response"), part_of(record, "result")
    body = response.get("body", response) if isinstance(response, dict) else result.get("message", record)
    failed = record.get("error") or result.get("error") or (isinstance(body, dict) and body.get("error"))
    if isinstance(response, dict) and response.get("status_code") not in (None, 200):
        failed = failed or f"status {response['status_code']}"
    if "response" in record and response is None:
        failed = failed or "no response"
    if result.get("type") not in (None, "succeeded"):
        failed = failed or result["type"]
    if failed:
        name = record.get("custom_id") or record.get("id")
        raise ValueError(f"the request {name!r} failed ({shortened(failed)}); skip_bad leaves it out")
    require(isinstance(body, dict), "response must hold the server's answer (or it as body)", body)
    return body


def _answers(body: Record, meta: Record) -> list[Record]:
    """The answers to one request, each with its text and the reason that ended it."""
    if body.get("object") == "response":  # its items are parts of one answer
        cut = part_of(body, "incomplete_details").get("reason")
        return [{"content": body.get("output"), "finish_reason": cut or body.get("status")}]
    answers = body.get("outputs", body.get("choices"))
    if answers is None:  # SGLang, Anthropic: the answer is the body itself
        answers = [body | {k: v for k, v in meta.items() if k == "finish_reason"}]
    many = isinstance(answers, list) and {*map(type, answers)} == {dict}
    require(many, "outputs (or choices) must be a list of answers", answers)
    return answers


def _problem(record: Record, body: Record, needed: bool) -> tuple[str, str | None]:
    """Name of the problem (its id, or the hash of its text) and, where it is needed, the text of the prompt."""
    for name in ("problem", "problem_id"):
        value = record.get(name)
        if type(value) is int:
            return str(value), _asked(record, body) if needed else None
        if isinstance(value, str) and value.strip():
            text = (_asked(record, body) or value) if needed else None
            return (problem_id(value) if re.search(r"\s", value) else value), text
    if (asked := _asked(record, body)) is not None:
        return problem_id(asked), asked
    if isinstance(own := record.get("custom_id"), str) and own.strip():
        return own, None
    raise ValueError("no problem: give each line a problem (its id), or its prompt as prompt or messages")


def _asked(record: Record, body: Record) -> str | None:
    """The text of the prompt, or of all messages but the system's."""
    request = part_of(record, "request")
    asked = (record, body, request, part_of(request, "body"))
    lists = (said["messages"] for said in asked if isinstance(said.get("messages"), list))
    texts = [record.get(name, body.get(name)) for name in ("query", "question", "prompt")]
    turns = [
        spoken(m.get("content")) for m in next(lists, []) if isinstance(m, dict) and m.get("role") != "system"
    ]
    return next((t for t in [*texts, "\n".join(turns)] if isinstance(t, str) and t.strip()), None)


def _ids(answer: Record) -> Any:
    return answer["token_ids"] if "token_ids" in answer else answer.get("output_ids")


def _lengths(answers: list[Record], counted: int | None, run: Run) -> list[int | None]:
    """Tokens of each answer: of its ids, as the server counted it, or of its text, if all add up to what it counted."""
    if _ids(answers[0]) is not None:
        for ids in map(_ids, answers):
            require(isinstance(ids, list), "token_ids must be a list of token ids", ids)
        return [len(_ids(answer)) for answer in answers]
    if len(answers) == 1 and counted is not None:
        return [counted]
    if any(answer.get("message", answer.get("text", answer.get("content"))) is None for answer in answers):
        raise ValueError(
            "no token_ids, usage.completion_tokens, meta_info.completion_tokens (of a single answer) or text to count"
        )
    if counted is None:
        return [None] * len(answers)
    lengths = [run.tokens(spoken(answer)) for answer in answers]
    if abs(sum(lengths) - counted) > 0.1 * counted + 8 * len(answers):
        raise ValueError(
            f"the {len(answers)} answers have {sum(lengths):,} tokens, but usage counts {counted:,}: reasoning was left out of "
            "the log, or the tokenizer is another model's"
        )
    return [*lengths]


def _verdicts(record: Record, answers: list[Record], run: Run) -> list[bool]:
    """One verdict for each answer, from the answers themselves or from beside them."""
    key = "correct" if "correct" in record or "correct" in answers[0] else "score"
    if "review" in answers[0]:  # evalscope before 1.0
        found: Any = [part_of(answer, "review").get("result") for answer in answers]
    else:
        found = [answer.get(key) for answer in answers] if key in answers[0] else record.get(key, [])
    found = found if isinstance(found, list) else [found]
    if len(found) != len(answers):
        what = f"{len(answers)} answers but {len(found)} verdicts" if found else "no verdict"
        needs = "correct (or score), 1 for right and 0 for wrong, a list where it holds several answers"
        raise ValueError(f"{what}: the line needs {needs}")
    return [run.verdict(value, key) for value in found]
