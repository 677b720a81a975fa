"""The built book as a reader sees it: pages in headless Chromium, with no way to the network.

One load a page (pictures on a phone, live figures there, a wide screen, dark); the tests look at what the visits
saw: of one page of each kind, and of all others in the slow set. Without Chromium the tests are skipped.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import http.server
import importlib.util
import io
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kinetics_lab import HARDWARE

HERE = Path(__file__).parent


def script(path: Path) -> Any:
    """A module that lies outside the package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


browser, weights = script(HERE / "browser.py"), script(HERE.parent / "benchmarks" / "weight.py")

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("book")]
if browser.find_chromium() is None:
    pytest.skip(
        "no Chromium: install it (Debian: apt-get install chromium) to run the browser tests",
        allow_module_level=True,
    )

# The first page, a chapter with sliders, one of measurements, one with tables, the scorecard.
KINDS = [
    "book/intro.html",
    "notebooks/11_when_does_attention_dominate.html",
    "notebooks/24_does_the_cost_law_predict_milliseconds.html",
    "notebooks/31_which_model_should_answer.html",
    "notebooks/90_scorecard.html",
]
PHONE = 390
MATH = "[...document.querySelectorAll('.math')]"
SET = f"{MATH}.length === {MATH}.filter(m => m.querySelector('mjx-container')).length"
# Contrast of every letter drawn in the page's own colour with the page behind it, the weakest first.
CONTRAST = """(() => {
  const parse = c => { const m = c.match(/[\\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m; };
  const light = rgb => { const [r, g, b] = rgb.slice(0, 3).map(v => { v /= 255;
    return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor); if (c[3] === 1) return c; } return [255, 255, 255, 1]; };
  const shown = t => !t.ownerSVGElement || +getComputedStyle(t).opacity;  // an axis hides labels that would overlap
  return [...document.querySelectorAll('SELECTOR')].filter(t => t.textContent.trim() && shown(t)).map(t => {
    const style = getComputedStyle(t), back = behind(t);
    const ink = parse(t.ownerSVGElement ? style.fill : style.color);
    const alpha = ink[3] * +style.opacity * (t.ownerSVGElement ? +style.fillOpacity : 1);
    const mixed = ink.slice(0, 3).map((v, i) => alpha * v + (1 - alpha) * back[i]);
    const [a, b] = [light(mixed), light(back)].sort((p, q) => q - p);
    return [+((a + 0.05) / (b + 0.05)).toFixed(2), t.textContent.slice(0, 40)];
  }).sort((p, q) => p[0] - q[0]).slice(0, 3);
})()"""
CHART_TEXT = CONTRAST.replace("SELECTOR", 'figure.kl-chart svg text:not([fill^="#"])')
PAGE_TEXT = CONTRAST.replace("SELECTOR", "article p, article li, article td, article th")
# What axe-core (vendored for these tests alone) finds serious or critical: rule, number of places, and the first of them.
AXE = (HERE / "vendor" / "axe" / "axe.min.js").read_text(encoding="utf-8")
FINDINGS = """axe.run(document, {resultTypes: ['violations'], preload: false}).then(found => found.violations
  .filter(one => ['serious', 'critical'].includes(one.impact))
  .map(one => [one.id, one.nodes.length, one.nodes[0].html.slice(0, 150), one.nodes[0].failureSummary.slice(0, 200)]))"""
COLOURS = FINDINGS.replace(
    "preload: false", "preload: false, runOnly: ['color-contrast', 'link-in-text-block']"
)
# Letters of formulas for which there is no glyph, and stops of the Tab key in formulas and pictures.
UNDRAWN = "[...document.querySelectorAll('mjx-container svg text')].map(t => t.textContent)"
STOPS = "document.querySelectorAll('mjx-container[tabindex], mjx-container [tabindex], figure svg [tabindex]').length"
# Live charts that are no stop of the Tab key, or whose marks are read out one by one beside the walk by arrow keys.
READ = """[...document.querySelectorAll('.kl-live svg.marks')].filter(s => s.tabIndex !== 0 ||
  s.getAttribute('role') !== 'application' || [...s.children].some(c => c.ariaHidden !== 'true')).length"""
