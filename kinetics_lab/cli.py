"""What test-time compute costs: price a setting, run a chapter with your own parameters, build the book."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import kinetics_lab
from kinetics_lab import commands as do
from kinetics_lab.cost.request import COMBINES, COUNTINGS


def named(text: str) -> tuple[str, str]:
    """NAME=SHAPE as a pair; a config.json alone has an empty name."""
    name, equals, shape = text.partition("=")
    if not equals and text.endswith(".json"):
        return "", text
    if not (name and equals and shape):
        raise argparse.ArgumentTypeError(f"must read NAME=SHAPE, got {text!r}")
    return name, shape


def resource(text: str) -> tuple[str, float]:
    """NAME=N as a pair."""
    name, _, count = text.partition("=")
    try:
        return name, float(count)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must read NAME=N, got {text!r}") from None


def batch(text: str) -> float | str:
    """A number, or the word "fits"."""
    return text if text == "fits" else float(text)


def parser() -> argparse.ArgumentParser:
    """The command line's grammar; each command's function is its ``do``."""
    top = argparse.ArgumentParser(prog="kinetics-lab", description=__doc__)
    top.add_argument("--version", action="version", version=f"kinetics-lab {kinetics_lab.__version__}")
    added = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(function: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        made = added.add_parser(function.__name__, help=text, description=function.__doc__)
        made.set_defaults(do=function)
        return made

    one = command(do.cost, "FLOP, bytes, eFLOPs and seconds of one setting, as a JSON line")
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

    one = command(do.run, "execute a notebook with your own parameters")
    one.add_argument("notebook")
    one.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    one.add_argument("-f", "--file", help="YAML file of parameters: a common: section and one per notebook")
    one.add_argument("-o", "--out", required=True, help="run folder to write")
    one.add_argument("-k", "--kernel", default="python3", help="Jupyter kernel (python3)")

    one = command(do.sweep, "run a notebook over a grid of parameters; a stopped sweep goes on")
    one.add_argument(
        "grid", type=Path, metavar="GRID.yml", help="notebook, axes, what moves together, exclusions"
    )
    one.add_argument("-o", "--out", type=Path, required=True, help="folder of the sweep")
    one.add_argument("--executor", default="local", help="local, or dask (local)")
    one.add_argument("--workers", type=int, default=2, help="points at a time on this machine (2)")
    one.add_argument("--scheduler", help="dask: address of a running cluster, tcp://HOST:8786")
    one.add_argument(
        "--resources",
        nargs="+",
        type=resource,
        default=[],
        metavar="NAME=N",
        help="dask: what each point takes, GPU=1",
    )
    one.add_argument("--retry", action="store_true", help="run the points again that failed")
    one.add_argument("--dry-run", action="store_true", help="list the points and their states")

    default = Path("notebooks", "params", "default.yml")
    one = command(do.book, "execute all notebooks and build the book")
    one.add_argument("-f", "--file", type=Path, default=default, help=f"YAML file of parameters ({default})")
    one.add_argument("-o", "--out", type=Path, help="folder of the build (_build/book, or _build/preview)")
    one.add_argument(
        "--only", nargs="+", default=[], metavar="STEM", help="preview of these notebooks, not strict"
    )

    one = command(do.serve, "show the built book in a browser on this machine")
    one.add_argument("--port", type=int, default=8000, help="port of the address 127.0.0.1 (8000)")

    one = command(do.pdf, "build the book as one PDF (needs Chromium)")
    one.add_argument("-f", "--file", type=Path, default=default, help=f"YAML file of parameters ({default})")
    one.add_argument(
        "-o", "--out", type=Path, default=Path("_build", "kinetics-lab.pdf"), help="PDF to write"
    )

    one = command(do.measure, "time this machine's GPU or processor, suite by suite; a stopped run goes on")
    one.add_argument(
        "--suite", default="all", help="all, or a list: roofline,dense,topk,layer,validate,fp8,model (all)"
    )
    folder = Path("data", "measurements")
    one.add_argument("-o", "--out", type=Path, default=folder, help=f"folder of the rows ({folder})")
    one.add_argument(
        "--budget-seconds", type=float, default=float("inf"), help="start no case beyond (endless)"
    )
    one.add_argument(
        "--dry-run", action="store_true", help="list cases, limits, seconds and memory; needs no GPU"
    )
    one.add_argument(
        "--device", choices=("cuda", "host", "cpu"), default="cuda",
        help="cuda: the GPU; host: this computer's processor, in plain PyTorch (roofline,model); "
        "cpu: a rehearsal in Triton's interpreter, no measurement (cuda)",
    )  # fmt: skip

    one = command(do.plan, "the best model, policy and number of trials for a budget")
    one.add_argument(
        "--traces", nargs="+", default=[], metavar="FILE", help="trace files, or one summary (embedded)"
    )
    one.add_argument("--budget", nargs="+", type=float, required=True, help="per problem, one or several")
    one.add_argument("--unit", default="s", help="of the budget: s (of one device, the default) or eflops")
    one.add_argument("--hardware", default="h200", help="accelerator (h200)")
    one.add_argument("--precision", help="bf16, fp8, ... (the accelerator's own)")
    one.add_argument(
        "--model",
        nargs="+",
        type=named,
        default=[],
        metavar="NAME=SHAPE",
        help="shape of a model in the traces: a known name or a config.json (its NAME= only where several are unknown)",
    )
    one.add_argument(
        "--allocation", default="uniform", help="uniform (one setting for all) or oracle (per problem)"
    )
    one.add_argument(
        "--policies", nargs="+", default=[], help="choose among these: dense, block_topk, topk:512, ..."
    )
    one.add_argument(
        "--topk", default="scan", help="oracle top-k: scan (score every key), free (the paper's), out"
    )
    one.add_argument(
        "--trials", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32], help="numbers of answers N"
    )
    one.add_argument(
        "--caps", nargs="+", type=int, default=[], help="lengths at which answers may be cut (tokens)"
    )
    one.add_argument("--dense-layers", type=int, help="layers that stay dense (0; embedded traces: 1)")
    one.add_argument(
        "--batch", type=batch, help="sequences that share the weights' traffic, or fits (endless)"
    )
    one.add_argument(
        "--n-devices", type=int, default=1, help="devices whose memory holds a batch that fits (1)"
    )
    how = one.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="JSON lines, with more columns")
    how.add_argument("--report", metavar="DIR", help="run the chapter with all this in DIR, print its paths")

    one = command(do.traces, "turn traces of any supported format into one Parquet table")
    one.add_argument(
        "files", nargs="+", metavar="FILE", help="JSON lines, CSV or Parquet, or a folder of them"
    )
    one.add_argument("-o", "--out", type=Path, required=True, help="Parquet file to write")
    one.add_argument(
        "--tokenizer", metavar="NAME", help="counts tokens where files hold texts: on the hub, or a file"
    )
    for name in ("model", "task", "policy"):
        one.add_argument(f"--{name}", help=f"the {name}, where files do not say")
    one.add_argument("--format", help="kinetics, lm-eval, requests or table (by content)")
    one.add_argument("--metric", help="which score of lm-eval counts, exact_match,strict-match for example")
    one.add_argument("--limit", type=float, help="answers at least this long were cut (tokens; inf: none)")
    one.add_argument("--skip-bad", type=int, default=0, metavar="N", help="skip at most N bad lines (0)")

    one = command(do.ladder, "train tiny reasoners and sample them, dense and sparse (Part IV)")
    one.add_argument("step", choices=("train", "sample", "all"), help="all: traces, training and walks")
    one.add_argument("--preset", default="cpu-small", help="cpu-small (a minute), cpu (an hour), h200")
    folder = Path("_build", "ladder")
    one.add_argument(
        "--folder",
        type=Path,
        default=folder,
        help=f"models and tables, a folder for each preset; goes on ({folder})",
    )
    one.add_argument("--model", action="append", help="sample only this one, w64-s0; may be repeated")
    one.add_argument("--device", default="cpu", help="cpu or cuda")
    one.add_argument("-o", "--out", type=Path, help="Parquet file to write (in the folder)")

    one = command(do.generate, "sample answers of a Hugging Face model under a policy, and grade them")
    one.add_argument("--model", required=True, help="folder or hub name of a model (Qwen3, Qwen2.5, Llama)")
    one.add_argument(
        "--problems",
        required=True,
        help="JSON lines with problem and answer; aime24, aime25, math-500, gsm8k",
    )
    one.add_argument(
        "-o", "--out", type=Path, required=True, help="folder of the answers; a stopped run goes on"
    )
    one.add_argument("--task", help="what the traces call the problems (name of the file or set)")
    one.add_argument("--name", help="what the traces call the model (last part of its name, lower case)")
    one.add_argument(
        "--policy", default="dense", help="attention: dense, topk:512, block_topk:512:32, ... (dense)"
    )
    for name, value, text in (
        ("dense-layers", 0, "first layers that stay dense"),
        ("trials", 1, "answers to each problem; more may be asked for later"),
        ("max-tokens", 32768, "longest answer"),
        ("top-k", 20, "draw among the likeliest so many (0: all)"),
        ("seed", 0, "of all draws"),
        ("repeat-window", 0, "stop an answer whose last so many tokens repeat a block (0: never)"),
        ("repeat-block", 64, "longest block that repeats, tokens"),
    ):
        one.add_argument(f"--{name}", type=int, default=value, help=f"{text} ({value})")
    one.add_argument("--temperature", type=float, default=0.6, help="0: the likeliest token (0.6)")
    one.add_argument(
        "--top-p", type=float, default=0.95, help="draw among the likeliest of this probability (0.95)"
    )
    one.add_argument("--slots", type=int, help="answers side by side; changes none (as many as fit; CPU: 8)")
    one.add_argument("--device", help="cuda or cpu (cuda where there is one)")
    one.add_argument("--dtype", default="auto", help="float32, bfloat16, ... (the model's own)")
    one.add_argument(
        "--compile", action="store_true", help="fuse the model's small kernels (a minute at start)"
    )

    one = command(do.claims, "print the scorecard")
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
