"""What each command of the command line does, given its parsed arguments."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from kinetics_lab.errors import require


def cost(args: argparse.Namespace) -> None:
    """Print one JSON line: flops, bytes, eflops, seconds and the arguments they belong to."""
    from kinetics_lab.cost.hardware import find_hardware
    from kinetics_lab.cost.models import find_model
    from kinetics_lab.cost.policies import parse_policy
    from kinetics_lab.cost.request import decode_cost

    device = find_hardware(args.hardware, args.precision)
    found = decode_cost(
        find_model(args.model),
        parse_policy(args.policy),
        args.n_in,
        args.n_out,
        args.n_trials,
        counting=args.counting,
        bytes_per_element=device.bytes_per_element,
        batch=args.batch,
    )
    given = {name: value for name, value in vars(args).items() if name not in ("command", "do")}
    numbers = {
        "flops": float(found.flops),
        "bytes": float(found.bytes),
        "eflops": float(found.eflops(device, args.combine)),
        "seconds": float(found.seconds(device, args.combine)),
    }
    print(json.dumps(numbers | {"arguments": given | {"precision": device.precision}}))


def scalar(text: str) -> Any:
    """The value that a file of parameters would give for ``text``."""
    import yaml

    from kinetics_lab.book.parameters import yaml_loader

    try:
        return yaml.load(text, yaml_loader())
    except yaml.YAMLError as error:
        raise ValueError(f"a parameter's value must be YAML; got {text!r}") from error


def run(args: argparse.Namespace) -> None:
    """Execute one notebook and print its run folder."""
    from kinetics_lab.book.parameters import read_parameters
    from kinetics_lab.book.runs import run_notebook

    notebook = Path(args.notebook)
    parameters: dict[str, Any] = {}
    if args.file:
        beside = sorted({*notebook.parent.glob("*.ipynb"), notebook})
        parameters |= read_parameters(args.file, beside)[notebook.stem]
    parameters |= {name: scalar(value) for name, value in args.parameter}
    print(run_notebook(notebook, parameters, out=args.out, kernel=args.kernel).folder)


def sweep(args: argparse.Namespace) -> None:
    """Run the points of a grid that the folder does not hold yet; print the table of results and the summary page."""
    from kinetics_lab.book import sweep as sweeps

    if args.dry_run:
        print(*sweeps.listing(args.grid, args.out), sep="\n")
        return
    names = ("executor", "workers", "scheduler", "retry")
    given = {name: getattr(args, name) for name in names} | {"resources": dict(args.resources)}
    found = sweeps.sweep(args.grid, args.out, **given)
    print(*filter(None, [found.results, *found.pages]), sep="\n")
    if found.failed:
        name, why = next(iter(found.failed.items()))
        raise RuntimeError(
            f"{len(found.failed)} of {found.points} points failed, {name} with: {why}; tracebacks are in "
            f"{args.out / 'points'}, and --retry runs them again"
        )


def book(args: argparse.Namespace) -> None:
    """Execute the notebooks, build the book and print the path of its first page."""
    from kinetics_lab.book.build import build_book

    out = args.out or Path("_build", "preview" if args.only else "book")
    print(build_book(Path(), args.file, out, only=args.only))


def pdf(args: argparse.Namespace) -> None:
    """Build the book as one page, print it with Chromium and print the path of the PDF."""
    from kinetics_lab.book.build import build_book, print_pdf

    print_pdf(build_book(Path(), args.file, Path("_build", "single"), builder="singlehtml"), args.out)
    print(args.out.resolve())


def serve(args: argparse.Namespace) -> None:
    """Serve the built book on this machine until Ctrl-C, at another port where the one asked for is taken."""
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    folder = Path("_build", "book", "_build", "html")
    if not (folder / "index.html").exists():
        raise FileNotFoundError(
            f"there is no book in {folder}: run `kinetics-lab book` in the project's folder first"
        )
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    try:
        server = ThreadingHTTPServer(("127.0.0.1", args.port), handler)
    except OSError:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    # A shell's background job starts with Ctrl-C ignored; this server is told to stop by it all the same.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print(f"http://127.0.0.1:{server.server_port}/ until Ctrl-C", flush=True)
    with server:
        server.serve_forever()


def claims(args: argparse.Namespace) -> None:
    """Print the scorecard of the newest runs: every published number beside the one found here."""
    from kinetics_lab.book.claims import scorecard

    merged = sorted(Path("_build", "runs").glob("claims-*.jsonl"), key=lambda path: path.stat().st_mtime)
    if not merged and not args.findings:
        raise FileNotFoundError(
            "no findings under _build/runs: run `kinetics-lab book` in the project's folder first"
        )
    table = scorecard(args.findings or merged[-1])
    print(table[["id", "published", "here", "verdict"]].to_string(index=False))


def ladder(args: argparse.Namespace) -> None:
    """Make tables of a ladder, training and sampling what is missing; print the files written."""
    from kinetics_lab.ladder.tables import KINDS, make_table

    kinds = {"train": ["training"], "sample": ["traces"], "all": KINDS}[args.step]
    if args.out and len(kinds) > 1:
        raise ValueError(f"-o names one file, and all makes {len(kinds)}: leave it out, or use --folder")
    how = {"out": args.out, "device": args.device, "only": args.model or (), "progress": True}
    for kind in kinds:
        print(make_table(kind, args.preset, args.folder, **how))


@contextmanager
def warned() -> Iterator[None]:
    """Print what the readers warn of as plain lines on stderr."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in seen:
        print(f"kinetics-lab: warning: {warning.message}", file=sys.stderr)


