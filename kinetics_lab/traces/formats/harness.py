"""What evaluation harnesses log, an answer a record: lm-evaluation-harness, Inspect, evalscope."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from kinetics_lab.errors import require
from kinetics_lab.files import opened
from kinetics_lab.traces.said import Record, part_of, shortened, spoken, usage_of
from kinetics_lab.traces.sources import records
from kinetics_lab.traces.trial import (
    Parse,
    Run,
    TraceFileError,
    Trial,
    field_of,
    model_name,
    problem_id,
    stem_of,
)

GRADES = {"C": 1, "I": 0, "N": 0}  # Inspect's correct, incorrect, no answer; P (partly) is no verdict


def lm_eval(path: Path, first: Record, run: Run) -> Parse:
    """``samples_{task}_{date}.jsonl`` of lm-evaluation-harness: a line per document and filter.

    (``lm_eval/evaluator.py`` and ``loggers/evaluation_tracker.py`` there.) A line has ``doc_id``, ``doc``, ``arguments``
    (``gen_args_0.arg_0`` is the prompt, through a chat API a list with the messages as JSON), ``resps`` ([[text, one per
    repeat]]), ``filtered_resps``, ``filter``, ``metrics`` (names), ``doc_hash`` (where ``doc`` has no question) and one
    value per metric AND line: with repeats it does not say which answer was right, so one file per trial is needed.
    ``metric`` is "exact_match" or, as in the harness's results, "exact_match,strict-match" (metric, filter).
    """
    found = re.fullmatch(r"samples_(.+?)(?:_\d{4}-\d\d-\d\dT[\d.-]+)?", stem_of(path))
    names = (run.said("model"), run.task or (found[1] if found else run.said("task")), run.said("policy"))
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
        key = metric or _only(record.get("metrics") or (["exact_match"] if "exact_match" in record else []))
        problem, identity = _document(record), record.get("doc_id")
        if problem in documents:
            raise ValueError(f"doc_id {identity} asks what doc_id {documents[problem]} asked before")
        prompt = _asked(field_of(record, "arguments", (dict, list), "the prompt"))
        scored, final = _scored(record, key), cast(Any, record.get("filtered_resps"))
        documents[problem] = identity
        said = isinstance(final, list) and len(final) == len(scored) and name != "none"
        for place, (text, value) in enumerate(scored):
            answer = final[place] if said and isinstance(final[place], str) else ""
            yield run.answer(names, problem, text, run.verdict(value, key), prompt=prompt, final=answer)

    return parse


def _asked(arguments: Any) -> str:
    """The prompt's text: of a text, or of the messages of a chat (without the template around them)."""
    try:
        prompt = arguments["gen_args_0"]["arg_0"] if isinstance(arguments, dict) else arguments[0][0]
        if isinstance(prompt, list) and len(prompt) == 1:
            prompt = "\n".join(map(spoken, json.loads(prompt[0])))
    except (LookupError, TypeError, ValueError):
        prompt = None
    require(isinstance(prompt, str), "arguments must hold the prompt's text first", arguments)
    return prompt


def _only(names: Any) -> str:
    """The one score there is."""
    if not isinstance(names, (list, dict)) or len(names) != 1:
        known = ", ".join(map(str, names)) if isinstance(names, (list, dict)) and names else "its names"
        raise TraceFileError(f"which score says that an answer is right? give metric=..., one of {known}")
    return str(next(iter(names)))


def _document(record: Record) -> str:
    """The problem's name: from the question's text, or the document's hash."""
    doc = field_of(record, "doc", dict, "the task's document")
    questions = [v for k, v in doc.items() if k.lower() in ("problem", "question", "query")]
    if len(questions) == 1 and isinstance(questions[0], str):
        return problem_id(questions[0])
    return field_of(record, "doc_hash", str, "the document's hash")[:16]


def _scored(record: Record, key: str) -> list[tuple[str, Any]]:
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
    return list(zip(texts, scores, strict=True))


