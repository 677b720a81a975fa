"""The formats of trace files: how each is recognised, and the parser of its lines.

A new format is one more sign in ``recognise``, and in ``PARSERS`` a function that makes its line parser. A parser turns a
record into trials; it raises ValueError for a bad line and ``TraceFileError`` for what is wrong with the whole file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kinetics_lab.traces.counts import holds_counts
from kinetics_lab.traces.formats.harness import evalscope, inspect, lm_eval
from kinetics_lab.traces.formats.servers import requests
from kinetics_lab.traces.formats.tables import OURS, table
from kinetics_lab.traces.layout import NAME, kinetics
from kinetics_lab.traces.said import OUTPUT, Record
from kinetics_lab.traces.trial import Parse, Run, TraceFileError, stem_of

#: The makers of line parsers, by the names of the formats.
PARSERS: dict[str, Callable[[Path, Record, Run], Parse]] = {
    "table": table, "lm-eval": lm_eval, "kinetics": kinetics, "requests": requests, "inspect": inspect,
    "evalscope": evalscope,
}  # fmt: skip
_TABLE = "write a table with the columns problem, tokens_in, tokens_out, correct, one row an answer"
#: What is refused: the keys that tell it, its name, and the shortest way to a file that can be read.
_OTHERS = (
    ({"custom_id", "url", "body"}, "the requests of a batch", "give the batch's output, with correct added to each line"),
    ({"request_throughput"}, "a serving benchmark of vLLM or SGLang, which grades nothing", f"grade its texts and {_TABLE}"),
    ({"conversations"}, "training conversations (ShareGPT)", f"grade the answers and {_TABLE}"),
    ({"request_states"}, "HELM's scenario state", f"join it with per_instance_stats.json and {_TABLE}"),
    ({"origin_prompt", "prediction"}, "OpenCompass predictions, which hold no verdicts", f"grade them and {_TABLE}"),
    ({"spec"}, "a log of OpenAI evals", f"join its sampling and match events and {_TABLE}"),
    ({"instance_id", "model_patch"}, "SWE-bench predictions (agents, not one answer to a prompt)", f"grade them and {_TABLE}"),
    ({"task_id", "completion"}, "HumanEval samples", "add the verdicts and lengths and map the columns: --map task_id=problem passed=correct"),
    ({"results", "configs", "versions"}, "results of lm-evaluation-harness", "run it with --log_samples and give samples_*.jsonl"),
    ({"question_id", "choices", "answer_id"}, "answers of MT-bench (several turns, no verdicts)", f"grade them and {_TABLE}"),
    ({"task_id", "reward", "traj"}, "trajectories of tau-bench (agents, not one answer to a prompt)", f"count their tokens and {_TABLE}"),
    ({"full_prompt", "gold"}, "details of lighteval", f"take metrics and predictions from it and {_TABLE}"),
    ({"status", "eval"}, "an Inspect log without samples", "log it with --log-samples"),
)  # fmt: skip


def recognise(path: Path, first: Record, run: Run) -> str:
    """The format of a file, from its name and its first record."""
    keys, name = first.keys(), path.name.removesuffix(".gz")
    objects = {key for key, value in first.items() if isinstance(value, dict)}
    if holds_counts(first):
        raise TraceFileError("counts, not traces: plan --traces takes this file as it is")
    if run.columns or "tokens_out" in keys or name.endswith((".csv", ".tsv", ".parquet")):
        return "table"
    if "resps" in keys:
        return "lm-eval"
    if objects & {"sample_score", "model_output"}:
        return "evalscope"
    if "eval" in objects and keys & {"output", "scores"}:
        return "inspect"
    published = keys & {"attn_local", "kinetics_lab"} or keys >= {"query", "prediction"}
    if published or NAME.fullmatch(stem_of(path)):
        return "kinetics"
    for these, what, how in _OTHERS:
        if keys >= these:
            raise TraceFileError(f"{what}: not read; {how}")
    if "correct" in keys and keys & {*OUTPUT, "text"} and not keys & {"meta_info", "choices", "usage"}:
        return "table"
    outputs, signs = first.get("outputs"), {"choices", "meta_info", "usage", "stop_reason", "custom_id"}
    listed = isinstance(outputs, list) and isinstance((outputs or [0])[0], dict)
    if listed or objects & {"response", "result"} or keys & signs or first.get("object") == "response":
        return "requests"
    known, shown = ", ".join(sorted(PARSERS)), ", ".join(list(first)[:20])
    how = f"name its columns with --map THEIRS=OURS (ours: {', '.join(OURS)})"
    raise TraceFileError(f"no known format; say format=... ({known}), or {how}; the first line has {shown}")