# Letters of live charts that stick out of their picture.
CUT_OFF = """[...document.querySelectorAll('.kl-live svg.marks')].flatMap(svg => {
  const box = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter(t => t.textContent.trim() && +getComputedStyle(t).opacity).filter(t => {
    const r = t.getBoundingClientRect();
    return r.left < box.left - 2 || r.right > box.right + 2 || r.top < box.top - 2 || r.bottom > box.bottom + 2;
  }).map(t => t.textContent);
})"""
# Names of rules that lie on a curve, a mark or another rule of a live chart.
CROSSED = """[...document.querySelectorAll('.kl-live svg.marks')].flatMap(svg => {
  const seen = what => [...svg.querySelectorAll(what)].filter(e => +getComputedStyle(e).opacity > 0);
  const inside = (r, x, y) => x > r.left && x < r.right && y > r.top + 2 && y < r.bottom - 3;
  const lines = seen('.mark-line.role-mark path').map(path => {
    const at = path.getScreenCTM(), points = [];
    for (let d = 0; d <= path.getTotalLength(); d += 2) points.push(path.getPointAtLength(d).matrixTransform(at));
    return points;
  });
  const marks = seen('.mark-symbol.role-mark path, .mark-rule.role-mark line').map(e => e.getBoundingClientRect());
  const names = seen('.mark-text.role-mark text').filter(t => ([].concat(t.__data__)[0].datum || {}).label === t.textContent);
  return names.filter(t => t.textContent).filter(t => {
    const r = t.getBoundingClientRect();
    return lines.some(points => points.some(p => inside(r, p.x, p.y))) ||
      marks.some(m => m.right > r.left && m.left < r.right && m.bottom > r.top + 2 && m.top < r.bottom - 3);
  }).map(t => t.textContent);
})"""
# What figures say in their captions, axes, legends and marks.
SAID = "[...document.querySelectorAll('figure.kl-chart :is(figcaption, svg text)')].map(e => e.textContent)"
# Equations whose beginning is out of sight, and cannot be scrolled to.
BEGINNINGS = """[...document.querySelectorAll('article div.math')].filter(box => {
  const drawn = box.querySelector('mjx-container svg');
  return drawn && drawn.getBoundingClientRect().left < box.getBoundingClientRect().left - 1;
}).map(box => box.id || box.innerText.slice(0, 20))"""
# Opens the box below each figure: its number as the caption has it, and how many rows of its tables have a number.
DATA = """(async () => {
  const boxes = [...document.querySelectorAll('figure.kl-chart > details.kl-data')];
  boxes.forEach(one => { one.open = true; });
  await new Promise(done => setTimeout(done, 400));
  const told = boxes.map(one => {
    const number = one.parentElement.querySelector('.kl-number').textContent.replace(': ', '');
    const rows = [...one.querySelectorAll('tbody tr')].filter(row => /\\d/.test(row.textContent)).length;
    return [one.innerText.includes('data of ' + number) ? number : '', rows, one.querySelectorAll('button').length];
  });
  boxes.forEach(one => { one.open = false; });
  return told;
})()"""
# Tables of which a part is out of sight: their widths, and the names of their columns.
HIDDEN = """[...document.querySelectorAll('article table')].filter(t => t.offsetParent && !t.closest('.kl-data')).map(t => {
  let box = t;
  const whole = b => getComputedStyle(b).overflowX === 'visible' || b.scrollWidth <= b.clientWidth + 1;
  while (box.tagName !== 'ARTICLE' && whole(box)) box = box.parentElement;
  return [box.tagName === 'ARTICLE' ? 0 : box.scrollWidth, t.rows[0].innerText.slice(0, 80)];
}).filter(one => one[0])"""
REPEATED_IDS = """(() => { const seen = {}; document.querySelectorAll('[id]').forEach(e => {
  seen[e.id] = (seen[e.id] || 0) + 1; }); return Object.keys(seen).filter(id => seen[id] > 1); })()"""
# Moves the n-th control of the page: whether the figure's marks and its description change, and the value beside it is the chosen one.
MOVE = """(async () => {
  const input = document.querySelectorAll('.vega-bind input, .vega-bind select')[NUMBER];
  const figure = input.closest('figure');
  const marks = () => [...figure.querySelectorAll('.role-mark path, .role-mark line, .role-mark text')]
    .map(m => m.getAttribute('d') + m.getAttribute('transform') + m.textContent).join();
  const before = marks(), described = figure.querySelector('svg.marks').ariaLabel;
  if (input.type === 'range') input.value = +input.value === +input.max ? input.min : input.max;
  else input.selectedIndex = (input.selectedIndex + 1) % input.options.length;
  input.dispatchEvent(new Event('input', {bubbles: true}));
  input.dispatchEvent(new Event('change', {bubbles: true}));
  await new Promise(done => setTimeout(done, 250));
  const meta = JSON.parse(figure.querySelector('script.kl-spec').textContent).usermeta || {values: {}};
  const steps = meta.values[input.name] || [], chosen = steps.length ? steps[+input.value] : +input.value;
  const told = input.parentNode.textContent.replaceAll(',', '').endsWith(String(chosen));
  const now = figure.querySelector('svg.marks').ariaLabel;
  return {changed: before !== marks(), told: input.type !== 'range' || told, described: now !== described};
})()"""
# The middle of a mark that a pointer can meet, scrolled into sight; of the n-th figure.
TARGET = """(() => {
  const figure = document.querySelectorAll('figure.kl-chart')[NUMBER];
  figure.scrollIntoView({block: 'center', behavior: 'instant'});
  const marks = [...figure.querySelectorAll('.mark-symbol.role-mark path, .mark-rect.role-mark path')]
    .map(m => m.getBoundingClientRect()).filter(r => r.width > 3 && r.height > 3);
  const r = marks[Math.floor(marks.length / 2)];
  return r ? [r.x + r.width / 2, r.y + r.height / 2] : null;
})()"""
TOOLTIP = "(document.querySelector('#vg-tooltip-element.visible') || {}).innerText || ''"


