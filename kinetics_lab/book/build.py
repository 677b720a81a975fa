"""The book: executed notebooks and pages gathered in a staging tree, rendered strictly by Jupyter Book.

Everything of a build lies in its ``out`` folder: ``stage/`` (what Jupyter Book reads), ``_build/html/`` (what it
writes), ``build.log`` and ``stamp.json`` (what the pages were made from; equal stamp, no new build).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import ChainMap, defaultdict
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

from kinetics_lab import HOME, data
from kinetics_lab.book.imports import PACKAGE, modules
from kinetics_lab.book.pages import guard
from kinetics_lab.book.parameters import declared_parameters, read_notebook
from kinetics_lab.book.results import collects_claims, told_in, with_words
from kinetics_lab.book.runs import RunResult, execute_all
from kinetics_lab.errors import among, require
from kinetics_lab.files import locked, write_text, write_whole

TOOLCHAIN = ("altair", "jupyter-book", "myst-nb", "sphinx", "sphinx-book-theme", "vl-convert-python")
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome")

PRINT_STYLE = '<link rel="stylesheet" href="_static/print.css">\n'


class BookError(RuntimeError):
    """A build that failed: warnings of the strict build, or no browser to print with."""


def repository_settings(config: dict[str, Any], url: str) -> dict[str, Any]:
    """The book's configuration, its buttons on with a URL (``https://host/owner/name``, or ValueError), off without."""
    if url and not re.fullmatch(r"https://[\w.-]+(/[\w.~-]+){2,}", url):
        raise ValueError(f"the repository's URL must read https://host/owner/name; got {url!r}")
    buttons = ("use_repository_button", "use_issues_button", "use_edit_page_button")
    options: dict[str, Any] = dict.fromkeys(buttons, bool(url))
    if url:
        launch, own = {}, config.get("repository", {})
        if url == own.get("url"):  # else a chapter's first cell cannot install the package
            launch = {"notebook_interface": "jupyterlab", "binderhub_url": "https://mybinder.org"}
            if url.startswith("https://github.com/"):
                launch["colab_url"] = "https://colab.research.google.com"
        options |= {"repository_url": url, "repository_branch": own.get("branch", "main")}
        options |= {"path_to_docs": "", "launch_buttons": launch}
    # As theme options: what Jupyter Book makes of its own keys is lost where a book sets theme options besides.
    config = {key: value for key, value in config.items() if key not in ("repository", "launch_buttons")}
    config["html"] = {key: value for key, value in (config.get("html") or {}).items() if key not in buttons}
    sphinx = config.get("sphinx", {})
    given = sphinx.get("config", {})
    given = {**given, "html_theme_options": given.get("html_theme_options", {}) | options}
    return config | {"sphinx": {**sphinx, "config": given}}


def _staged_notebook(run: RunResult) -> bytes:
    """The executed notebook without clock readings, nor papermill's cell where it repeats the defaults above it."""
    import nbformat

    book, declared = read_notebook(run.executed), declared_parameters(run.notebook)
    given = book.metadata.papermill.parameters
    book.metadata.papermill = {"parameters": given}
    for cell in book.cells:
        cell.metadata = {k: v for k, v in cell.metadata.items() if k not in ("papermill", "execution")}
        tags = cell.metadata.get("tags", [])
        if "injected-parameters" in tags and all(declared[k] == given[k] for k in given):
            cell.metadata["tags"] = [*tags, "remove-cell"]
    book.cells.append(nbformat.v4.new_markdown_cell(_invitation(run.executed.name, declared), id="run-it"))
    return nbformat.writes(book).encode()


def _invitation(name: str, declared: Mapping[str, Any]) -> str:
    """The end of a chapter's page: its notebook, its parameters, and the lines that run it with others."""
    plain = [f"-p {key} {value}" for key, value in declared.items() if re.fullmatch(r"[\w.:/-]+", str(value))]
    given, names = " ".join(plain[:2]), ", ".join(f"`{key}`" for key in declared) or "none"
    return f"""<details><summary>Run this chapter yourself</summary>

{{download}}`Its notebook <{name}>` takes these parameters: {names}. In the project's folder, after `make book`, either line runs it with values of your own:

```text
.venv/bin/kinetics-lab run notebooks/{name} -o _build/mine {given}
.venv/bin/papermill -k python3 notebooks/{name} _build/mine.ipynb {given}
```

</details>
"""


def _staged_toc(toc: dict[str, Any], only: Sequence[str]) -> dict[str, Any]:
    """The table of contents without the notebooks that are not in ``only``."""

    def kept(node: Any) -> Any:
        if isinstance(node, dict):
            smaller = {key: kept(value) for key, value in node.items()}
            return {key: value for key, value in smaller.items() if value != []}
        if not isinstance(node, list):
            return node
        files = [(entry, Path(entry.get("file", ""))) for entry in node]
        shown = [kept(entry) for entry, f in files if f.parent.name != "notebooks" or f.name in only]
        return [entry for entry in shown if set(entry) - {"caption"}]

    return dict(kept(toc))


