"""Text from data stays text: in reports, charts, tables, Markdown, the book's pages, commands and the terminal."""

from __future__ import annotations

import base64
import contextlib
import csv
import hashlib
import importlib.util
import io
import json
import re
import shlex
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from pandas.api.types import is_numeric_dtype
from typer.main import get_command

from kinetics_lab import cli
from kinetics_lab.book import charts, claims
from kinetics_lab.book.build import build_book, find_chromium, print_pdf
from kinetics_lab.book.charts.html import figure_html, markdown_text, table_html
from kinetics_lab.book.pages import INLINE, pages
from kinetics_lab.book.runs import NotebookError, run_notebook
from kinetics_lab.cli.shared import public
from kinetics_lab.measure.runner import TEXTS as EMPTY
from kinetics_lab.planner.page import page_files
from kinetics_lab.planner.serve import commands

ROOT = Path(__file__).parent.parent


def beside(name: str) -> Any:
    """A helper of the tests, which are no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hostile, chapters = beside("hostile"), beside("chapters")
NAMES, PLAIN = hostile.NAMES, hostile.PLAIN
COLUMNS = ["model", "task", "problem", "trial", "policy", "tokens_in", "tokens_out", "correct", "truncated"]
RUNS = ["model", "effort", "task", "problem", "tokens_in", "n_traces", "n_correct", "mean_tokens", "mean_sq_tokens"]  # fmt: skip
OWN = {"architectures": ["Qwen3ForCausalLM"], "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
       "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}  # fmt: skip
HOST = "amd-epyc-2-threads"
SHOW = """charts.enable()
table = pd.DataFrame({"name": names, "x": range(len(names))})
display(table.style.hide().format({"x": "{:.1f}"}).set_caption(names[0]))
display(table.set_index("name").T.style, table)
display(Markdown("\\n".join(f"- {charts.literal(name)} ends" for name in names)))
display(charts.compare(table.assign(kind="a"), "name", "x", "kind", x_title=names[1], description=names[2], title=names[3]))
print(*names, sep="\\n")"""
IMPORTS = (
    "import pandas as pd\nfrom IPython.display import Markdown, display\nfrom kinetics_lab.book import charts"
)


@pytest.fixture(scope="module")
def notebook(tmp_path_factory, write_notebook):
    """A chapter that shows names in every way that chapters do."""
    cells = [
        ("markdown", "# Names?"),
        ("code", IMPORTS),
        ("code", "names = []", "parameters"),
        ("code", SHOW),
    ]
    return write_notebook(tmp_path_factory.mktemp("hostile") / "10_names.ipynb", *cells)


@pytest.fixture(scope="module")
def reports(notebook, tmp_path_factory):
    """The report to send around, with plain names and with hostile ones."""
    out, made = tmp_path_factory.mktemp("runs"), []
    for kind, names in (("plain", PLAIN), ("hostile", NAMES)):
        run = run_notebook(notebook, {"names": names}, out=out / kind, progress=False)
        made.append(pages(run.executed)[1])
    return made


def test_a_report_has_the_same_elements_whatever_the_names(reports):
    plain, odd = (path.read_text(encoding="utf-8") for path in reports)
    assert hostile.census(odd) == hostile.census(plain)
    assert sum(hostile.census(odd).values()) > 300
    assert "default-src 'none'" in odd[: odd.index("<title")]


@pytest.mark.browser
@pytest.mark.skipif(find_chromium() is None, reason="needs Chromium (Debian: apt-get install chromium)")
def test_a_browser_finds_nothing_of_theirs_in_reports_and_live_charts(reports, tmp_path):
    """Same elements and handlers in the browser's tree; charts come alive under the book's policy and run no name."""
    table = [{"name": name, "x": float(i), "kind": "a"} for i, name in enumerate(NAMES)]
    live = []
    for kind, names in (("plain", PLAIN), ("odd", NAMES)):
        rows = pd.DataFrame(table).assign(name=names)
        chart = charts.compare(
            rows, "name", "x", "kind", x_title=names[1], description=names[2], title=names[0]
        )
        static = ROOT / "book" / "_static" / "kl-charts.js"
        (tmp_path / static.name).write_bytes(static.read_bytes())
        charts.write_bundle(tmp_path)
        policy = "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; img-src data:"
        head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        script = f'<script src="{static.name}"></script>'
        (tmp_path / f"{kind}.html").write_text(
            f"<head>{head}</head><body>{figure_html(chart.to_dict())}{script}"
        )
        live.append(tmp_path / f"{kind}.html")
    started = beside("browser").Browser()
    count = """(() => { const n = {}; document.querySelectorAll('body *').forEach(e => { const k = e.tagName + ' ' +
      [...e.attributes].map(a => a.name).filter(a => a.startsWith('on') || a === 'href' && !e.hash).join(' ');
      n[k] = (n[k] || 0) + 1; }); return n; })()"""
    try:
        seen = []
        for path in [*reports, *live]:
            with started.page() as page:
                page.goto(path)
                if path in live:
                    page.show_all()
                    assert page.js("document.querySelectorAll('.kl-ready .kl-live svg.marks').length") == 1
                assert not page.errors()
                assert not page.events("Page.javascriptDialogOpening")
                assert all(r.startswith(("file:", "data:", "blob:")) for r in page.requests())
                seen.append(page.js(count))
    finally:
        started.close()
    assert seen[0] == seen[1]
    # longer names have more lines of text; no other kind of element
    assert set(seen[2]) == set(seen[3])
    assert "SCRIPT " in seen[3]


ASK = """(async names => {
  const fields = [...document.querySelectorAll('form :is(select, input)[id], .kl-calc :is(select, input)[id]')];
  const count = () => { const n = {}; document.querySelectorAll('body *').forEach(e => { if (e.tagName === 'OPTION') return;
    const k = e.tagName + [...e.attributes].map(a => a.name).filter(a => a.startsWith('on') || a === 'src' || a === 'href'); n[k] = 1; });
    return Object.keys(n).sort().join(); };
  const keys = [...new Set(fields.map(e => e.id.replace('kl-', '')).concat(['models', 'policies']))], found = [], first = count();
  for (const name of names) {
    const there = () => document.body.innerText.includes(name.trim());
    for (let i = 0; i < 100 && !there(); i++) {  // what was typed before may overtake the address
      if (i % 20 === 0) location.hash = keys.map(key => key + '=' + encodeURIComponent(name)).join('&') + '&i=' + i;
      await new Promise(done => setTimeout(done, 20));
    }
    found.push([name, count(), there()]);
    const typed = fields.filter(e => e.tagName === 'INPUT'), before = typed.map(e => e.value);  // few events: of many,
    for (const values of [typed.map(() => name), before]) {  // a browser takes no further address
      typed.forEach((e, i) => { e.value = values[i]; });
      typed[0].dispatchEvent(new Event('input', {bubbles: true}));
    }
    found.push([name, count(), true]);
  }
  return [keys.length, first, found];
})"""


@pytest.mark.browser
@pytest.mark.skipif(find_chromium() is None, reason="needs Chromium (Debian: apt-get install chromium)")
@pytest.mark.parametrize("step", [16, pytest.param(1, marks=pytest.mark.slow)])
def test_what_an_address_asks_of_a_form_and_what_is_typed_there_is_text(step, tmp_path):
    """Every name in every field of planner and calculator, by the address and by hand; refused beside the field, as it is written."""
    browser, started = beside("browser"), None
    files, names = page_files({"otis": public("otis")}), NAMES[::step]
    try:
        started = browser.Browser()
        for form in ("planner", "calculator"):
            (tmp_path / form).mkdir()
            data = f"kl-{form}-data.js"
            (tmp_path / form / data).write_bytes(files[f"book/_static/{data}"])
            with started.page() as page:
                page.goto(browser.lone_page(tmp_path / form, form))
                fields, first, found = page.js(f"{ASK}({json.dumps([*names, *hostile.COMMANDS[:-1:step]])})")
                assert fields > 8
                assert {kind for _, kinds, _ in found for kind in kinds.split(",")} <= {*first.split(",")}
                shown = {name for name, _, there in found[::2] if there}
                assert shown >= {*names}
                assert not page.errors()
                assert not page.events("Page.javascriptDialogOpening")
                assert all(r.startswith(("file:", "data:", "blob:")) for r in page.requests())
    finally:
        if started:
            started.close()


@pytest.mark.browser
@pytest.mark.skipif(find_chromium() is None, reason="needs Chromium (Debian: apt-get install chromium)")
def test_a_table_saved_from_a_figure_holds_no_formula(tmp_path):
    """A spreadsheet takes a cell that begins so for a formula; numbers below zero stay numbers."""
    names = ["=1+1", "+1", "-1+1", "@SUM(1)", 'a"b', "c,d", "plain"]
    rows = pd.DataFrame({"name": names, "x": -1.5, "kind": "a"})
    static = ROOT / "book" / "_static" / "kl-charts.js"
    (tmp_path / static.name).write_bytes(static.read_bytes())
    charts.write_bundle(tmp_path)
    shown = figure_html(charts.compare(rows, "name", "x", "kind", x_title="x", description="d").to_dict())
    page_file = tmp_path / "page.html"
    page_file.write_text(f'<meta charset="utf-8"><body>{shown}<script src="{static.name}"></script>')
    keep = """(() => { window.klFiles = []; URL.createObjectURL = blob => { klFiles.push(blob); return 'data:text/csv,'; };
      HTMLAnchorElement.prototype.click = function () {}; document.querySelector('.kl-data').open = true; })()"""
    started = beside("browser").Browser()
    try:
        with started.page() as page:
            page.goto(page_file)
            page.show_all()
            page.js(keep)
            page.wait("!!document.querySelector('.kl-data button')")
            page.js("document.querySelector('.kl-data button').click()")
            told = list(csv.reader(io.StringIO(page.js("klFiles[0].text()"))))
    finally:
        started.close()
    cells = [cell.strip("\u200b") for row in told[1:] for cell in row]
    assert {"'=1+1", "'+1", "'-1+1", "'@SUM(1)", 'a"b', "c,d", "plain", "-1.5"} <= {*cells}
    assert not [cell for cell in cells if cell[:1] in "=+-@" and cell not in ("", "-1.5")]


@pytest.mark.browser
@pytest.mark.skipif(find_chromium() is None, reason="needs Chromium (Debian: apt-get install chromium)")
def test_a_printed_report_leads_nowhere_of_theirs(reports, tmp_path):
    """A link of a page is an address in its PDF, as one of our own shows; none of theirs is there, nor a script."""
    linked = tmp_path / "linked.html"
    linked.write_text('<a href="https://evil.example/">out</a>', encoding="utf-8")
    for page, leads in ((linked, True), (reports[1], False)):
        print_pdf(page, tmp_path / "page.pdf")
        made = (tmp_path / "page.pdf").read_bytes()
        assert made.startswith(b"%PDF")
        assert (b"evil.example" in made) == leads
        assert not [word for word in (b"/JavaScript", b"/Launch", b"javascript:") if word in made]


def test_a_chart_on_a_page_ends_where_it_ends():
    """Names that end a script or begin a comment stay in the blob, and the picture keeps what they say."""
    rows = pd.DataFrame({"name": NAMES, "x": range(40), "kind": "a"})
    page = figure_html(charts.compare(rows, "name", "x", "kind", x_title="x", description="d").to_dict())
    blob = page[page.index('class="kl-spec">') : page.index("</script></figure>")]
    assert "<" not in blob
    names = {row[0] for row in next(iter(json.loads(blob.partition(">")[2])["datasets"].values()))[1:]}
    assert {name.strip("\u200b") for name in names} >= set(NAMES)
    odd = pd.DataFrame({"name": [' id="x" role="y"', "b"], "x": [1.0, 2.0], "kind": "a"})
    shown = figure_html(charts.compare(odd, "name", "x", "kind", x_title="x", description="d").to_dict())
    assert ">id=&quot;x&quot; role=&quot;y&quot;<" in shown.replace("> ", ">")


@pytest.mark.parametrize("name", NAMES)
def test_markdown_and_tables_hold_no_tag(name):
    from markdown_it import MarkdownIt

    class Shown:
        data = f"a {name} b\n\n{name}"

    assert "html_block" not in [token.type for token in MarkdownIt("commonmark").parse(markdown_text(Shown))]
    plain, odd = (pd.DataFrame({n: [n]}, index=[n]).rename_axis(n).style.format(str) for n in ("a", name))
    assert hostile.census(f"<body>{table_html(odd)}") == hostile.census(f"<body>{table_html(plain)}")
    sentence = MarkdownIt("commonmark").parseInline(f"The model {charts.literal(name)} wins.")[0]
    assert {token.type for token in sentence.children} <= {"text", "text_special"}
    assert "".join(token.content for token in sentence.children) == f"The model {name} wins."


@pytest.mark.parametrize("name", ["constructor", "toString", "__proto__"])
def test_what_every_object_of_javascript_has_is_a_name_like_others(name):
    rows = pd.DataFrame({"name": [name, name, "b", "b"], "x": [1.0, 2, 1, 2], "y": [1.0, 2, 3, 4]})
    about = {"x_title": name, "y_title": name, "description": "d", "title": name}
    for sort in (None, [name, "b"]):
        assert f">{name}" in figure_html(charts.lines(rows, "x", "y", "name", sort=sort, **about).to_dict())


def test_findings_are_text():
    claim = claims.Claim("<b>", "<i>", NAMES[0], 1.0, chapter=NAMES[1], unit=NAMES[2], why=NAMES[10])
    page = claims.to_html({"": [claims.Finding(claim, 2.0)]})
    assert set(hostile.census(f"<body>{page}")) == set(
        hostile.census(
            f"<body>{claims.to_html({'': [claims.Finding(claims.Claim('a', 'b', 'c', 1.0, chapter='d', why='e'), 2.0)]})}"
        )
    )


def traces(names: list[str], task: str) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [
        (name, task, f"p{p}", t, "dense", 100, int(rng.integers(500, 4000)), int(rng.random() < 0.5), 0)
        for name in names for p in range(6) for t in range(4)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def test_a_command_line_can_be_copied():
    """Model names in what is to be started are words of the shell."""
    for name in NAMES:
        row = {"model": name, "policy": "dense", "devices": 1, "batch": 8.0}
        for line in commands(row, "bf16", "bf16").values():
            assert f"PATH/OF/{name}" in shlex.split(line)


@pytest.mark.parametrize("name", hostile.COMMANDS)
def test_names_that_command_a_terminal_are_refused(name, tmp_path, capsys):
    for column in ("model", "task"):
        path = tmp_path / "traces.parquet"
        traces(["m"], "t").assign(**{column: name}).to_parquet(path)
        assert cli.main(["traces", str(path), "-o", str(tmp_path / "out.parquet")]) == 2
        assert cli.main(["plan", "--traces", str(path), "--budget", "1"]) == 2
        told = capsys.readouterr()
        assert f"{column} must be one line of printable text" in told.err
        assert told.err.replace("\n", "").isprintable()
        assert told.out == ""


#: Each command with all that it needs, so cheap that what it is given in an option is all there is to do.
LINES = {
    "cost": "--model qwen3-8b --n-in 1 --n-out 1",
    "plan": "--traces t.parquet --model m=qwen3-8b --budget 5",
    "traces": "t.parquet -o o.parquet",
    "list": "",
    "run": "gone.ipynb -o out",
    "sweep": "gone.yml -o out",
    "book": "",
    "pdf": "",
    "serve": "",
    "claims": "gone.jsonl",
    "measure": "--dry-run --suite gone",
    "ladder": "gone",
    "generate": "--model gone/gone --problems gone.jsonl -o out",
}
COMMAND_LINE = get_command(cli.app).commands
TEXTS = [
    (command, param.name)
    for command, found in COMMAND_LINE.items()
    for param in found.params
    if param.bare_type() in ("str", "Path", "list[str]")
]


def test_every_command_and_every_option_that_takes_a_text_is_tried():
    assert {*LINES} == {*COMMAND_LINE}
    others = {param.bare_type() for found in COMMAND_LINE.values() for param in found.params}
    assert others - {"str", "Path", "list[str]"} == {"bool", "int", "float", "list[int]", "list[float]"}
    assert len(TEXTS) > 60


@pytest.mark.parametrize("step", [16, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("command", "option"), TEXTS)
def test_no_text_of_a_command_line_commands_a_terminal(command, option, step, tmp_path, monkeypatch, capsys):
    """All forty names and those that command a terminal, in each option: an answer or one printable sentence."""
    monkeypatch.chdir(tmp_path)
    for hub in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(hub, "1")
    traces(["m"], "t").to_parquet("t.parquet")
    param = next(one for one in COMMAND_LINE[command].params if one.name == option)
    words = shlex.split(LINES[command])
    flags = [*param.opts] if param.opts[0].startswith("-") else []
    for flag in flags:
        if flag in words:
            del words[words.index(flag) : words.index(flag) + 2]
    if not flags:
        words = words[1:]
    for name in [*NAMES, *hostile.COMMANDS[:-1]][::step]:
        code = cli.main([command, *([f"{max(flags, key=len)}={name}", *words] if flags else [*words, name])])
        told = capsys.readouterr()
        assert code in (0, 2), (name, told)
        assert told.err.replace("\n", "").isprintable(), name
        assert told.out.replace("\n", "").isprintable(), name
        assert code == 0 or "error: " in told.err.splitlines()[-1], name
        assert "Traceback" not in told.err, name


def test_what_is_said_of_files_and_errors_is_printable(tmp_path, capsys):
    for words in (
        ["run", "\x1b[31m.ipynb", "-o", "x"],
        ["cost", "--model", "\x1b[31m", "--n-in", "1", "--n-out", "1"],
        ["\x1b[2J"],
    ):
        assert cli.main(words) == 2
        assert "\\x1b[" in (told := capsys.readouterr().err)
        assert told.replace("\n", "").isprintable()
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()) as told:
        cli._tell("\x1b[2J gone")
    assert told.getvalue() == "kinetics-lab: warning: \\x1b[2J gone\n"


@pytest.mark.slow
@pytest.mark.notebooks
def test_the_report_of_a_plan_has_the_same_elements_whatever_the_names(tmp_path):
    """Chapter 35, the page that people send around, from traces with hostile names of models and of the task."""
    found = []
    for kind, names, task in (
        ("plain", PLAIN, "task"),
        ("odd", NAMES, "<b>task</b> [x](https://evil.example)"),
    ):
        path = tmp_path / f"{kind}.parquet"
        traces(names, task).to_parquet(path)
        chapter = ROOT / "notebooks" / "35_plan_your_own.ipynb"
        given = {
            "traces": [str(path)],
            "models": dict.fromkeys(names, "qwen3-4b"),
            "budgets": [1, 5],
            "n_boot": 20,
        }
        run = chapters.run_here(chapter, given, tmp_path / kind)
        found.append(hostile.census(pages(run.executed)[1].read_text(encoding="utf-8")))
    assert set(found[0]) == set(found[1])


@pytest.mark.slow
@pytest.mark.notebooks
def test_the_report_of_what_to_run_has_the_same_elements_whatever_the_names(tmp_path):
    """Chapter 50 with kinds of task and models of one's own, with files of traces and without."""
    found, chapter = [], ROOT / "notebooks" / "50_what_should_i_run.ipynb"
    shapes = {"gpt-oss-120b": "gpt-oss-120b", "qwen3-235b-a22b-thinking-2507": "qwen3-235b-a22b"}
    for which, names in (
        ("plain", PLAIN[:12]),
        ("odd", [NAMES[i] for i in (0, 1, 3, 5, 7, 8, 10, 19, 24, 26, 30, 33)]),
    ):
        kinds: dict[str, str | None] = dict.fromkeys(names)
        for i in (0, 1, 2, 3, 6, 9):
            path = tmp_path / f"{which}{i}.parquet"
            traces([names[i]], "t").to_parquet(path)
            kinds[names[i]] = str(path)
        given = {"kinds": kinds, "shapes": shapes | dict.fromkeys(names, "qwen3-4b"), "n_boot": 20}
        run = chapters.run_here(chapter, given, tmp_path / which)
        found.append(hostile.census(pages(run.executed)[1].read_text(encoding="utf-8")))
    assert found[0] == found[1]


