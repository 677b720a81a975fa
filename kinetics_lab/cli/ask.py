"""Questions to the law: what a setting costs, what to run for a budget, and the traces that a plan is made from."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from kinetics_lab.cli.shared import NONE, Hardware, Policy, Precision, names

TRIALS = [1, 2, 4, 8, 16, 32]


def cost(
    *,
    model: Annotated[str, Option(help="model shape, qwen3-8b for example", autocompletion=names("cost.models", "MODELS"))],
    policy: Policy = "dense",
    n_in: Annotated[int, Option(help="prompt tokens")],
    n_out: Annotated[int, Option(help="tokens generated per trial")],
    n_trials: Annotated[int, Option(help="answers to the same prompt")] = 1,
    counting: Annotated[str, Option(help="what is counted: exact, paper or released")] = "exact",
    hardware: Hardware = "h200",
    precision: Precision = None,
    combine: Annotated[str, Option(help="compute and traffic: their sum (add) or the larger one (max)")] = "add",
    batch: Annotated[int | None, Option(help="sequences that share the weights' traffic (endless)")] = None,
    clock: Annotated[str | None, Option(help="time the answers, too, by kernels that NVIDIA's collector measured: h200:vllm, "
                                        "h200:sglang:fp8 (weights), h200:trtllm:fp8:fp8 (and KV cache)")] = None,
) -> None:  # fmt: skip
    """Price one setting. One JSON line: FLOP, bytes, eFLOPs, seconds and the arguments they belong to.

    With a clock also the seconds that `batch` answers (as many as there are trials, unless said) take side by side.
    """
    given = {name: value for name, value in locals().items() if name != "clock" or value is not None}
    from kinetics_lab import decode_cost, find_hardware, find_model, parse_policy

    device = find_hardware(hardware, precision)
    options = {"counting": counting, "bytes_per_element": device.bytes_per_element, "batch": batch}
    found = decode_cost(find_model(model), parse_policy(policy), n_in, n_out, n_trials, **options)
    numbers = {"flops": found.flops, "bytes": found.bytes}
    numbers |= {"eflops": found.eflops(device, combine), "seconds": found.seconds(device, combine)}
    told = {name: float(number) for name, number in numbers.items()}
    timed = (
        {}
        if clock is None
        else {"clock": _timed(clock, find_model(model), parse_policy(policy), n_in, n_out, batch or n_trials)}
    )
    print(json.dumps(told | timed | {"arguments": given | {"precision": device.precision}}))


def _timed(clock: str, shape: Any, policy: Any, n_in: int, n_out: int, batch: int) -> dict[str, Any]:
    """What a clock says of ``batch`` answers side by side: its label, whether it was measured, seconds by part."""
    from kinetics_lab.cost.clock import answer_seconds, parse_clock

    timer = parse_clock(clock)
    parts = {
        name: float(seconds)
        for name, seconds in answer_seconds(timer, shape, n_in, n_out, batch, policy).items()
    }
    return {
        "name": timer.label,
        "measured": timer.measured,
        "batch": batch,
        "seconds": sum(parts.values()),
        "parts": parts,
    }


def plan(
    *,
    traces: Annotated[list[str], Option(metavar="FILE ...", help="trace files, or one summary (embedded)")] = NONE,
    budget: Annotated[list[float], Option(metavar="N ...", help="per problem, one or several")],
    unit: Annotated[str, Option(help="of the budget: s (of one device) or eflops")] = "s",
    hardware: Hardware = "h200",
    precision: Precision = None,
    model: Annotated[list[str], Option(metavar="NAME=SHAPE ...", help="shape of a model in the traces: a known name or a "
                                       "config.json (its NAME= only where several are unknown)")] = NONE,
    allocation: Annotated[str, Option(help="uniform (one setting for all) or oracle (per problem)")] = "uniform",
    policies: Annotated[list[str], Option(metavar="POLICY ...", help="choose among these: dense, block_topk, topk:512, ...")] = NONE,
    topk: Annotated[str, Option(help="oracle top-k: scan (score every key), free (the paper's), out")] = "scan",
    trials: Annotated[list[int], Option(metavar="N ...", help="numbers of answers N")] = TRIALS,
    caps: Annotated[list[int], Option(metavar="N ...", help="lengths at which answers may be cut (tokens)")] = NONE,
    dense_layers: Annotated[int | None, Option(help="layers that stay dense (0; embedded traces: 1)")] = None,
    batch: Annotated[str | None, Option(help="sequences that share the weights' traffic, or fits (endless)")] = None,
    n_devices: Annotated[int, Option(help="devices whose memory holds a batch that fits")] = 1,
    as_json: Annotated[bool, Option("--json", help="JSON lines, with more columns")] = False,
) -> None:  # fmt: skip
    """Find the best setting for a budget. Model, policy and number of trials, with accuracy, cost and how sure that is.

    As a chapter with its figures, and as a page to send around:

    \b
    kinetics-lab run notebooks/35_plan_your_own.ipynb --page -o DIR
      -p traces "[mine.parquet]" -p dense_layers 0 -p budgets "[1, 5, 20]"
    """
    import kinetics_lab as lab
    from kinetics_lab.planner import offers, text

    data = offers.load(traces)
    if not traces:
        print(f"kinetics-lab: no --traces: planning with {offers.EMBEDDED}", file=sys.stderr)
        dense_layers = offers.EMBEDDED_DENSE_LAYERS if dense_layers is None else dense_layers
    device = lab.find_hardware(hardware, precision, n_devices)
    shapes = offers.own_models(offers.name_models(model, data))
    sequences: Any = batch
    with suppress(TypeError, ValueError):  # None and "fits" stay
        sequences = float(sequences)
    found = lab.plan(data, device, budget, unit=unit, allocation=allocation, policies=policies, topk=topk, trials=trials,
                     caps=caps, shapes=shapes, batch=sequences, dense_layers=dense_layers or 0)  # fmt: skip
    for line in text.left_out(found):
        print(f"kinetics-lab: left out: {line}", file=sys.stderr)
    print(found.to_json(orient="records", lines=True).strip() if as_json else text.text(found))


def _columns(given: list[str]) -> dict[str, str]:
    """Texts THEIRS=OURS as THEIRS -> OURS."""
    pairs = [text.rpartition("=")[::2] for text in given]
    for (theirs, ours), text in zip(pairs, given, strict=True):
        if not theirs or not ours:
            raise ValueError(f"--map must read THEIRS=OURS, score=correct for example; got {text!r}")
    return dict(pairs)


def traces(
    files: Annotated[list[str], Argument(metavar="FILE", help="JSON, CSV, Parquet, Inspect's .eval, or a folder of them")],
    *,
    out: Annotated[Path, Option("-o", "--out", help="Parquet file to write")],
    tokenizer: Annotated[str | None, Option(metavar="NAME", help="counts tokens where files hold texts: on the hub, or a file")] = None,
    model: Annotated[str | None, Option(help="the model, where files do not say")] = None,
    task: Annotated[str | None, Option(help="the task, where files do not say")] = None,
    policy: Annotated[str | None, Option(help="the policy, where files do not say")] = None,
    format: Annotated[str | None, Option(help="kinetics, lm-eval, inspect, evalscope, requests or table (by content)")] = None,
    metric: Annotated[str | None, Option(help="which score of a harness counts, exact_match,strict-match for example")] = None,
    limit: Annotated[float | None, Option(help="answers at least this long were cut (tokens; inf: none)")] = None,
    map: Annotated[list[str], Option(metavar="THEIRS=OURS ...", help="columns of a table: question_id=problem score=correct "
                                     "response=text usage.output_tokens=tokens_out, ...")] = NONE,
    skip_bad: Annotated[int, Option(metavar="N", help="skip at most N bad lines")] = 0,
) -> None:  # fmt: skip
    """Turn traces of any format into one table. Writes Parquet and says what was found."""
    from kinetics_lab import read_traces, write_traces

    if out.suffix != ".parquet":
        raise ValueError(f"-o must name a .parquet file, which is what is written; got {str(out)!r}")
    table = read_traces(files, tokenizer=tokenizer, model=model, task=task, policy=policy, format=format,
                        metric=metric, limit=limit, columns=_columns(map), skip_bad=skip_bad)  # fmt: skip
    write_traces(table, out)
    found = (f"{kind}: {', '.join(table[kind].unique())}" for kind in ("model", "task", "policy"))
    trials = table[["model", "task", "policy", "problem"]].value_counts()
    few, many = (f"{count:,}" for count in (trials[trials > 0].min(), trials.max()))
    each = few if few == many else f"{few} to {many}"
    problems = len(table[["task", "problem"]].drop_duplicates())
    print(f"{out}: {len(table):,} traces of {problems:,} problems, {each} each; {'; '.join(found)}")
