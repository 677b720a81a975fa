"""What test-time compute costs: price a setting, run a chapter with your own parameters, build the book."""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import kinetics_lab
from kinetics_lab.cost import COMBINES, COUNTINGS


def cost(args: argparse.Namespace) -> None:
    """Print one JSON line: flops, bytes, eflops, seconds and the arguments they belong to."""
    from kinetics_lab.cost import decode_cost
    from kinetics_lab.hardware import hardware
    from kinetics_lab.policies import parse_policy
    from kinetics_lab.shapes import model

    device = hardware(args.hardware, args.precision)
    found = decode_cost(
        model(args.model),
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
    """The value a YAML file would give for ``text``, and a float for ``1e5``, which YAML 1.1 takes for a word."""
    import yaml

    if re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", text):
        return float(text)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"a parameter's value must be YAML; got {text!r}") from error


def run(args: argparse.Namespace) -> None:
    """Execute one notebook and print its run folder."""
    from kinetics_lab.parameters import read_parameters
    from kinetics_lab.runs import run_notebook

    notebook = Path(args.notebook)
    parameters: dict[str, Any] = {}
    if args.file:
        beside = sorted({*notebook.parent.glob("*.ipynb"), notebook})
        parameters |= read_parameters(args.file, beside)[notebook.stem]
    parameters |= {name: scalar(value) for name, value in args.parameter}
    print(run_notebook(notebook, parameters, out=args.out, kernel=args.kernel).folder)


def book(args: argparse.Namespace) -> None:
    """Execute the notebooks, build the book and print the path of its first page."""
    from kinetics_lab.book import build_book

    out = args.out or Path("_build", "preview" if args.only else "book")
    print(build_book(Path(), args.file, out, only=args.only))


def pdf(args: argparse.Namespace) -> None:
    """Build the book as one page, print it with Chromium and print the path of the PDF."""
    from kinetics_lab.book import build_book, print_pdf

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
    from kinetics_lab.claims import scorecard

    merged = sorted(Path("_build", "runs").glob("claims-*.jsonl"), key=lambda path: path.stat().st_mtime)
    if not merged and not args.findings:
        raise FileNotFoundError(
            "no findings under _build/runs: run `kinetics-lab book` in the project's folder first"
        )
    table = scorecard(args.findings or merged[-1])
    print(table[["id", "published", "here", "verdict"]].to_string(index=False))


def measure(args: argparse.Namespace) -> None:
    """Measure suites on this machine's GPU and print their files; progress goes to stderr."""
    from kinetics_lab import suites
    from kinetics_lab.measure import plan

    if args.dry_run:
        print(*plan(suites.suites(args.suite), args.out), sep="\n")
        return
    files = suites.measure(args.suite, args.out, budget_s=args.budget_seconds, device=args.device)
    print(*files, sep="\n")


def parser() -> argparse.ArgumentParser:
    """The command line's grammar; each command's function is its ``do``."""
    top = argparse.ArgumentParser(prog="kinetics-lab", description=__doc__)
    top.add_argument("--version", action="version", version=f"kinetics-lab {kinetics_lab.__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(do: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(do.__name__, help=text, description=do.__doc__)
        made.set_defaults(do=do)
        return made

    one = command(cost, "FLOP, bytes, eFLOPs and seconds of one setting, as a JSON line")
    one.add_argument("--model", required=True, help="model shape, qwen3-8b for example")
    one.add_argument(
        "--policy", default="dense", help="attention: dense, topk:512, block_topk:512:32, ... (dense)"
    )
    one.add_argument("--n-in", type=int, required=True, help="prompt tokens")
    one.add_argument("--n-out", type=int, required=True, help="tokens generated per trial")
    one.add_argument("--n-trials", type=int, default=1, help="answers to the same prompt (1)")
    one.add_argument("--counting", choices=COUNTINGS, default="exact", help="what is counted (exact)")
    one.add_argument("--hardware", default="h200", help="accelerator (h200)")
    one.add_argument("--precision", help="bf16, fp8, ... (the accelerator's own)")
    one.add_argument(
        "--combine", choices=COMBINES, default="add", help="compute and traffic: sum or larger one (add)"
    )
    one.add_argument("--batch", type=int, help="sequences that share the weights' traffic (endless)")

    one = command(run, "execute a notebook with your own parameters")
    one.add_argument("notebook")
    one.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    one.add_argument("-f", "--file", help="YAML file of parameters: a common: section and one per notebook")
    one.add_argument("-o", "--out", required=True, help="run folder to write")
    one.add_argument("-k", "--kernel", default="python3", help="Jupyter kernel (python3)")

    default = Path("notebooks", "params", "default.yml")
    one = command(book, "execute all notebooks and build the book")
    one.add_argument("-f", "--file", type=Path, default=default, help=f"YAML file of parameters ({default})")
    one.add_argument("-o", "--out", type=Path, help="folder of the build (_build/book, or _build/preview)")
    one.add_argument(
        "--only", nargs="+", default=[], metavar="STEM", help="preview of these notebooks, not strict"
    )

    one = command(serve, "show the built book in a browser on this machine")
    one.add_argument("--port", type=int, default=8000, help="port of the address 127.0.0.1 (8000)")

    one = command(pdf, "build the book as one PDF (needs Chromium)")
    one.add_argument("-f", "--file", type=Path, default=default, help=f"YAML file of parameters ({default})")
    one.add_argument(
        "-o", "--out", type=Path, default=Path("_build", "kinetics-lab.pdf"), help="PDF to write"
    )

    one = command(measure, "time the kernels on this machine's GPU, suite by suite; a stopped run goes on")
    one.add_argument(
        "--suite", default="all", help="all, or a list: roofline,dense,topk,layer,validate (all)"
    )
    folder = Path("data", "measurements")
    one.add_argument("-o", "--out", type=Path, default=folder, help=f"folder of the rows ({folder})")
    one.add_argument(
        "--budget-seconds", type=float, default=float("inf"), help="start no case beyond (endless)"
    )
    one.add_argument(
        "--dry-run", action="store_true", help="list cases, limits, seconds and memory; needs no GPU"
    )
    one.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help=argparse.SUPPRESS)

    one = command(claims, "print the scorecard")
    one.add_argument("findings", nargs="?", help="a claims.jsonl (the newest one under _build/runs)")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command: 0, or 2 for wrong input and 1 for a failed run or build, with one message on stderr."""
    args = parser().parse_args(argv)
    try:
        args.do(args)
    except (ValueError, OSError) as error:
        print(f"kinetics-lab: error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"kinetics-lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("kinetics-lab: stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