@pytest.fixture(scope="module")
def rows_of(tmp_path_factory):
    """Folders of measured rows, made up, whose texts are plain names in one and hostile ones in the other."""
    made, out = tmp_path_factory.mktemp("rows"), {}
    beside("synthetic_rows").write(
        made / "gpu", "roofline", "dense", "ragged", "fp8", "validate", "model", "topk", "layer"
    )
    shutil.copytree(ROOT / "data" / "measurements" / HOST, made / "gpu" / HOST)
    ours = {"suite", "device", "kernels_digest", "date", "kind", "model"}
    for which, names in (("plain", PLAIN), ("odd", NAMES)):
        count = iter(names * 10_000)
        for path in sorted((made / "gpu").rglob("*.parquet")):
            table = pd.read_parquet(path)
            texts = [
                name
                for name in table.columns.difference(ours)
                if not is_numeric_dtype(table[name]) and (name in EMPTY or table[name].notna().any())
            ]
            for name in set(texts) - {"error"}:
                table[name] = [next(count) for _ in range(len(table))]
            for name in ("flashinfer_error", "flex_error") if path.stem == "dense" else ():
                table[name] = [next(count) for _ in range(len(table))]
            if HOST not in path.parts:  # of its cases, a chapter needs all
                table["error"] = [None] * (len(table) - 2) + [next(count), next(count)]
            target = made / which / path.relative_to(made / "gpu")
            target.parent.mkdir(parents=True, exist_ok=True)
            table.to_parquet(target)
        out[which] = made / which
    return out