PICTURES = "[...document.querySelectorAll('figure.kl-chart .kl-static > svg[role=img]')]"
LABELLED = f"{PICTURES}.filter(s => s.getBoundingClientRect().height > 100 && s.ariaLabel.length > 20).length"
WIDTH_OF_PAGE = "document.documentElement.scrollWidth"
# Colour theme of the page and ink of its first chart, after another click on the reader's switch.
SWITCH = """(async () => {
  document.querySelector('.theme-switch-button').click();
  await new Promise(done => setTimeout(done, 100));
  const titles = '.kl-live svg .role-axis-title text, .kl-live svg .role-title text';  // a cell's label keeps its ink
  return [document.documentElement.dataset.theme, getComputedStyle(document.querySelector(titles)).fill];
})()"""


@dataclass
class Visit:
    """What one page showed."""

    figures: int
    ready: int = 0
    static: int = 0
    math: int = 0
    rendered_math: int = 0
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    repeated_ids: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    moved: list[dict[str, bool]] = field(default_factory=list)
    sliders: int = 0
    tooltips: list[str] = field(default_factory=list)
    contrast: dict[str, list[Any]] = field(default_factory=dict)
    page_contrast: list[Any] = field(default_factory=list)
    phone_width: int = 0
    cut_off: dict[int, list[str]] = field(default_factory=dict)
    crossed: dict[int, list[str]] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    hidden: list[Any] = field(default_factory=list)
    beheaded: list[str] = field(default_factory=list)
    data: list[tuple[str, int, int]] = field(default_factory=list)
    inks: dict[str, str] = field(default_factory=dict)
    axe: dict[str, list[Any]] = field(default_factory=dict)
    undrawn: list[str] = field(default_factory=list)
    stops: int = 0
    read: int = 0


def read_by_pointer(page: Any, number: int) -> str:
    """What a figure says under the pointer; a busy machine may take it for moved before the figure stands still."""
    for _ in range(8):
        page.mouse(1, 1)
        page.mouse(*page.js(TARGET.replace("NUMBER", str(number))))
        try:
            return str(page.wait(TOOLTIP, 3))
        except TimeoutError:
            continue
    return ""


def visit(chromium: Any, path: Path) -> Visit:
    """Look at a page as readers do, in one load: pictures on a phone, live figures there, then a wide screen."""
    with chromium.page(PHONE, 844, hold=True) as page:
        page.goto(path)
        seen = Visit(page.js("document.querySelectorAll('figure.kl-chart').length"))
        seen.static = page.js(LABELLED)
        seen.phone_width = page.js(WIDTH_OF_PAGE)
        page.start()
        with contextlib.suppress(TimeoutError):  # the counts below tell what did not come
            page.show_all()
            page.wait(SET, 20)
        seen.phone_width = max(seen.phone_width, page.js(WIDTH_OF_PAGE))
        seen.cut_off[PHONE], seen.crossed[PHONE] = page.js(CUT_OFF), page.js(CROSSED)
        seen.hidden = page.js(HIDDEN)
        seen.beheaded = page.js(BEGINNINGS)
        page.resize(1280, 900)
        with contextlib.suppress(TimeoutError):
            page.show_all()
            page.wait(SET, 20)
        page.js("new Promise(done => setTimeout(done, 300))")  # tables are fitted to the new width
        seen.hidden += page.js(HIDDEN)
        look(page, seen)
    return seen


def look(page: Any, seen: Visit) -> None:
    """What a wide page shows once its figures are alive: read, point, move, go dark."""
    seen.ready = page.js("document.querySelectorAll('figure.kl-ready .kl-live svg.marks').length")
    seen.math = page.js(f"{MATH}.length")
    seen.rendered_math = page.js(f"{MATH}.filter(m => m.querySelector('mjx-container')).length")
    seen.repeated_ids = page.js(REPEATED_IDS)
    seen.labels = page.js(
        "[...document.querySelectorAll('.kl-live svg.marks[role=application]')].map(e => e.ariaLabel)"
    )
    seen.contrast["light"] = page.js(CHART_TEXT)
    seen.undrawn, seen.stops, seen.read = page.js(UNDRAWN), page.js(STOPS), page.js(READ)
    page.js(
        "new Promise(done => setTimeout(done, 400))"
    )  # boxes that scroll are found anew after a change of width
    page.js(f"{AXE}; 0")
    seen.axe["light"] = page.js(FINDINGS)
    seen.cut_off[1280], seen.crossed[1280], seen.said = page.js(CUT_OFF), page.js(CROSSED), page.js(SAID)
    page.resize(1280, 900)
    for number in range(seen.figures):
        if page.js(TARGET.replace("NUMBER", str(number))):
            seen.tooltips.append(read_by_pointer(page, number))
    seen.data = page.js(DATA)
    seen.sliders = page.js("document.querySelectorAll('.vega-bind input[type=range]').length")
    for number in range(page.js("document.querySelectorAll('.vega-bind input, .vega-bind select').length")):
        seen.moved.append(page.js(MOVE.replace("NUMBER", str(number))))
    dark = {"name": "prefers-color-scheme", "value": "dark"}
    page.command("Emulation.setEmulatedMedia", features=[dark])
    page.wait("document.documentElement.dataset.theme === 'dark'")
    seen.contrast["dark"], seen.page_contrast = page.js(CHART_TEXT), page.js(PAGE_TEXT)
    page.js("new Promise(done => setTimeout(done, 400))")  # colours fade
    seen.axe["dark"] = page.js(COLOURS)  # all else is as it was in the light
    if seen.ready:
        seen.inks = dict(page.js(SWITCH) for _ in range(3))
    seen.requests, seen.errors = page.requests(), page.errors()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    started = browser.Browser()
    yield started
    started.close()


