"""Questions to the law: what a setting costs, what to run for a budget, and the traces that a plan is made from."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from kinetics_lab.cli.shared import NONE, Hardware, public
from kinetics_lab.errors import lookup, report, require
from kinetics_lab.files import sole_writer


def plan(
    *,
    traces: Annotated[list[str], Option(metavar="FILE ...", help="trace files, or one summary (those of --data)")] = NONE,
    data: Annotated[str, Option(help="without traces: aime24 (Qwen3), otis (open weights on OTIS Mock AIME), ladder (of Part IV)")] = "aime24",
    budget: Annotated[list[float], Option(metavar="N ...", help="per problem, one or several")],
    unit: Annotated[str, Option(help="of the budget: s (of one device), usd or eflops")] = "s",
    strategy: Annotated[str, Option(help="what is done with answers: until-right, best-of, majority, or "
                                         "verified:HIT:FALSE_ALARM[:COST] (a judge's rates; a check's cost as a share of an answer's)")] = "until-right",
    hardware: Hardware = "h200",
    weights: Annotated[str | None, Option(help="how weights are stored: bf16, fp8, nvfp4, mxfp4, int4, or published (each model as its checkpoint) (bf16)")] = None,
    kv: Annotated[str | None, Option(help="how the KV cache is stored (bf16)")] = None,
    clock: Annotated[str | None, Option(help="kernels that NVIDIA's collector measured, h200:vllm for example (the device's peak rates)")] = None,
    price: Annotated[float, Option(help="dollars an hour a device (chapter 35 has list prices)")] = float("nan"),
    max_seconds_per_answer: Annotated[float, Option(help="limit of the mean time to answer a problem")] = float("inf"),
    max_tpot: Annotated[float, Option(help="limit of the time per output token, s")] = float("inf"),
    model: Annotated[list[str], Option(metavar="NAME=SHAPE ...", help="shape of a model in the traces: a known name or a "
                                       "config.json (its NAME= only where several are unknown)")] = NONE,
    allocation: Annotated[str, Option(help="uniform (one setting for all); in hindsight, each problem its own: oracle (caps every "
                                           "cost, as the paper does) or hindsight (caps the mean)")] = "uniform",
    models: Annotated[list[str], Option(metavar="MODEL ...", help="choose among these of the answers' models (all)")] = NONE,
    policies: Annotated[list[str], Option(metavar="POLICY ...", help="choose among these: dense, block_topk, topk:512, ... (dense, with what others would give beside it)")] = NONE,
    topk: Annotated[str, Option(help="oracle top-k, which no engine offers: out, scan (score every key), free (the paper's)")] = "out",
    trials: Annotated[list[int], Option(metavar="N ...", help="numbers of answers N (every one)")] = NONE,
    predicted: Annotated[bool, Option("--predicted", help="let in settings never run, as the law of difficulty predicts them (aime24)")] = False,
    caps: Annotated[list[int], Option(metavar="N ...", help="lengths at which answers may be cut (tokens)")] = NONE,
    dense_layers: Annotated[int | None, Option(help="layers that stay dense (0; embedded traces: 1)")] = None,
    batch: Annotated[str, Option(help="answers side by side: a number, fits (what the memory holds), within (the most that keeps the "
                                    "limits) or endless (the paper's)")] = "fits",
    devices: Annotated[int | None, Option(help="that serve a model together (the fewest that hold it)")] = None,
    share_prompt: Annotated[bool, Option(help="answers to a problem share its prompt, as in the paper")] = False,
    as_json: Annotated[bool, Option("--json", help="JSON lines, with more columns")] = False,
) -> None:  # fmt: skip
    """Find the best setting for a budget. Model, policy and number of answers, with accuracy, cost, time and what to start.

    As a chapter with its figures, and as a page to send around:

    \b
    kinetics-lab run notebooks/35_plan_your_own.ipynb --page -o DIR
      -p traces "[mine.parquet]" -p dense_layers 0 -p budgets "[1, 5, 20]"
    """
    import kinetics_lab as lab
    from kinetics_lab.cost.clock import parse_clock
    from kinetics_lab.planner import offers, text

    table, known, dense = (offers.load(traces), lab.MODELS, 0) if traces else public(data)
    if not traces:
        report(f"kinetics-lab: no --traces: planning with {offers.PUBLIC[data][0]}")
    named = offers.name_models(model, table)
    shapes = {**known, **offers.own_models(named)}
    sequences: Any = batch
    with suppress(ValueError):  # "fits" and "endless" stay
        sequences = float(sequences)
    asked = dict(data=offers.with_predicted(table) if predicted else table, hardware=lab.find_hardware(hardware), budgets=budget, unit=unit, strategy=strategy, allocation=allocation, models=models, policies=policies,
                     topk=topk, trials=trials, caps=caps, shapes=shapes, batch=sequences, dense_layers=dense if dense_layers is None else dense_layers,
                     clock=parse_clock(clock) if clock else None, hourly=price, devices=devices, share_prompt=share_prompt, max_seconds=max_seconds_per_answer, max_tpot=max_tpot,
                     precision=_precision(weights, kv, table, named if traces else offers.PUBLIC[data][3] | named))  # fmt: skip
    found = text.today(asked)
    for line in text.left_out(found):
        report(f"kinetics-lab: left out: {line}")
    print(found.to_json(orient="records", lines=True).strip() if as_json else text.text(found))


def _precision(weights: str | None, kv: str | None, table: Any, named: dict[str, str]) -> Any:
    """How weights and cache are stored: of all models, of each as published, or None: in the device's own precision."""
    from kinetics_lab.cost.models import MODELS
    from kinetics_lab.cost.precision import find_precision
    from kinetics_lab.planner.price import published

    if weights == "published":
        known = {name: name if name in MODELS else None for name in table.model.unique()}
        return published(known | named, kv)
    return find_precision(weights, kv) if weights or kv else None


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
    with sole_writer(out):
        table = read_traces(files, tokenizer=tokenizer, model=model, task=task, policy=policy, format=format,
                            metric=metric, limit=limit, columns=_columns(map), skip_bad=skip_bad)  # fmt: skip
        write_traces(table, out)
    found = (f"{kind}: {', '.join(table[kind].unique())}" for kind in ("model", "task", "policy"))
    trials = table[["model", "task", "policy", "problem"]].value_counts()
    few, many = (f"{count:,}" for count in (trials[trials > 0].min(), trials.max()))
    each = few if few == many else f"{few} to {many}"
    problems = len(table[["task", "problem"]].drop_duplicates())
    print(f"{out}: {len(table):,} traces of {problems:,} problems, {each} each; {'; '.join(found)}")