@pytest.mark.slow
@pytest.mark.notebooks
@pytest.mark.parametrize("number", ["20", "21", "22", "23", "24", "25", "26"])
def test_chapters_of_measured_rows_have_the_same_elements_whatever_their_texts(number, rows_of, tmp_path):
    """Rows of another's machine: its name, its drivers and versions, and what failed there."""
    [chapter], found = (ROOT / "notebooks").glob(f"{number}_*.ipynb"), []
    of = {"machine": HOST} if number == "26" else {"gpu": "synthetic-rows-of-a-test-no-h200"}
    for which, folder in rows_of.items():
        run = run_notebook(chapter, of | {"measurements": str(folder)}, out=tmp_path / which, progress=False)
        found.append(hostile.census(pages(run.executed)[1].read_text(encoding="utf-8")))
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.notebooks
def test_runs_of_ones_own_have_the_same_elements_whatever_their_names(tmp_path):
    """Chapter 37 with runs whose models, efforts and tasks have hostile names; a column that is missing is named."""
    [chapter], found = (ROOT / "notebooks").glob("37_*.ipynb"), []
    for which, names in (("plain", PLAIN), ("odd", NAMES)):
        draw, rows = np.random.default_rng(1), []
        for i in range(0, len(names), 2):
            task = names[i + 5] if i < 4 else "otis_mock_aime_2024_2025"
            for level, effort in ((1, names[i + 1]), (2, names[(i + 7) % len(names)])):
                for p in range(8):
                    right, mean = int(draw.integers(0, 4 + 2 * level)), level * int(draw.integers(500, 900))
                    rows.append((names[i], effort, task, f"p{p}", 100, 8, right, mean, 1.3 * mean**2))
        table = pd.DataFrame(rows, columns=RUNS)
        table.to_csv(tmp_path / f"{which}.csv", index=False)
        given = {"more_runs": str(tmp_path / f"{which}.csv"), "n_boot": 20}
        run = run_notebook(chapter, given, out=tmp_path / which, progress=False)
        found.append(hostile.census(pages(run.executed)[1].read_text(encoding="utf-8")))
    assert found[0] == found[1]
    for missing in ("effort", "mean_tokens"):
        table.drop(columns=missing).to_csv(tmp_path / "less.csv", index=False)
        with pytest.raises(NotebookError, match=f"ValueError: .*column '?{missing}"):
            run_notebook(chapter, given | {"more_runs": str(tmp_path / "less.csv")}, out=tmp_path / "less")


