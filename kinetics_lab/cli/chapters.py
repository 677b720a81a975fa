"""Chapters and the book: run one, run it over a grid, build and show all of them, compare with what was published."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from kinetics_lab.cli.shared import NONE, public
from kinetics_lab.files import sole_writer

FIRST = "run `kinetics-lab book` in the project's folder first"
Parameters = Annotated[Path | None, Option("-f", "--file", help="YAML file of other parameters")]


def run(
    notebook: Annotated[Path, Argument(help="the chapter")],
    *,
    parameter: Annotated[list[str], Option("-p", "--parameter", metavar="NAME VALUE", help="one of its parameters; may be repeated")] = NONE,
    file: Annotated[Path | None, Option("-f", "--file", help="YAML file of parameters: a common: section and one per notebook")] = None,
    out: Annotated[Path, Option("-o", "--out", help="run folder to write")],
    kernel: Annotated[str, Option("-k", "--kernel", help="Jupyter kernel")] = "python3",
    page: Annotated[bool, Option("--page", help="write one HTML file to send around, too, and print both paths")] = False,
) -> None:  # fmt: skip
    """Run a chapter with your own parameters. Prints the run folder."""
    from kinetics_lab.book.pages import pages
    from kinetics_lab.book.parameters import read_parameters, scalar
    from kinetics_lab.book.runs import run_notebook

    beside = sorted({*notebook.parent.glob("*.ipynb"), notebook}) if file else [notebook]
    parameters = read_parameters(file, beside)[notebook.stem]
    for text in parameter:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"-p must be given NAME VALUE; got {text!r} alone")
        parameters[name] = scalar(value, name)
    done = run_notebook(notebook, parameters, out=out, kernel=kernel)
    with sole_writer(done.folder):
        print(*(pages(done.executed) if page else [done.folder]), sep="\n")


def _count(text: str) -> tuple[str, float]:
    """NAME=N as a pair."""
    name, _, count = text.partition("=")
    try:
        return name, float(count)
    except ValueError:
        raise ValueError(f"--resources must read NAME=N; got {text!r}") from None


def sweep(
    grid: Annotated[Path, Argument(metavar="GRID.yml", help="notebook, axes, what moves together, exclusions")],
    *,
    out: Annotated[Path, Option("-o", "--out", help="folder of the sweep")],
    executor: Annotated[str, Option(help="local, or dask")] = "local",
    workers: Annotated[int, Option(help="points at a time on this machine")] = 2,
    scheduler: Annotated[str | None, Option(help="dask: address of a running cluster, tcp://HOST:8786")] = None,
    resources: Annotated[list[str], Option(metavar="NAME=N ...", help="dask: what each point takes, GPU=1")] = NONE,
    retry: Annotated[bool, Option("--retry", help="run the points again that failed")] = False,
    dry_run: Annotated[bool, Option("--dry-run", help="list the points and their states")] = False,
) -> None:  # fmt: skip
    """Run a chapter over a grid of parameters. Prints its table and its page; a stopped sweep goes on."""
    from kinetics_lab.book import sweep as sweeps

    if dry_run:
        print("\n".join(sweeps.listing(grid, out)))
        return
    found = sweeps.sweep(grid, out, executor=executor, workers=workers, scheduler=scheduler,
                         resources=dict(map(_count, resources)), retry=retry)  # fmt: skip
    print(*filter(None, [found.results, *found.pages]), sep="\n")
    if found.failed:
        name, why = next(iter(found.failed.items()))
        failed = f"{len(found.failed)} of {found.points} points failed, {name} with: {why}"
        raise RuntimeError(f"{failed}; tracebacks are in {out / 'points'}, and --retry runs them again")


def book(
    *,
    file: Parameters = None,
    out: Annotated[Path | None, Option("-o", "--out", help="folder of the build (_build/book, or _build/preview)")] = None,
    only: Annotated[list[str], Option(metavar="STEM ...", help="preview of these notebooks, not strict")] = NONE,
) -> None:  # fmt: skip
    """Execute all notebooks and build the book. Prints the path of its first page."""
    from kinetics_lab.book.build import build_book

    out = out or Path("_build", "preview" if only else "book")
    print(build_book(Path(), file, out, only=only, extra=made_for_the_book))


def made_for_the_book() -> dict[str, bytes]:
    """Files that the build writes from the package: the data of the answer pages, and their first answers as the commands print them."""
    from kinetics_lab.cli import ask
    from kinetics_lab.cli.cost import cost
    from kinetics_lab.planner import page

    files = page.page_files({name: public(name) for name in page.SETS})
    for name, asked, command in (("calculator", page.QUESTION, cost), ("planner", page.PLANNED, ask.plan)):
        with redirect_stdout(io.StringIO()) as told, redirect_stderr(io.StringIO()):
            command(**asked)
        values = {key: value[0] if isinstance(value, list) else value for key, value in asked.items()}
        words = [f"--{key.replace('_', '-')} {value}" for key, value in values.items()]
        first = f"$ kinetics-lab {command.__name__} {' '.join(words)}\n\n{told.getvalue()}"
        files[f"book/{name}-default.txt"] = first.encode()
    return files


def pdf(
    *,
    file: Parameters = None,
    out: Annotated[Path, Option("-o", "--out", help="PDF to write")] = Path("_build", "kinetics-lab.pdf"),
) -> None:
    """Build the book as one PDF, with Chromium. Prints its path."""
    from kinetics_lab.book.build import build_book, print_pdf

    built = build_book(Path(), file, Path("_build", "single"), builder="singlehtml", extra=made_for_the_book)
    with sole_writer(out):
        print_pdf(built, out)
    print(out.resolve())


def serve(*, port: Annotated[int, Option(help="port of the address 127.0.0.1")] = 8000) -> None:
    """Show the built book in a browser. Until Ctrl-C; at another port where this one is taken."""
    import signal
    from http.server import ThreadingHTTPServer

    from kinetics_lab.book.pages import handler

    folder = Path("_build", "book", "_build", "html")
    if not (folder / "index.html").exists():
        raise FileNotFoundError(f"there is no book in {folder}: {FIRST}")
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), handler(folder))
    except (OSError, OverflowError):
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler(folder))
    # A shell's background job starts with Ctrl-C ignored; this server is told to stop by it all the same.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print(f"http://127.0.0.1:{server.server_port}/ until Ctrl-C", flush=True)
    with server:
        server.serve_forever()


def claims(
    findings: Annotated[Path | None, Argument(help="a claims.jsonl (newest under _build/runs)")] = None,
) -> None:
    """Print the scorecard of the newest runs. Every published number beside the one found here."""
    from kinetics_lab.book.claims import scorecard

    merged = sorted(Path("_build", "runs").glob("claims-*.jsonl"), key=lambda path: path.stat().st_mtime)
    if not merged and not findings:
        raise FileNotFoundError(f"no findings under _build/runs: {FIRST}")
    table = scorecard(findings or merged[-1])
    print(table[["id", "published", "here", "verdict"]].to_string(index=False))