def known(
    kind: Annotated[str, Argument(metavar="KIND", help="models, hardware, policies or chapters")],
) -> None:
    """List what can be named. Models, hardware, policies or chapters, one a line."""
    import kinetics_lab as lab
    from kinetics_lab.book.parameters import read_notebook
    from kinetics_lab.cost.policies import POLICIES

    shown = lookup({
        "models": {name: f"{m.n_params / 1e9:,.1f} billion parameters, {m.n_active_params / 1e9:,.1f} active" for name, m in lab.MODELS.items()},
        "hardware": {name: f"{d.memory / 1e9:,.0f} GB at {d.bandwidth / 1e12:.2f} TB/s; {', '.join(d.peaks)}" for name, d in lab.HARDWARE.items()},
        "policies": {":".join([key, *(f.name for f in fields(p))]): str(p.__doc__).splitlines()[0] for key, p in POLICIES.items()},
        "chapters": sorted(Path("notebooks").glob("*.ipynb")),
    }, kind, "kind")  # fmt: skip
    require(bool(shown), "chapters are listed in the project's folder, which has notebooks/", str(Path.cwd()))
    if not isinstance(shown, dict):
        shown = {
            str(path): read_notebook(path).cells[0].source.partition("# ")[2].splitlines()[0]
            for path in shown
        }
    print(*(f"{name:{max(map(len, shown))}}  {what}" for name, what in shown.items()), sep="\n")