@pytest.mark.slow
@pytest.mark.notebooks
def test_traces_that_judge_predictions_have_the_same_elements_whatever_their_names(tmp_path):
    """Chapter 39 with traces of predicted settings whose file, task and problems have hostile names; other names are refused."""
    [chapter], found = (ROOT / "notebooks").glob("39_*.ipynb"), []
    for which, names, task in (("plain", PLAIN, "t"), ("odd", NAMES, "<b>t</b> [x](https://evil.example)")):
        both, one = ("dense", "block_topk:512:32"), traces(["qwen3-1.7b"], task)
        runs = [one.assign(policy=policy, trial=one.trial + more) for policy in both for more in (0, 4)]
        own = pd.concat(runs).assign(problem=lambda t, names=names: [names[int(p[1:])] for p in t.problem])
        path = tmp_path / ("plain.parquet" if which == "plain" else "<b>x*y*`z`$a$.parquet")
        own.to_parquet(path)
        run = run_notebook(
            chapter, {"traces": [str(path)], "n_draws": 2}, out=tmp_path / f"{which}-run", progress=False
        )
        page = pages(run.executed)[1].read_text(encoding="utf-8")
        assert "inside their 95" in page
        found.append(hostile.census(page))
    assert found[0] == found[1]
    for name in ("model", "task"):
        with pytest.raises(NotebookError, match=f"ValueError: {name} .*{re.escape(ascii(NAMES[0])[1:4])}"):
            run_notebook(chapter, {name: NAMES[0]}, out=tmp_path / "refused", progress=False)