def _toolchain() -> str:
    """A hash of what turns the staging tree into pages: this module, charts, docstrings of the public names, libraries."""
    here, homes = Path(__file__), [modules()[f"{PACKAGE}.{home}"] for home in HOME.values()]
    sources = {here, here.with_name("pages.py"), *here.with_name("charts").glob("*.py"), *homes}
    texts = [path.read_bytes() for path in sorted(sources)]
    tools = [f"{name} {version(name)}".encode() for name in TOOLCHAIN]
    return hashlib.sha256(b"\0".join([*texts, *tools])).hexdigest()


def _sync(tree: dict[str, bytes], folder: Path) -> str:
    """Make ``folder`` hold exactly ``tree``, touching only what differs; a hash of it all."""
    digest = hashlib.sha256()
    for name, content in sorted(tree.items()):
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
        path = folder / name
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_file() and path.relative_to(folder).as_posix() not in tree:
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    return digest.hexdigest()


def _jupyter_book(out: Path, builder: str, strict: bool) -> None:
    """Render ``out/stage``; its chatter goes to ``out/build.log``, warnings to stderr. BookError if it fails."""
    main, stage = "from jupyter_book.cli.main import main; main()", out / "stage"
    options = {"--toc": f"{stage}/book/_toc.yml", "--path-output": f"{out}", "--builder": builder}
    command = [sys.executable, "-c", main, "build", str(stage), *chain.from_iterable(options.items())]
    command += ["-W", "-n", "--keep-going"] * strict
    # strictness is about the book, not its tools
    env = os.environ | {"PYTHONWARNINGS": "ignore", "NO_COLOR": "1"}
    run = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, check=False
    )
    log = re.sub(r"\x1b\[[0-9;]*m", "", run.stdout)
    write_text(out / "build.log", log)
    found = re.findall(r"^.*\b(?:WARNING|ERROR)\b.*$", log.replace(f"{stage}/", ""), re.MULTILINE)
    expected = "unknown source document", "unknown document", "target not found", "glue reference"  # left out
    told = [line for line in found if strict or not any(words in line.lower() for words in expected)]
    if not strict:
        print("A preview: links to the notebooks left out lead nowhere.")
    print("\n".join(told), file=sys.stderr, end="\n" if told else "")
    if run.returncode:
        crash = re.findall(r"Exception occurred:(?s:.*?)\n(\S.*)", log) + re.findall(r"={20,}\n\n(.+)", log)
        reason = crash[0] if crash and not told else f"{len(told)} warning{'s' * (len(told) != 1)}"
        raise BookError(f"the book did not build: {reason}; all of it is in {out / 'build.log'}")


def _gather(
    root: Path, runs: Sequence[RunResult], config: dict[str, Any], only: Sequence[str]
) -> dict[str, bytes]:
    """The staging tree, name to content: configuration, pages, executed notebooks and the charts' bundle."""
    import yaml

    from kinetics_lab.book.charts import write_bundle

    pages = (p for p in (root / "book").rglob("*") if p.is_file() and ".ipynb_checkpoints" not in p.parts)
    tree = {p.relative_to(root).as_posix(): p.read_bytes() for p in pages}
    words = ChainMap(*(told_in(run.folder) for run in runs), defaultdict(lambda: "…") if only else {})
    tree |= {n: with_words(text.decode(), words).encode() for n, text in tree.items() if n.endswith(".md")}
    tree |= {f"notebooks/{run.executed.name}": _staged_notebook(run) for run in runs}
    bundle = write_bundle(root / "_build" / "bundle")
    tree[f"book/_static/{bundle.name}"] = bundle.read_bytes()
    tree["_config.yml"] = yaml.safe_dump(config, sort_keys=False).encode()
    if only:
        toc = _staged_toc(yaml.safe_load(tree["book/_toc.yml"]), only)
        tree["book/_toc.yml"] = yaml.safe_dump(toc, sort_keys=False).encode()
    return tree


def _render(out: Path, tree: dict[str, bytes], builder: str, strict: bool) -> None:
    """Stage the tree and render it, unless ``out`` holds the pages of this very tree."""
    made, pages = out / "stamp.json", out / "_build" / builder
    stamp = {"builder": builder, "strict": strict, "toolchain": _toolchain()}
    stamp["tree"] = _sync(tree, out / "stage")
    last = json.loads(made.read_text(encoding="utf-8")) if made.exists() else {}
    if stamp == last and pages.is_dir():
        print("Nothing has changed since the last build.")
        return
    # Pages are all written anew, so that each reference is resolved again; what Sphinx has read of unchanged
    # sources is kept only after a clean build with the same tools, as it warns of a source only when it reads it.
    back = made.exists() and made.stat().st_mtime > time.time()  # then what changed since looks old to Sphinx
    made.unlink(missing_ok=True)
    shutil.rmtree(pages, ignore_errors=True)
    if back or stamp | {"tree": ""} != last | {"tree": ""}:
        shutil.rmtree(out / "_build", ignore_errors=True)
    _jupyter_book(out, builder, strict)
    guard(pages)
    write_text(made, json.dumps(stamp))