@pytest.fixture(scope="session")
def book_pages(built_book: Path) -> list[Path]:
    """Every page of the book; redirects and Sphinx's own pages are left out."""
    own = {"genindex.html", "search.html"}
    pages = [p for p in sorted(built_book.rglob("*.html")) if "_static" not in p.parts and p.name not in own]
    # The page for what is not there is no page of the theme.
    pages = [p for p in pages if p.name != "404.html"]
    return [p for p in pages if 'http-equiv="Refresh"' not in p.read_text(encoding="utf-8")[:500]]


@pytest.fixture(scope="session", params=["one of each kind", pytest.param("others", marks=pytest.mark.slow)])
def visits(
    request: pytest.FixtureRequest, chromium: Any, book_pages: list[Path], built_book: Path
) -> dict[str, Visit]:
    """Pages of the book with what they showed."""
    names = {p.relative_to(built_book).as_posix(): p for p in book_pages}
    assert set(KINDS) < set(names)
    wanted = KINDS if request.param != "others" else [name for name in names if name not in KINDS]
    return {name: visit(chromium, names[name]) for name in wanted}


def test_there_are_pages_with_charts_equations_and_sliders(visits: dict[str, Visit]) -> None:
    assert sum(v.figures for v in visits.values()) >= 5
    assert sum(v.math for v in visits.values()) >= 5
    assert sum(v.sliders for v in visits.values()) >= 1


def test_no_request_leaves_the_machine(visits: dict[str, Visit]) -> None:
    local = ("file:", "data:", "blob:", "about:", "http://127.0.0.1")
    assert {k: [r for r in v.requests if not r.startswith(local)] for k, v in visits.items()} == {
        name: [] for name in visits
    }


POLICY = """(() => { const told = []; document.addEventListener('securitypolicyviolation', e => told.push(e.violatedDirective));
  window.klRan = []; const made = document.createElement('script'); made.textContent = 'klRan.push("inline")'; document.body.append(made);
  const box = document.createElement('div'); box.innerHTML = '<img src="data:," onerror="klRan.push(1)">'; document.body.append(box);
  setTimeout(() => { try { new Function('klRan.push("eval")')(); } catch (error) { told.push('eval'); } });  // as a page would
  return new Promise(done => setTimeout(() => done([told, window.klRan]), 500)); })()"""


@pytest.mark.parametrize("name", [*KINDS, "book/calculator.html", "search.html"])
def test_every_page_has_a_policy_that_it_satisfies(name: str, chromium: Any, built_book: Path) -> None:
    """Nothing of its own is refused (figures come alive), and a script, a handler and code of text that came with data are."""
    early = "window.klOwn = []; document.addEventListener('securitypolicyviolation', e => klOwn.push(e.violatedDirective))"
    with chromium.page() as page:
        page.command("Page.addScriptToEvaluateOnNewDocument", source=early)
        page.goto(built_book / name)
        page.show_all()
        assert page.js("window.klOwn") == []
        told, ran = page.js(POLICY)
        assert ran == []
        assert {"script-src-elem", "script-src-attr", "eval"} <= set(told)


def test_no_script_error(visits: dict[str, Visit]) -> None:
    # Chromium keeps the theme's icon fonts from pages opened as files; the theme draws its icons as SVG besides.
    errors = {k: [e for e in v.errors if "/webfonts/" not in e] for k, v in visits.items()}
    assert errors == {name: [] for name in visits}


def test_charts_come_alive_and_are_described(visits: dict[str, Visit]) -> None:
    for name, v in visits.items():
        assert (name, v.ready) == (name, v.figures)
        assert (name, len([text for text in v.labels if text and len(text) > 20])) == (name, v.figures)


def test_ids_are_unique(visits: dict[str, Visit]) -> None:
    assert {k: v.repeated_ids for k, v in visits.items()} == {name: [] for name in visits}


def test_equations_are_set(visits: dict[str, Visit]) -> None:
    assert {k for k, v in visits.items() if v.rendered_math < v.math} == set()


def test_controls_move_the_marks(visits: dict[str, Visit]) -> None:
    for name, v in visits.items():
        assert (name, v.moved) == (name, [{"changed": True, "told": True, "described": True}] * len(v.moved))


