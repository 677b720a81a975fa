"""A chapter in this process: its cells one after the other, with what papermill would put in, and what no reader should see.

A process of its own and a picture of every chart cost a chapter three to ten times what its cells do; every chapter has
them with the book's parameters, some with the second set as well, and the other runs of the tests need neither.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from kinetics_lab.book.parameters import project_root, read_notebook
from kinetics_lab.book.results import declared_result
from kinetics_lab.book.runs import RunResult


@contextlib.contextmanager
def shell() -> Iterator[Any]:
    """A notebook's interpreter; charts as their specifications, without pictures."""
    from IPython.core.interactiveshell import InteractiveShell

    from kinetics_lab.book.charts import html

    real = html.find_spec
    InteractiveShell.clear_instance()
    made = InteractiveShell.instance()
    made.history_manager.enabled = False
    try:
        with mock.patch.object(html, "find_spec", lambda name: None if name == "vl_convert" else real(name)):
            yield made
    finally:
        InteractiveShell.clear_instance()


def last_values(notebook: Any, capture: Any) -> Any:
    """Hands a cell's last value to ``capture``, unless a semicolon keeps it from being shown."""
    return lambda value: None if value is None or notebook.displayhook.quiet() else capture(value)


def run_cell(notebook: Any, source: str) -> list[dict[str, Any]]:
    """What a cell shows, as notebooks keep it, warnings as a kernel prints them; raises what it raises."""
    from IPython.utils.capture import capture_output

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with capture_output() as shown:
            notebook.display_trap.hook = last_values(notebook, sys.displayhook)
            ended = notebook.run_cell(source, store_history=True)
    if (error := ended.error_before_exec or ended.error_in_exec) is not None:
        raise error
    told = [f"warned: {one.message}" for one in warned if one.category is not DeprecationWarning]
    texts = {"stdout": shown.stdout, "stderr": shown.stderr + "\n".join(told)}
    made = [{"output_type": "stream", "name": name, "text": text} for name, text in texts.items() if text]
    return made + [
        {"output_type": "display_data", "data": dict(one.data), "metadata": {}} for one in shown.outputs
    ]


def run_here(chapter: Path, given: Mapping[str, Any], folder: Path) -> RunResult:
    """What ``run_notebook`` makes, without a kernel and pictures; a cell's own exception comes through."""
    import nbformat

    folder.mkdir(parents=True, exist_ok=True)
    book = read_notebook(chapter)
    with (
        mock.patch.dict(os.environ, {"KINETICS_RUN_DIR": str(folder)}),
        contextlib.chdir(project_root(chapter)),
        shell() as notebook,
    ):
        for cell in book.cells:
            if cell.cell_type != "code":
                continue
            sources = [cell.source]
            if "parameters" in cell.metadata.get("tags", []):
                sources.append("# Parameters\n" + "\n".join(f"{k} = {v!r}" for k, v in given.items()))
            shown = [one for source in sources for one in run_cell(notebook, source)]
            cell.outputs = [nbformat.from_dict(one) for one in shown]
    declared = declared_result(chapter)
    assert declared is None or (folder / declared).is_file(), f"{chapter.stem} handed nothing over"
    nbformat.write(book, folder / chapter.name)
    return RunResult(chapter, folder, "", 0.0)


# Scripts, pictures and listings of code, which may say -inf.
NO_TEXT = r'<script.*?</script>|<style.*?</style>|<svg.*?</svg>|<div class="highlight">.*?</div>|```.*?```'


def wrong(run: RunResult) -> list[str]:
    """What no reader should see: numbers that are none, charts and tables without rows, warnings."""
    outputs = [one for cell in read_notebook(run.executed).cells for one in cell.get("outputs", [])]
    told = list[str]()
    for output in outputs:
        data = output.get("data", {})
        texts = [output.get("text", "")]
        if output.get("name") == "stderr":
            told.append(f"stderr: {output.text.strip()[:200]}")
        for kind, content in data.items():
            if "vegalite" in kind:
                told += empty(content)
            elif kind in ("text/markdown", "text/html"):
                texts.append(re.sub(NO_TEXT, "", content, flags=re.DOTALL))
            elif kind == "text/plain" and len(data) == 1:
                texts.append(content)
        for text in texts:
            found = re.search(
                r".{0,60}(?<![\w.])-?(?:nan|inf)\b ?(?:%|x\b)?.{0,40}", re.sub(r"<[^>]+>", " ", text)
            )
            told += [f"shows {' '.join(found[0].split())!r}"] if found else []
            if re.search(r"<tbody>\s*</tbody>|Empty DataFrame", text):
                told.append("shows a table without rows")
    return list(dict.fromkeys(told))


def empty(spec: Mapping[str, Any]) -> list[str]:
    """Charts whose data have no rows at all."""
    sets = spec.get("datasets", {})
    return ["shows a chart of 0 rows"] if sets and not any(sets.values()) else []