def inspect(path: Path, first: Record, run: Run) -> Parse:
    """A sample of an Inspect log (``.json`` or ``.eval``): one call of a model, graded by one scorer (or ``metric``).

    ``sample.output`` is the answer, ``output.usage`` its counts: ``model_usage`` has a grading model's beside them. A
    sample that called its model more than once (an agent) is no answer to one prompt, and refused.
    """
    log = part_of(first, "eval")
    task = run.task or field_of(log, "task", str, "the task's name")
    model = run.model or model_name(field_of(log, "model", str, "the model's name"))
    names = (model, task, run.said("policy"))

    def parse(record: Record) -> Iterable[Trial]:
        which, scores = f"sample {record.get('id')}", part_of(record, "scores")
        if record.get("error"):
            raise ValueError(f"{which} failed ({shortened(record['error'])}); skip_bad leaves it out")
        logged = record.get("messages")
        messages = [m for m in logged if isinstance(m, dict)] if isinstance(logged, list) else []
        calls = sum(m.get("role") == "assistant" and m.get("source") != "input" for m in messages)
        if calls > 1:
            raise ValueError(f"{which} called its model {calls} times: that is no one answer to a prompt")
        if not scores:
            raise ValueError(f"{which} has no score: score the log first (inspect score LOG)")
        texts, output = part_of(record, "attachments"), part_of(record, "output")
        asked = [spoken(m.get("content")) for m in messages if m.get("role") != "assistant"]
        prompt = "\n".join(str(texts.get(text.removeprefix("attachment://"), text)) for text in asked)
        key, choice = run.metric or _only(scores), _choice(output)
        score = field_of(scores, key, dict, "a score")
        value = score.get("value")
        right = run.verdict(GRADES.get(value, value) if isinstance(value, str) else value, key)
        own = (str(record.get("uuid")), str(record.get("epoch")), str(log.get("run_id")))
        yield run.answer(
            names, str(record.get("id", "")), choice, right, counts=usage_of(part_of(output, "usage"), run.seen),
            prompt=prompt, reason=choice.get("stop_reason"), request=own, final=score.get("answer"),
        )  # fmt: skip

    return parse


def _choice(output: Record) -> Record:
    choices = field_of(output, "choices", list, "a list with one answer")
    one = len(choices) == 1 and isinstance(choices[0], dict)
    require(one, "output.choices must hold one answer", choices)
    return choices[0]


def evalscope(path: Path, first: Record, run: Run) -> Parse:
    """``reviews/MODEL/TASK.jsonl`` of evalscope (since 1.0), with ``predictions/MODEL/TASK.jsonl`` beside it.

    A review has the verdict (``sample_score.score.value``) and the answer without its reasoning; the prediction of
    the same ``index`` has the counts. Where that file is not there, the answer's text is all there is to count.
    """
    if "model_output" in first:
        other = "give reviews/MODEL/TASK.jsonl beside them, which reads these, too"
        raise TraceFileError(f"evalscope's predictions hold no verdicts; {other}")
    names = (run.model or model_name(path.parent.name), run.task or stem_of(path), run.said("policy"))
    beside = path.parent.parent.parent / "predictions" / path.parent.name / path.name
    outputs = dict[str, Record]()
    if beside.is_file():
        with opened(beside) as file:
            found = [record for _, record in records(file) if isinstance(record, dict)]
        outputs = {str(record.get("index")): part_of(record, "model_output") for record in found}

    def parse(record: Record) -> Iterable[Trial]:
        score = part_of(part_of(record, "sample_score"), "score")
        values, prompt = part_of(score, "value"), field_of(record, "input", str, "the prompt's text")
        key = run.metric or score.get("main_score_name") or _only(values)
        right = run.verdict(field_of(values, str(key), object, "the score"), str(key))
        output = outputs.get(str(record.get("index")), {})
        choice = _choice(output) if output else {}
        yield run.answer(
            names, problem_id(prompt), choice or field_of(score, "prediction", str, "the answer"), right,
            counts=usage_of(part_of(output, "usage"), run.seen), prompt=prompt, reason=choice.get("stop_reason"),
            request=str(part_of(choice, "message").get("id") or "") or None, final=score.get("extracted_prediction"),
        )  # fmt: skip

    return parse