def test_the_pointer_reads_values(visits: dict[str, Visit]) -> None:
    for name, v in visits.items():
        assert (name, [t for t in v.tooltips if not any(c.isdigit() for c in t)]) == (name, [])
        assert (name, len(v.tooltips)) == (name, v.figures)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_letters_of_charts_are_legible(visits: dict[str, Visit], scheme: str) -> None:
    assert {k: t for k, v in visits.items() for t in v.contrast[scheme] if t[0] < 4.5} == {}


def test_text_of_pages_is_legible_in_the_dark(visits: dict[str, Visit]) -> None:
    assert {k: t for k, v in visits.items() for t in v.page_contrast if t[0] < 4.5} == {}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(visits: dict[str, Visit], scheme: str) -> None:
    assert {k: v.axe[scheme] for k, v in visits.items() if v.axe[scheme]} == {}


def test_formulas_and_marks_are_no_stops_and_are_not_read_one_by_one(visits: dict[str, Visit]) -> None:
    assert {k: (v.stops, v.read) for k, v in visits.items() if v.stops or v.read} == {}


def test_every_letter_of_a_formula_has_a_glyph(visits: dict[str, Visit]) -> None:
    assert {k: v.undrawn for k, v in visits.items() if v.undrawn} == {}  # else: benchmarks/mathjax


def test_a_first_visit_stays_light(visits: dict[str, Visit]) -> None:
    """The whole page, read to its end with an empty cache, below a megabyte as a server sends it."""
    sizes = {k: sum(weights.weight(v.requests).values()) for k, v in visits.items()}
    assert {k: size for k, size in sizes.items() if not 50_000 < size < 1_000_000} == {}


@pytest.mark.parametrize("width", [1280, PHONE])
def test_no_letter_of_a_chart_is_cut_off(visits: dict[str, Visit], width: int) -> None:
    assert {k: v.cut_off[width] for k, v in visits.items()} == {name: [] for name in visits}


@pytest.mark.parametrize("width", [1280, PHONE])
def test_names_of_rules_lie_on_no_curve(visits: dict[str, Visit], width: int) -> None:
    assert {k: v.crossed[width] for k, v in visits.items() if v.crossed[width]} == {}


def test_figures_call_devices_by_their_names(visits: dict[str, Visit]) -> None:
    """No key of the data ("h200", "nvidia-h200", "rtx-pro-6000") stands in a figure."""
    key = re.compile(rf"\b(nvidia-\w+|{'|'.join(HARDWARE)})\b")
    assert {k: keys for k, v in visits.items() if (keys := [one for one in v.said if key.search(one)])} == {}


def test_no_page_is_wider_than_a_phone(visits: dict[str, Visit]) -> None:
    assert {k: v.phone_width for k, v in visits.items() if v.phone_width > PHONE} == {}


def test_no_column_of_a_table_is_out_of_sight(visits: dict[str, Visit]) -> None:
    assert {k: v.hidden for k, v in visits.items() if v.hidden} == {}


def test_a_phone_shows_the_beginning_of_every_equation(visits: dict[str, Visit]) -> None:
    assert {k: v.beheaded for k, v in visits.items() if v.beheaded} == {}


def test_the_data_of_every_figure_are_a_click_away(visits: dict[str, Visit]) -> None:
    for name, v in visits.items():
        assert (name, len(v.data)) == (name, v.figures)
        assert (name, [one for one in v.data if not (one[0] and one[1] and one[2])]) == (name, [])


def test_pictures_stand_before_the_scripts_run(visits: dict[str, Visit]) -> None:
    assert {k: (v.static, v.figures) for k, v in visits.items() if v.static != v.figures} == {}


def test_the_readers_switch_changes_the_colour_of_charts(visits: dict[str, Visit]) -> None:
    for name, v in visits.items():
        assert (name, set(v.inks)) == (name, {"light", "dark"} if v.figures else set())
        assert (name, len(set(v.inks.values()))) == (name, len(v.inks))


@pytest.mark.slow
def test_without_javascript(chromium: Any, book_pages: list[Path]) -> None:
    for path in book_pages:
        with chromium.page(PHONE, 844, scripts=False) as page:
            page.goto(path)
            figures = page.js("document.querySelectorAll('figure.kl-chart').length")
            assert (path.name, page.js(LABELLED)) == (path.name, figures)
            assert page.js(WIDTH_OF_PAGE) <= PHONE, path.name