def generate(args: argparse.Namespace) -> None:
    """Sample answers and grade them; print the file. What was finished is kept, a stopped run goes on."""
    from kinetics_lab.decode import generate as engine
    from kinetics_lab.decode import grade, hf

    names = (field.name for field in fields(engine.Settings) if hasattr(args, field.name))
    settings = engine.Settings(**{name: getattr(args, name) for name in names})
    problems = grade.problems(args.problems)
    device = args.device or ("cuda" if hf.torch.cuda.is_available() else "cpu")
    model, tokenizer = hf.load_model(args.model, device=device, dtype=args.dtype)
    task = args.task or Path(args.problems).name.removesuffix(".jsonl")
    name = args.name or Path(args.model).name.lower()
    options = {"task": task, "name": name, "slots": args.slots, "compiled": args.compile}
    with warned():
        path = engine.generate(model, tokenizer, problems, args.out, settings, **options)
    print(path)


def measure(args: argparse.Namespace) -> None:
    """Measure suites on this machine's GPU or processor and print their files; progress goes to stderr."""
    from kinetics_lab.measure import suites
    from kinetics_lab.measure.runner import dry_run

    if args.dry_run:
        require(args.device == "cuda", "--dry-run is for a GPU: --device must be cuda", args.device)
        print(*dry_run(suites.chosen_suites(args.suite), args.out), sep="\n")
        return
    files = suites.measure(args.suite, args.out, budget_s=args.budget_seconds, device=args.device)
    print(*files, sep="\n")


def traces(args: argparse.Namespace) -> None:
    """Read traces of any supported format, write them as one Parquet table and say what was found."""
    from kinetics_lab.traces.read import read_traces
    from kinetics_lab.traces.table import write_traces

    if args.out.suffix != ".parquet":
        raise ValueError(f"-o must name a .parquet file, which is what is written; got {str(args.out)!r}")
    names = ("tokenizer", "model", "task", "policy", "format", "limit", "metric", "skip_bad")
    with warned():
        table = read_traces(args.files, **{name: getattr(args, name) for name in names})
    write_traces(table, args.out)
    found = (f"{kind}: {', '.join(table[kind].unique())}" for kind in ("model", "task", "policy"))
    setting = ["model", "task", "policy", "problem"]
    trials = table[setting].value_counts()
    few, many = (f"{count:,}" for count in (trials[trials > 0].min(), trials.max()))
    each = few if few == many else f"{few} to {many}"
    problems = len(table[["task", "problem"]].drop_duplicates())
    print(f"{args.out}: {len(table):,} traces of {problems:,} problems, {each} each; {'; '.join(found)}")


def plan(args: argparse.Namespace) -> None:
    """Print the best setting for each budget, with its accuracy, cost and how sure the choice is."""
    from kinetics_lab.cost.hardware import find_hardware
    from kinetics_lab.planner import offers as plan_inputs
    from kinetics_lab.planner import text as plan_report
    from kinetics_lab.planner.plan import plan

    with warned():
        data = plan_inputs.load(args.traces)
    if not args.traces:
        print(f"kinetics-lab: no --traces: planning with {plan_inputs.EMBEDDED}", file=sys.stderr)
    if args.dense_layers is None:
        args.dense_layers = 0 if args.traces else plan_inputs.EMBEDDED_DENSE_LAYERS
    names = ("unit", "allocation", "policies", "topk", "trials", "caps", "batch", "dense_layers")
    given = {name: getattr(args, name) for name in names}
    device = find_hardware(args.hardware, args.precision, args.n_devices)
    models = plan_inputs.name_models(args.model, data)
    shapes = plan_inputs.own_models(models)
    found = plan(data, device, args.budget, shapes=shapes, **given)
    for line in plan_report.left_out(found):
        print(f"kinetics-lab: left out: {line}", file=sys.stderr)
    if args.report:
        given |= {name: getattr(args, name) for name in ("hardware", "precision", "n_devices")}
        given |= {"budgets": args.budget, "traces": args.traces, "models": models}
        print(*plan_report.report(given, args.report), sep="\n")
    elif args.json:
        print(found.to_json(orient="records", lines=True).strip())
    else:
        print(plan_report.text(found))
