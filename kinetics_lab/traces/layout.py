"""The layout of generated traces, as published with the paper and as written by this package: one statement for both.

A file is JSON lines: metadata first, then one finished trial a line. The published data set
(InfiniAILab/Kinetics-generations on the hub) states the policy twice, in the file's name and in the metadata, which
must agree: ``{task}_{model}_dense``, ``..._local{l}_topk{B}`` or ``..._local{l}_block{b}_blocktopk{k}`` (k blocks of b
tokens: B = b k), and ``attn_local``, ``attn_topk``, ``attn_block_size``, ``attn_block_topk``. A line has ``query`` (the
bare question), ``prediction`` (a list with one text) and ``score`` 0 or 100. local > 0 beside top-k is a window of
recent tokens, which no policy has: refused unless the caller says what it counts as. The engine's 4 sink tokens and
its dense first layer are in neither name nor metadata and so not in the policy.

A file of this package adds the key ``kinetics_lab``, an object with ``model``, ``task`` and ``policy``, and token counts
beside each answer, so that reading it needs no tokenizer and no name; an answer without a score is a bad line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kinetics_lab.cost.models import MODELS
from kinetics_lab.cost.policies import BlockTopK, Dense, Local, Policy, TopK, parse_policy
from kinetics_lab.errors import require
from kinetics_lab.traces.said import Record, shortened, whole_number
from kinetics_lab.traces.trial import (
    Parse,
    Run,
    TraceFileError,
    Trial,
    field_of,
    problem_id,
    spelling,
    stem_of,
)

NAME = re.compile(
    r"(?P<task>.+?)_(?P<model>[^_]+)_(?:dense|local(?P<local>\d+)"
    r"(?:_topk(?P<topk>\d+)|_block(?P<block>\d+)_blocktopk(?P<n_blocks>\d+))?)"
)
_KEYS = ("attn_local", "attn_topk", "attn_block_topk", "attn_block_size")
_OTHER_METHODS = ("attn_stride", "attn_nsample", "attn_random_select", "attn_random_nsample", "quest_topk_blocks")  # fmt: skip
STOPS = ("end", "length", "repetition")


def _published(policy: Policy) -> tuple[str, tuple[int | None, ...]] | None:
    """How the published data set writes a policy, in a name and as values of ``_KEYS``; None: it has no way to."""
    match policy:
        case Dense():
            return "dense", (None, None, None, None)
        case TopK(budget=budget, oracle=True):
            return f"local0_topk{budget}", (0, budget, None, None)
        case BlockTopK(block_size=size, n_blocks=n, sink=0, last_block=False) if type(policy) is BlockTopK:
            return f"local0_block{size}_blocktopk{n}", (0, None, n, size)
        case Local(window=window, sink=0):
            return f"local{window}", (window, None, None, None)
    return None


def layout_name(task: str, model: str, policy: str) -> str:
    """Name of a generation's file, without the suffix ``.jsonl``: ``aime24_qwen3-0-6b_local0_topk512``.

    The published form where ``policy`` has one (dense, oracle top-k, block top-k, local), else its text with ``-``
    for ``:`` (``aime24_qwen3-0-6b_quest-512-16``). Raises ValueError for a task or model that cannot stand in a
    file's name, and for a policy that ``parse_policy`` refuses.
    """
    for what, name, signs in (("task", task, ". _ + -"), ("model", model, ". + -")):
        pattern = rf"[A-Za-z0-9][A-Za-z0-9{signs.replace(' ', '')}]*"
        rule = f"{what} must be letters, digits and {signs} (it becomes part of a file's name)"
        require(bool(re.fullmatch(pattern, name)), rule, name)
    found = parse_policy(policy)
    published = _published(found)
    return f"{task}_{model.replace('.', '-')}_{published[0] if published else str(found).replace(':', '-')}"


def layout_metadata(policy: str) -> dict[str, int | None]:
    """The published metadata keys that state ``policy``; empty where no published key does."""
    published = _published(parse_policy(policy))
    return dict(zip(_KEYS, published[1], strict=True)) if published else {}


def kinetics(path: Path, first: Record, run: Run) -> Parse:
    """The line parser for a file with this first line."""
    if "prediction" in first:
        raise TraceFileError("the first line must hold the metadata (attn_local, ...); it is a trial")
    return _ours(first, run) if "kinetics_lab" in first else _of_the_paper(path, first, run)


def _ours(first: Record, run: Run) -> Parse:
    """A generation of this package: everything is in the file's own words."""
    try:
        said = field_of(first, "kinetics_lab", dict, "an object with model, task and policy")
        words = {name: field_of(said, name, str, "a text") for name in ("task", "model", "policy")}
        words["policy"] = spelling(words["policy"])
        task, model, policy = (run.agreed(name, word, "the first line") for name, word in words.items())
    except ValueError as error:
        raise TraceFileError(f"the first line: {error}") from None
    wrong = {key: first.get(key) for key, value in layout_metadata(policy).items() if first.get(key) != value}
    if wrong:
        raise TraceFileError(f"the first line says policy {policy}, its metadata say {_settings(wrong)}")

    def parse(record: Record) -> Iterable[Trial]:
        field_of(record, "query", str, "the question's text")
        _answer(record)
        if record.get("score", "") is None:
            raise ValueError(f"this answer has no score: {shortened(record.get('error'))}")
        stopped = field_of(record, "stopped", str, f"one of {', '.join(STOPS)}")
        truncated = field_of(record, "truncated", bool, "true or false")
        if stopped not in STOPS or (stopped != "repetition" and truncated != (stopped == "length")):
            got = f"{stopped!r} with truncated {str(truncated).lower()}"
            rule = "end (truncated false), length (truncated true) or repetition"
            raise ValueError(f"stopped must be {rule}; got {got}")
        problem = field_of(record, "problem", str, "the problem's id")
        tokens_in = whole_number(field_of(record, "tokens_in", int, "a count"), "tokens_in", 1)
        tokens = whole_number(field_of(record, "tokens_out", int, "a count"), "tokens_out")
        trial = whole_number(field_of(record, "trial", int, "a number"), "trial")
        right = _score(record, run)
        yield Trial(model, task, policy, problem, tokens_in, tokens, right, stopped != "end", trial)

    return parse