def test_the_scorecards_menus_choose_rows(built_book, chromium):
    """By style alone, so that they work from a file and under any policy on scripts."""
    card = "document.querySelectorAll('.kl-scorecard')[{}]"
    rows = f"[...{card}.querySelectorAll('tr[class*=kl-is-]')].filter(r => r.offsetParent)"
    choose = f"{card}.querySelector('select').value = {{!r}}"
    with chromium.page(PHONE, 844) as page:
        page.goto(built_book / "notebooks" / "90_scorecard.html")
        assert page.js("!!document.querySelector('.kl-menus select').offsetParent")
        headline, others, waiting = (page.js(f"{rows.format(i)}.length") for i in range(3))
        assert min(headline, others, waiting) > 20
        page.js(choose.format(0, "is-differs"))
        said = f"{rows.format(0)}.map(r => r.querySelector('strong').textContent)"
        assert set(page.js(said)) == {"differs"}
        assert 0 < page.js(f"{rows.format(0)}.length") < headline
        assert page.js(f"{rows.format(1)}.length") == others  # each table has its own menu
        page.js(choose.format(0, "all"))
        assert page.js(f"{rows.format(0)}.length") == headline


def press(page: Any, key: str, code: int) -> str:
    """Press a key; what has the focus then: element, type and text."""
    for kind in ("keyDown", "keyUp"):
        typed = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
        page.command(
            "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **typed
        )
    return str(
        page.js("(e => `${e.tagName} ${e.type || ''} ${e.textContent.slice(0, 60)}`)(document.activeElement)")
    )


def test_the_keyboard_reaches_a_slider_in_fifteen_steps(chromium: Any, built_book: Path) -> None:
    with chromium.page() as page:
        page.goto(built_book / "notebooks" / "10_what_does_a_token_cost.html")
        page.show_all()
        steps = [press(page, "Tab", 9)]
        while "figure with a control" not in steps[-1] and len(steps) < 15:
            steps.append(press(page, "Tab", 9))
        press(page, "Enter", 13)
        while not steps[-1].startswith("INPUT range") and len(steps) < 15:
            steps.append(press(page, "Tab", 9))
        assert steps[-1].startswith("INPUT range"), steps


def test_answers_unfold_by_key_and_references_lead_to_equations(chromium: Any, built_book: Path) -> None:
    """On a phone a wide equation begins at the left edge, and its number is reached by scrolling."""
    answers = "[...document.querySelectorAll('.bd-article details:not([class])')]"
    with chromium.page(width=390) as page:
        page.goto(built_book / "notebooks" / "10_what_does_a_token_cost.html")
        assert page.js(f"{answers}.length") > 3
        assert page.js(f"{answers}.filter(one => one.open).length") == 0
        page.js(f"{answers}[0].querySelector('summary').focus()")
        press(page, "Enter", 13)
        assert page.js(f"{answers}[0].open && {answers}[0].querySelector('p').offsetHeight > 0")
        link = "document.querySelector('.bd-article p a[href=\"#eq-sum\"]')"
        page.js(f"{link}.click()")
        at = "document.getElementById(location.hash.slice(1))"
        page.wait(
            f"{at}.querySelector('mjx-container') && Math.abs({at}.getBoundingClientRect().top) < innerHeight"
        )
        box = page.js("""(e => [e.scrollWidth > e.clientWidth, e.querySelector('svg').getBoundingClientRect().left >= 0, e.scrollLeft,
          e.querySelector('.eqno').textContent])(document.getElementById('eq-sum'))""")
        assert box[:3] == [True, True, 0]
        assert box[3].startswith("(4)")


def test_arrow_keys_walk_through_a_figure_and_its_legend(chromium: Any, built_book: Path) -> None:
    """Along x, then y, each mark ringed, shown as under the pointer and read out; Enter on a legend's name, Escape ends."""
    codes = {"ArrowRight": 39, "ArrowLeft": 37, "Home": 36, "End": 35, "Escape": 27, "Enter": 13, "Tab": 9}
    said = "document.querySelector('.kl-said').textContent"
    faded = "[...document.querySelectorAll('figure.kl-chart')[0].querySelectorAll('.mark-line path')].filter(p => +(p.getAttribute('opacity') ?? 1) < 0.5).length"
    names = "[...document.querySelector('svg.marks').querySelectorAll('.role-legend-label text, .ends_marks text')].map(t => t.textContent)"
    rings = "document.querySelectorAll('.kl-ring').length"
    at = """(() => { const r = document.querySelector('.kl-ring').getBoundingClientRect();
      const f = document.querySelector('svg.marks').getBoundingClientRect();
      return [r.x + r.width / 2, r.y + r.height / 2, r.left > f.left && r.right < f.right && r.top > f.top && r.bottom < f.bottom]; })()"""
    with chromium.page() as page:
        page.goto(built_book / "notebooks" / "11_when_does_attention_dominate.html")
        page.show_all()
        page.js("document.querySelector('.kl-live svg.marks').focus()")
        walk = []
        for key in ("ArrowRight", "ArrowRight", "ArrowRight"):
            press(page, key, codes[key])
            shown = page.wait(TOOLTIP).replace("\t", "").split("\n")
            walk.append(page.js(at))
            told = page.js(said)
            assert [word for word in shown if word.strip() and word.strip() not in told] == []
        assert all(inside for *_, inside in walk)
        places = [(round(x), round(y)) for x, y, _ in walk]
        assert places == sorted(places)
        assert len(set(places)) == 3
        press(page, "Home", codes["Home"])
        first = page.js(said)
        assert first.endswith(")")
        assert "(1 of " in first
        press(page, "ArrowLeft", codes["ArrowLeft"])
        assert "brings it out" in page.js(said)
        assert page.js(faded) == 0
        press(page, "Enter", codes["Enter"])
        page.wait(f"{faded} > 0")
        assert page.wait(f"{said}.startsWith('brought out: ') && {said}.slice(13)") == page.js(names)[-1]
        press(page, "Enter", codes["Enter"])
        page.wait(f"{faded} === 0")
        page.wait(f"{said} === 'all brought back'")
        page.js(f"{AXE}; 0")
        assert page.js(FINDINGS) == []
        press(page, "Escape", codes["Escape"])
        assert (page.js(rings), page.js(said), page.js(TOOLTIP)) == (0, "", "")
        press(page, "ArrowRight", codes["ArrowRight"])
        assert page.js(said) == first
        press(page, "Tab", codes["Tab"])  # the way on is no trap
        assert (page.js(rings), page.js("document.activeElement.matches('svg.marks')")) == (0, False)
        assert page.errors() == []