@pytest.mark.slow
@pytest.mark.notebooks
@pytest.mark.parametrize("number", ["14", "37", "38", "53"])
def test_a_config_of_ones_own_adds_no_element_whatever_its_path(number, tmp_path):
    [chapter], found = (ROOT / "notebooks").glob(f"{number}_*.ipynb"), []
    for which, name in (("plain", "m00"), ("odd", "<b>x*y*`z`[c](c:d)$a$**s**{ref}`a`")):
        path = tmp_path / name / "config.json"
        path.parent.mkdir()
        path.write_text(json.dumps(OWN | {"_name_or_path": name}))
        public = {"glm-4.7": "glm-4.6", "kimi-k2.6": "kimi-k2.5", "deepseek-reasoner": "deepseek-v3.2"}
        given = {
            "14": {"model": str(path)},
            "37": {"shape": str(path), "n_boot": 20},
            "38": {"shapes": {"gpt-oss-120b": [str(path)], f"{name} gone": ["gone"], **{m: [s] for m, s in public.items()}}, "n_boot": 20},
            "53": {"shapes": {"gemma-4-12b-it": str(path), "gpt-oss-120b": str(path), **public}, "n_boot": 20},
        }[number]  # fmt: skip
        run = run_notebook(chapter, given, out=tmp_path / which, progress=False)
        found.append(hostile.census(pages(run.executed)[1].read_text(encoding="utf-8")))
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.notebooks
def test_a_page_of_the_book_has_the_same_elements_and_a_policy_that_knows_only_the_theme(notebook, tmp_path):
    """The same chapter through the book's own build; a script in a page's text gets no hash."""
    made = []
    for kind, names in (("plain", PLAIN), ("odd", NAMES)):
        root = tmp_path / kind
        (root / "book").mkdir(parents=True)
        (root / "notebooks").mkdir()
        (root / "notebooks" / notebook.name).write_bytes(notebook.read_bytes())
        config = {"title": "Small", "only_build_toc_files": True, "execute": {"execute_notebooks": "off"}}
        (root / "_config.yml").write_text(yaml.safe_dump(config))
        toc = {"format": "jb-book", "root": "book/intro", "chapters": [{"file": "notebooks/10_names"}]}
        (root / "book" / "_toc.yml").write_text(yaml.safe_dump(toc))
        (root / "book" / "intro.md").write_text("# Intro\n\n<script>alert(1)</script>\n")
        (root / "p.yml").write_text(yaml.safe_dump({"10_names": {"names": names}}))
        index = build_book(root, root / "p.yml", tmp_path / f"{kind}-out", repository_url="")
        made.append(index.parent)
    plain, odd = ((out / "notebooks" / "10_names.html").read_text(encoding="utf-8") for out in made)
    odd_body = odd[odd.index("<article") : odd.index("</article>")]
    plain_body = plain[plain.index("<article") : plain.index("</article>")]
    odd_ones, plain_ones = (hostile.census(f"<body>{body}") for body in (odd_body, plain_body))
    for found in (odd_ones, plain_ones):
        assert found.pop(("coloured", "class", "")) > 40  # a quoted name has more tokens
    assert odd_ones == plain_ones
    intro = (made[1] / "book" / "intro.html").read_text(encoding="utf-8")
    policy = intro[intro.index("Content-Security-Policy") : intro.index("<title")]
    assert "alert(1)" in INLINE.findall(intro)
    known = {
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(): script
        for script in (*INLINE.findall(intro), "window.print()")
    }
    allowed = re.findall(r"'sha256-([^']+)'", policy)
    assert len(allowed) > 5
    refused = {*known.values()} - {known[one] for one in allowed}
    assert "alert(1)" in refused
    assert all(
        "ernel" in script for script in refused - {"alert(1)"}
    )  # of live kernels, which no page starts
    assert "'unsafe-eval'" not in policy