def _of_the_paper(path: Path, first: Record, run: Run) -> Parse:
    """A published file: the policy in its name and in its metadata, which must agree."""
    stem = stem_of(path)
    if (found := NAME.fullmatch(stem)) is None:
        rule = "TASK_MODEL_dense, TASK_MODEL_localL_topkB or TASK_MODEL_localL_blockS_blocktopkK"
        raise TraceFileError(f"the name must be {rule}; got {stem!r}")
    named = {key: int(found[key]) if found[key] else None for key in ("local", "topk", "block", "n_blocks")}
    stated = {
        "local": first.get("attn_local"),
        "topk": first.get("attn_topk") or None,
        # the engine's default block size is written for every run; it means nothing without blocks
        "block": first.get("attn_block_size") if first.get("attn_block_topk") else None,
        "n_blocks": first.get("attn_block_topk") or None,
    } | {name: first[name] for name in _OTHER_METHODS if first.get(name)}
    if named != stated:
        raise TraceFileError(f"the file name says {_settings(named)}, the metadata say {_settings(stated)}")
    dashed = {name.replace(".", "-"): name for name in MODELS}
    words = {"task": found["task"], "model": dashed.get(found["model"], found["model"])}
    words["policy"] = _policy(named, run)
    task, model, policy = (run.agreed(name, word, "the file name") for name, word in words.items())

    def parse(record: Record) -> Iterable[Trial]:
        query = field_of(record, "query", str, "the question's text")
        tokens_in = run.prompt_tokens(run.prompt(query) if run.prompt else query)
        counts, right = (tokens_in, run.tokens(text := _answer(record))), _score(record, run)
        yield run.answer((model, task, policy), problem_id(query), text, right, counts=counts)

    return parse


def _policy(named: Mapping[str, int | None], run: Run) -> str:
    """The policy that a published name says."""
    local, topk, block, n_blocks = named.values()
    if local and (topk or n_blocks):
        if run.policy is None:
            raise TraceFileError(
                f"{_settings(named)}: no policy has a window of {local} recent tokens beside the chosen ones; "
                "say what it shall count as with policy=..."
            )
        return run.policy
    if n_blocks and block:
        return f"block_topk:{block * n_blocks}:{block}"
    return f"topk:{topk}" if topk else "dense" if local is None else f"local:{local}"


def _answer(record: Record) -> str:
    texts = field_of(record, "prediction", list, "a list with one text")
    require(len(texts) == 1 and isinstance(texts[0], str), "prediction must be a list with one text", texts)
    return texts[0]


def _score(record: Record, run: Run) -> bool:
    return run.verdict(field_of(record, "score", (int, float), "0.0 or 100.0"), "score")


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items() if value is not None) or "dense"