def test_a_figures_data_open_by_the_keyboard_follow_its_slider_and_make_a_file(
    chromium: Any, built_book: Path
) -> None:
    """Under the page's policy, and with nothing for axe to find in the open tables."""
    table = """(() => { const box = document.querySelector('.kl-data');
      return [...box.querySelectorAll('tr')].map(row => [...row.cells].map(cell => cell.textContent)); })()"""
    slide = """(() => { const input = document.querySelector('.vega-bind input'); input.value = 4096;
      input.dispatchEvent(new Event('input', {bubbles: true})); })()"""
    keep = """(() => { window.klFiles = []; URL.createObjectURL = blob => { klFiles.push(blob); return 'data:text/csv,'; };
      HTMLAnchorElement.prototype.click = function () { klFiles.push(this.download); }; })()"""
    with chromium.page() as page:
        page.goto(built_book / "notebooks" / "11_when_does_attention_dominate.html")
        page.show_all()
        page.js("document.querySelector('.kl-data summary').focus()")
        press(page, "Enter", 13)
        page.wait(f"{table}.length > 2")
        seen = []
        for prompt in (512, 4096):
            names, *rows = page.js(table)
            at = {name: place for place, name in enumerate(names)}
            for row in rows:  # what the chapter's expression says: the ratio of a request with this prompt
                if row[at["per token"]]:
                    own = [
                        float(row[at[name]].replace(",", ""))
                        for name in ("base", "per token", "Φ: attention / matrices")
                    ]
                    assert own[0] + prompt * own[1] == pytest.approx(own[2], rel=1e-4)
            assert f"prompt (tokens): {prompt}." in page.js(
                "document.querySelector('.kl-data p').textContent"
            )
            seen.append(rows)
            page.js(slide)
            page.js("new Promise(done => setTimeout(done, 300))")
        assert seen[0] != seen[1]
        page.js(keep)
        page.js("document.querySelector('.kl-data button').click()")
        assert page.js("klFiles[1]") == "figure-11.1.csv"
        file = list(csv.reader(io.StringIO(page.js("klFiles[0].text()"))))
        assert file[0] == names
        assert [float(row[at["per token"]]) for row in file[1:]] == pytest.approx(
            [float(row[at["per token"]].replace(",", "")) for row in rows], rel=1e-5
        )
        page.js(f"{AXE}; 0")
        assert page.js(FINDINGS) == []
        assert page.errors() == []


def write_article(folder: Path, tables: str) -> None:
    """A page with these tables and what the book's pages do with them."""
    for name in ("kinetics.css", "kl-page.js"):
        (folder / name).write_bytes((HERE.parent / "book" / "_static" / name).read_bytes())
    text = f'<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="kinetics.css"><article class="bd-article">{tables}</article><script src="kl-page.js"></script>'
    (folder / "index.html").write_text(text, encoding="utf-8")


def test_a_wide_table_is_a_list_of_cards_on_a_phone_and_a_table_elsewhere(
    chromium: Any, tmp_path: Path
) -> None:
    """Each cell with the name of its column; names of several rows or columns are said in each card."""
    wide = "w" * 40
    head = f"<tr><th></th><th></th><th colspan=2>top</th></tr><tr><th>model</th><th>n</th><th>{wide}a</th><th>{wide}b</th></tr>"
    rows = "<tr><th rowspan=2>one</th><th>1</th><td>2</td><td>3</td></tr><tr><th>4</th><td>5</td><td></td></tr><tr><th>two</th><th>6</th><td>7</td><td>8</td></tr>"
    table = f'<div><table class="dataframe"><thead>{head}</thead><tbody>{rows}</tbody></table></div>'
    narrow = '<div><table class="dataframe"><thead><tr><th>x</th></tr></thead><tbody><tr><td>1</td></tr></tbody></table></div>'
    write_article(tmp_path, table + narrow)
    cards = "[...document.querySelectorAll('.kl-stack tbody tr')].map(r => [r.dataset.group || '', ...[...r.cells].map(c => (c.dataset.label || '') + c.textContent)])"
    with chromium.page(PHONE, 844) as page:
        page.goto(tmp_path / "index.html")
        page.wait("document.querySelector('.kl-stack')")
        assert page.js("document.querySelectorAll('.kl-stack').length") == 1
        a, b = f"top, {wide}a: ", f"{wide}b: "
        assert page.js(cards) == [
            ["", "model: one", "n: 1", f"{a}2", f"top, {wide}b: 3"],
            ["one", "n: 4", f"{a}5", ""],
            ["", "model: two", "n: 6", f"{a}7", f"top, {b}8"],
        ]
        assert page.js(HIDDEN) == []
        page.resize(1280, 900)
        page.wait("!document.querySelector('.kl-stack')")