def build_book(
    root: Path | str, params: Path | str | None, out: Path | str, *, repository_url: str | None = None,
    builder: str = "html", only: Sequence[str] = (), extra: Callable[[], Mapping[str, bytes]] = dict,
) -> Path:  # fmt: skip
    """Execute the notebooks, stage them with the pages and build; returns the path of the first page.

    ``root`` holds ``_config.yml``, ``book/`` (with ``_toc.yml``) and ``notebooks/``. ``repository_url`` None takes
    KINETICS_REPOSITORY_URL, else ``repository.url`` of ``_config.yml``. ``only`` names notebooks (by stem) for a
    quick preview without the others; that one is not strict, as what their links lead to is missing. ``extra`` makes
    files for this build, content by path (below ``book/``).
    Raises ValueError or OSError for wrong input, NotebookError and BookError for what fails.
    """
    import yaml

    root, out = Path(root).resolve(), Path(os.path.abspath(out))
    if out.exists() and any(out.iterdir()) and not (out / "stage").is_dir():
        raise FileExistsError(f"{out} exists and is not a folder of book builds; give another place")
    for needed in ("_config.yml", "book/_toc.yml"):
        if not (root / needed).is_file():
            raise FileNotFoundError(f"there is no {needed} in {root}: run this in the project's folder")
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    if repository_url is None:
        own = config.get("repository", {}).get("url", "")
        repository_url = os.environ.get("KINETICS_REPOSITORY_URL", own)
    config = repository_settings(config, repository_url)
    for name in data.manifest():  # a kept run must not hide that a file was changed since
        data.data_path(name)
    notebooks = sorted((root / "notebooks").glob("*.ipynb"))
    for name in only:
        among([path.stem for path in notebooks], name, "notebook")
    made = extra()
    stale = [name for name in made if (root / name).exists()]
    require(not stale, "book/ must not hold files that the build makes, which would go stale", stale)
    wanted = [path for path in notebooks if not only or path.stem in only]
    wanted = notebooks if any(map(collects_claims, wanted)) else wanted  # it shows what all chapters find
    runs = execute_all(wanted, params, root / "_build" / "runs")
    (out / "stage").mkdir(parents=True, exist_ok=True)
    with locked(out / ".lock"):
        tree = _gather(root, runs, config, only) | dict(made)
        _render(out, tree, builder, strict=not only)
    index = out / "_build" / builder / "index.html"
    if builder == "singlehtml":
        _make_printable(index, index.parent / f"{yaml.safe_load(tree['book/_toc.yml'])['root']}.html")
    return index


def _make_printable(index: Path, single: Path) -> None:
    """Put the page that holds the whole book, fit for paper, in the place of the one that only points at it."""
    if single.exists():  # its addresses are those of the top folder
        text = single.read_text(encoding="utf-8").replace("</head>", PRINT_STYLE + "</head>", 1)
        text = text.replace("<details>", "<details open>")  # answers are shown
        # what leads elsewhere in the book leads within this page; files beside it do not travel with the paper
        text = re.sub(r'href="(?!https?:|mailto:|data:)[^"#]*(#[^"]+)"', r'href="\1"', text)
        text = re.sub(r'(<a\b[^>]*?) href="(?!https?:|mailto:|#)[^"]*"', r"\1", text)
        index.write_text(text, encoding="utf-8")
        single.unlink()


def find_chromium() -> str | None:
    """The browser to print with: $CHROMIUM, else the first of the usual names that is installed."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM)), None)


def print_pdf(page: Path, pdf: Path) -> None:
    """Print an HTML page to ``pdf`` with Chromium. Raises BookError when there is none or it prints nothing."""
    browser = find_chromium()
    if browser is None:
        cure = "install it (Debian: apt-get install chromium) or set CHROMIUM to its path"
        raise BookError(f"no Chromium to print with: {cure}")
    # no sandbox: the page is our own and containers seldom allow one; virtual time: until mathematics is set
    options = "--headless --no-sandbox --disable-gpu --no-pdf-header-footer --generate-pdf-document-outline --virtual-time-budget=60000"

    def write(part: Path) -> None:
        command = [browser, *options.split(), f"--print-to-pdf={part}", page.as_uri()]
        subprocess.run(command, capture_output=True, check=False)
        if not (part.is_file() and part.stat().st_size):
            raise BookError(f"{browser} printed no PDF of {page}")

    write_whole(pdf, write)