def test_a_name_in_a_table_stands_on_one_line_and_breaks_in_text(chromium: Any, tmp_path: Path) -> None:
    name = "<code><span class=pre>shape.n_matmul_params</span></code>"
    cells = f"<td><p>{name}</p></td><td><p>{'parameters that multiply ' * 4}</p></td><td><p>{name}</p></td><td><p>{name}</p></td>"
    text = f"<p>{name.replace('params', 'params' * 20)}</p>"
    write_article(tmp_path, f'<div><table class="table"><tbody><tr>{cells}</tr></tbody></table></div>{text}')
    lines = "[...document.querySelectorAll('.pre')].map(e => e.getClientRects().length)"
    with chromium.page(PHONE, 844) as page:
        page.goto(tmp_path / "index.html")
        page.wait("document.querySelector('.kl-stack')")
        *names, broken = page.js(lines)
        assert names == [1, 1, 1]
        assert broken > 1
        assert page.js(WIDTH_OF_PAGE) <= PHONE


def test_a_long_list_of_cards_shows_all_its_rows_at_a_click(chromium: Any, tmp_path: Path) -> None:
    head = f"<tr><th>model</th><th>{'w' * 40}a</th><th>{'w' * 40}b</th></tr>"
    rows = "".join(f"<tr><th>{k}</th><td>1</td><td>2</td></tr>" for k in range(14))
    table = f'<div><table class="dataframe"><thead>{head}</thead><tbody>{rows}</tbody></table></div>'
    write_article(tmp_path, table)
    seen = "[[...document.querySelectorAll('tbody tr')].filter(r => r.offsetParent).length, document.querySelector('.kl-show-all').textContent]"
    with chromium.page(PHONE, 844) as page:
        page.goto(tmp_path / "index.html")
        page.wait("!!document.querySelector('.kl-show-all')")
        assert page.js(seen) == [8, "Show all 14 rows"]
        for want in ([14, "Show the first 8 rows"], [8, "Show all 14 rows"]):
            page.js("document.querySelector('.kl-show-all').click()")
            assert page.js(seen) == want
        page.resize(1280, 900)
        page.wait("!document.querySelector('.kl-stack')")
        assert page.js("document.querySelector('.kl-show-all').offsetParent") is None
        assert page.js(seen)[0] == 14


def test_one_switch_shows_all_code_and_hides_it(chromium: Any, built_book: Path) -> None:
    states = """(() => { const folded = [...document.querySelectorAll('div.cell details.hide')];
      const button = document.querySelector('.kl-code-switch');
      return [folded.length, folded.filter(one => one.open).length, button.textContent, button.ariaPressed]; })()"""
    with chromium.page() as page:
        page.goto(built_book / "notebooks" / "10_what_does_a_token_cost.html")
        folded, *closed = page.js(states)
        assert folded > 3
        assert closed == [0, "Show all code", "false"]
        page.js("document.querySelector('.kl-code-switch').click()")
        assert page.js(states) == [folded, folded, "Hide all code", "true"]
        page.js("document.querySelector('.kl-code-switch').click()")
        assert page.js(states) == [folded, *closed]


@pytest.fixture(scope="module")
def served(built_book: Path) -> Iterator[str]:
    """The book's address on a server, which search needs to read pages."""
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    handler = functools.partial(quiet, directory=built_book)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("dark", [False, True])
def test_search_quotes_the_text_and_its_marks_are_legible(chromium: Any, served: str, dark: bool) -> None:
    with chromium.page(dark=dark) as page:
        page.goto(f"{served}/search.html?q=roofline")
        quoted = "[...document.querySelectorAll('#search-results p.context')].map(p => p.textContent)"
        page.wait(f"{quoted}.length > 2", 20)
        told = page.js(quoted)
        assert any("roofline" in text.lower() for text in told)
        assert not [
            text for text in told if "Download source file" in text or "Print to PDF" in text or "\\(" in text
        ]
        page.js(f"{AXE}; 0")
        assert page.js(FINDINGS) == []
        page.goto(f"{served}/notebooks/11_when_does_attention_dominate.html?highlight=roofline")
        page.wait("document.querySelectorAll('article .highlighted').length")
        page.js(f"{AXE}; 0")
        assert page.js(FINDINGS) == []
