"""The book: a small one in all its states, then the real one page by page."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import io
import json
import os
import re
import runpy
import shutil
import struct
import time
import urllib.parse
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

import kinetics_lab
from kinetics_lab.book.build import (
    PRINT_STYLE,
    BookError,
    build_book,
    find_chromium,
    print_pdf,
    repository_settings,
)
from kinetics_lab.book.parameters import declared_parameters

pytestmark = pytest.mark.xdist_group("book")
ROOT = Path(__file__).parent.parent
ADDRESS = "https://github.com/owner/name"
INTRO = "# Intro\n\nTo work.\n"
ASSETS = {"script": "src", "img": "src", "source": "src", "iframe": "src", "video": "src", "audio": "src"}
ASSETS |= {"object": "data", "embed": "src", "link": "href"}
LINKED_ONLY = {
    "canonical",
    "next",
    "prev",
    "author",
    "index",
    "search",
    "genindex",
}  # never loaded by the page


class Page(HTMLParser):
    """What a page links to, what it loads, and the anchors it offers."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.links, self.assets, self.anchors, self.styles = path, [], [], set(), []
        self._in_style = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.anchors |= {given[key] for key in ("id", "name") if given.get(key)}
        self._in_style = tag == "style"
        self.styles.append(given.get("style") or "")
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "meta" and given.get("http-equiv", "").lower() == "refresh":
            self.links.append(given["content"].split("url=")[1])
        relation = set((given.get("rel") or "").split())
        if given.get(ASSETS.get(tag, "")) and not (tag == "link" and relation & LINKED_ONLY):
            self.assets.append(given[ASSETS[tag]])

    def handle_data(self, data):
        if self._in_style:
            self.styles.append(data)

    def targets(self, addresses):
        """(address, file, fragment) of those that stay within the book."""
        for address in addresses:
            parts = urllib.parse.urlsplit(address)
            if not parts.scheme and not parts.netloc:
                file = self.path.parent / urllib.parse.unquote(parts.path) if parts.path else self.path
                yield address, file.resolve(), parts.fragment


def is_external(address: str) -> bool:
    return bool(re.match(r"\s*(?:https?:)?//", address))


def external_in_css(text: str) -> list[str]:
    found = re.findall(r"url\(\s*['\"]?([^)'\"]+)|@import\s+['\"]([^'\"]+)", text)
    return [a or b for a, b in found if is_external(a or b)]


# --- a small book -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory, write_notebook):
    """A project with two pages and two chapters."""
    root = tmp_path_factory.mktemp("small")
    config = {
        "title": "Small",
        "only_build_toc_files": True,
        "execute": {"execute_notebooks": "off"},
        "parse": {"myst_enable_extensions": ["dollarmath"]},
        "repository": {"url": ADDRESS, "branch": "main"},
        "sphinx": {"config": {"html_static_path": ["book/_static"]}},
    }
    (root / "_config.yml").write_text(yaml.safe_dump(config))
    chapters = [{"file": "notebooks/10_one"}, {"file": "notebooks/11_two"}]
    toc = {"format": "jb-book", "root": "book/intro", "parts": [{"caption": "Part", "chapters": chapters}]}
    (root / "book").mkdir()
    (root / "book" / "_toc.yml").write_text(yaml.safe_dump(toc))
    (root / "book" / "intro.md").write_text(INTRO)
    (root / "book" / "_static").mkdir()
    shutil.copy(ROOT / "book" / "_static" / "print.css", root / "book" / "_static")
    title = ("markdown", "# One?")
    cells = [title, ("code", "n = 3  # tokens", "parameters"), ("code", "print('n is', n)")]
    write_notebook(root / "notebooks" / "10_one.ipynb", *cells)
    title = ("markdown", "# Two?\n\nAfter [One?](10_one.ipynb).")
    cells = [title, ("code", "m = 6  # tokens", "parameters"), ("code", "print('m is', m)")]
    write_notebook(root / "notebooks" / "11_two.ipynb", *cells)
    (root / "default.yml").write_text("10_one: {n: 3}\n11_two: {m: 6}\n")
    (root / "other.yml").write_text("10_one: {n: 5}\n11_two: {m: 6}\n")
    return root


@pytest.fixture
def project(small, tmp_path):
    """A copy of the small project, so that a test may break it; runs are shared."""
    root = tmp_path / "project"
    shutil.copytree(small, root, ignore=shutil.ignore_patterns("_build"))
    runs = small / "_build" / "runs"
    if runs.exists():
        shutil.copytree(runs, root / "_build" / "runs")
    return root


@pytest.fixture(scope="module")
def faulty(small):
    """The small book, built while its first page has two faults: the error, and what was told of it."""
    told, intro = io.StringIO(), small / "book" / "intro.md"
    intro.write_text(INTRO + "\n{nosuchrole}`x` and {doc}`../notebooks/10_uno`.\n")
    try:
        with contextlib.redirect_stderr(told), pytest.raises(BookError) as error:
            build_book(small, small / "other.yml", small / "_build" / "book", repository_url=ADDRESS)
    finally:
        intro.write_text(INTRO)
    shutil.copytree(small / "_build" / "book", small / "_build" / "failed")
    return str(error.value), told.getvalue()


@pytest.fixture(scope="module")
def mended(faulty, small):
    """The first page of that book once the faults are gone, with the address of a repository."""
    return build_book(small, small / "other.yml", small / "_build" / "book", repository_url=ADDRESS)


@pytest.fixture(scope="module")
def preview(small):
    """The first page of the second chapter's preview, without an address, and what was printed."""
    out, told = small / "_build" / "preview", io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        index = build_book(small, small / "default.yml", out, repository_url="", only=["11_two"])
    return index, told.getvalue()


def test_every_fault_is_told_with_its_place(faulty):
    error, told = faulty
    assert re.fullmatch(r"the book did not build: 2 warnings; all of it is in .*build\.log", error)
    for message in ("Unknown interpreted text role", "unknown document: '../notebooks/10_uno'"):
        assert re.search(rf"^book/intro\.md:\d+: WARNING: {message}", told, re.MULTILINE)


def test_a_failed_build_is_read_anew(faulty, small, monkeypatch):
    """Sphinx tells of a fault when it reads the page, so nothing of what it has read may be left."""
    import kinetics_lab.book.build as module

    left = []
    monkeypatch.setattr(module, "_jupyter_book", lambda out, *_: left.append((out / "_build").exists()))
    build_book(small, small / "other.yml", small / "_build" / "failed", repository_url=ADDRESS)
    assert left == [False]


@pytest.mark.parametrize("ahead", [-60, 3600])
def test_a_page_that_changed_after_the_clock_went_back_is_read(mended, small, ahead, tmp_path, monkeypatch):
    """Sphinx takes what is older than its last look for unchanged: nothing of that look may be left."""
    import kinetics_lab.book.build as module

    left, out = [], tmp_path / "book"
    shutil.copytree(mended.parents[2], out)
    os.utime(out / "stamp.json", (time.time() + ahead,) * 2)
    monkeypatch.setattr(module, "_jupyter_book", lambda out, *_: left.append((out / "_build").exists()))
    build_book(small, small / "default.yml", out, repository_url=ADDRESS)
    assert left == [ahead < 0]


def test_with_an_address_the_buttons_lead_there(mended):
    page = Page(mended.parent / "notebooks" / "10_one.html")
    for wanted in (
        "https://github.com/owner/name",
        "https://github.com/owner/name/edit/main/notebooks/10_one.ipynb",
        "https://colab.research.google.com/github/owner/name/blob/main/notebooks/10_one.ipynb",
        "https://mybinder.org/v2/gh/owner/name/main?urlpath=lab/tree/notebooks/10_one.ipynb",
    ):
        assert wanted in page.links
    text = page.path.read_text()
    assert "n is 5" in text
    assert text.count('class="highlight-ipython3') == 3  # values other than the defaults are shown


def test_an_unchanged_book_is_not_built_again_and_a_changed_one_is(mended, small, capsys, monkeypatch):
    import kinetics_lab.book.build as module

    def refuse(*_):
        raise AssertionError("built again")

    monkeypatch.setattr(module, "_jupyter_book", refuse)
    monkeypatch.setenv("KINETICS_REPOSITORY_URL", ADDRESS)
    assert mended.name == "index.html"
    assert build_book(small, small / "other.yml", small / "_build" / "book") == mended
    assert "Nothing has changed" in capsys.readouterr().out
    shutil.copytree(small / "_build" / "book", small / "_build" / "changed")
    with pytest.raises(AssertionError, match="built again"):
        build_book(small, small / "default.yml", small / "_build" / "changed")


def test_a_preview_shows_one_chapter_as_it_was_executed(preview, small):
    index, told = preview
    [page] = (index.parent / "notebooks").iterdir()
    assert page.name == "11_two.html"
    text = page.read_text()
    assert "m is 6" in text
    assert text.count('class="highlight-ipython3') == 2  # the injected cell repeats the defaults
    assert "A preview: links to the notebooks left out lead nowhere." in told
    assert "target not found" not in told
    with pytest.raises(ValueError, match="notebook '11_too' is not known; did you mean 11_two"):
        build_book(small, None, small / "_build" / "preview", only=["11_too"])


def test_a_preview_of_what_collects_findings_runs_all_that_have_not_run(project, write_notebook, monkeypatch):
    """Kept runs cost nothing; without the others there would be findings missing."""
    import kinetics_lab.book.build as module

    def stop(paths, *_):
        raise RuntimeError(" ".join(path.stem for path in paths))

    monkeypatch.setattr(module, "execute_all", stop)
    about = {"kinetics": {"collects_claims": True}}
    write_notebook(project / "notebooks" / "90_score.ipynb", ("markdown", "# Score?"), **about)
    for asked, run in (("90_score", "10_one 11_two 90_score"), ("11_two", "11_two")):
        with pytest.raises(RuntimeError, match=f"^{run}$"):
            build_book(project, None, project / "out", repository_url="", only=[asked])


def test_without_an_address_no_button_leads_anywhere(preview):
    for path in preview[0].parent.rglob("*.html"):
        assert not [a for a in Page(path).links if re.search(r"github|mybinder|colab|edit/", a)]


def theme_options(config, url):
    return repository_settings(config, url)["sphinx"]["config"]["html_theme_options"]


def test_the_configuration_is_where_the_address_is_set(project, monkeypatch):
    monkeypatch.delenv("KINETICS_REPOSITORY_URL", raising=False)
    config = yaml.safe_load((project / "_config.yml").read_text())
    off = theme_options(config, "")
    assert not any(off.values())
    assert "launch_buttons" not in off  # the theme raises for these without an address
    other = "https://codeberg.org/owner/name"
    there = config | {"repository": {"url": other, "branch": "main"}}
    assert "colab_url" not in theme_options(there, other)["launch_buttons"]
    assert not theme_options(config, other)["launch_buttons"]  # chapters would install from elsewhere
    (project / "_config.yml").write_text(yaml.safe_dump(config | {"repository": {"url": "nonsense"}}))
    with pytest.raises(ValueError, match="must read https://host/owner/name; got 'nonsense'"):
        build_book(project, None, project / "out")


def test_other_theme_options_stay():
    kept = {"show_toc_level": 2, "use_edit_page_button": True}
    config = {
        "html": {"use_issues_button": True, "favicon": "x"},
        "sphinx": {"config": {"html_theme_options": kept}},
    }
    settings = repository_settings(config, "")
    assert settings["html"] == {"favicon": "x"}
    assert settings["sphinx"]["config"]["html_theme_options"]["show_toc_level"] == 2
    assert settings["sphinx"]["config"]["html_theme_options"]["use_edit_page_button"] is False
    assert config["html"]["use_issues_button"] is True  # what was given is not changed


@pytest.mark.slow
def test_what_is_wrong_fails_every_time_until_it_is_mended(project, capsys):
    def build():
        return build_book(project, None, project / "out", repository_url="")

    assert build().exists()
    intro, one = project / "book" / "intro.md", project / "notebooks" / "10_one.ipynb"
    good = intro.read_text()
    intro.write_text(good + "\n{nosuchrole}`x`\n")
    for _ in range(2):  # Sphinx tells of it when it reads the page, which the second build must do again
        with pytest.raises(BookError, match=r"did not build: 1 warning; all of it is in .*build\.log"):
            build()
        assert re.search(
            r"book/intro\.md:\d+: WARNING: Unknown interpreted text role", capsys.readouterr().err
        )
    intro.write_text(good)
    assert build().exists()
    one.rename(one.with_name("12_uno.ipynb"))
    toc = project / "book" / "_toc.yml"
    toc.write_text(toc.read_text().replace("10_one", "12_uno"))
    with pytest.raises(BookError, match="1 warning"):  # on a page that did not change
        build()
    assert re.search(
        r"11_two\.ipynb:\d+: WARNING: Unknown source document 'notebooks/10_one'", capsys.readouterr().err
    )


@pytest.mark.slow
def test_the_page_that_is_printed_finds_what_it_loads(project, capsys):
    for _ in range(2):
        index = build_book(project, None, project / "out", repository_url="", builder="singlehtml")
        page = Page(index)
        assert all(file.exists() for _, file, _ in page.targets(page.assets))
        text = index.read_text()
        assert [text.count(PRINT_STYLE), "One?" in text, "Two?" in text] == [1, True, True]
        inside = re.findall(r'<a [^>]*href="([^"]+)"', text)
        assert [
            link for link in inside if not link.startswith(("#", "https://"))
        ] == []  # no path of this machine
        assert "#document-notebooks/10_one" in inside
        assert all(f'id="{link[1:]}"' in text for link in inside if link.startswith("#document-"))
        assert ("<details>" in text, text.count("<details open>")) == (False, 2)  # what unfolds is unfolded
    assert "Nothing has changed" in capsys.readouterr().out


def test_places_that_are_not_the_books(project, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(FileExistsError, match="mine exists and is not a folder of book builds"):
        build_book(project, None, tmp_path / "mine")
    with pytest.raises(
        FileNotFoundError, match=r"there is no _config\.yml in .*: run this in the project's folder"
    ):
        build_book(tmp_path, None, tmp_path / "out")


def test_a_kept_copy_of_a_file_that_the_build_makes_stops_it(project, tmp_path):
    (project / "book" / "made-data.js").write_text("window.old = 1;")
    with pytest.raises(ValueError, match=r"which would go stale; got \['book/made-data.js'\]"):
        build_book(project, None, tmp_path / "out", extra=lambda: {"book/made-data.js": b"window.fresh = 1;"})


def test_printing_needs_a_browser(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CHROMIUM", raising=False)
    with pytest.raises(BookError, match="no Chromium to print with: install it"):
        print_pdf(tmp_path / "page.html", tmp_path / "page.pdf")


@pytest.mark.browser
@pytest.mark.skipif(find_chromium() is None, reason="needs Chromium (Debian: apt-get install chromium)")
def test_printing(tmp_path):
    style = (ROOT / "book" / "_static" / "print.css").read_text()
    # tight lines, as the theme's, reach into the page before; a title of two lines
    titles = ["A long title, " * 10 + "the end", *(f"Part {i} of the page" for i in range(80))]
    text = "".join(f"<h2>{title}</h2>" + "<p>Text.</p>" * (i % 7 + 3) for i, title in enumerate(titles))
    style += "h2 { margin: 2.75rem 0 1.05rem; line-height: 1.15 }"
    (tmp_path / "page.html").write_text(f"<style>{style}</style>{text}")
    print_pdf(tmp_path / "page.html", tmp_path / "page.pdf")
    made = (tmp_path / "page.pdf").read_bytes()
    assert made.startswith(b"%PDF")
    assert b"/Outlines" in made
    found = re.findall(rb"/Title \((.*?)\)", made)  # of the page itself, then bookmarks, from the headings
    assert [title.decode() for title in found][-len(titles) :] == titles
    with pytest.raises(FileNotFoundError, match="no folder"):
        print_pdf(tmp_path / "page.html", tmp_path / "no folder" / "page.pdf")


# --- the real book ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pages(built_book):
    found = {path: Page(path) for path in sorted(built_book.rglob("*.html")) if "_static" not in path.parts}
    assert len(found) > 5
    return found


def toc_files():
    found = re.findall(r"(?:root|file):\s*(\S+)", (ROOT / "book" / "_toc.yml").read_text())
    return [re.sub(r"\.(md|ipynb)$", "", name) for name in found]


def test_every_page_of_the_contents_is_built_and_reached_from_the_first(built_book, pages):
    reached, fresh = set(), {(built_book / "index.html").resolve()}
    while fresh:
        reached |= fresh
        linked = {
            file for path in fresh if path in pages for _, file, _ in pages[path].targets(pages[path].links)
        }
        fresh = {file for file in linked if file.suffix == ".html" and file.exists()} - reached
    for name in toc_files():
        assert (built_book / f"{name}.html").resolve() in reached, name


def test_every_link_within_the_book_arrives(pages):
    lost = []
    for path, page in pages.items():
        for address, file, fragment in page.targets(page.links):
            anchors = pages[file].anchors if file in pages else None
            if not file.exists() or (fragment and anchors is not None and fragment not in anchors):
                lost.append(f"{path.name}: {address}")
    assert not lost


def test_nothing_is_loaded_from_elsewhere(built_book, pages):
    for path, page in pages.items():
        assert not [a for a in page.assets if is_external(a)], path
        assert not external_in_css("\n".join(page.styles)), path
    for path in built_book.rglob("*.css"):
        assert not external_in_css(path.read_text(encoding="utf-8")), path


def test_everything_a_page_loads_is_there(pages):
    for path, page in pages.items():
        missing = [a for a, file, _ in page.targets(page.assets) if not file.exists()]
        assert not missing, path


def test_mathematics_is_set_by_a_script_of_our_own(built_book):
    page = Page(
        built_book / "notebooks" / sorted((ROOT / "notebooks").glob("*.ipynb"))[0].with_suffix(".html").name
    )
    [script] = {file for address, file, _ in page.targets(page.assets) if "mathjax" in address}
    assert script.name == "mathjax.js"
    assert 500_000 < script.stat().st_size < 1_100_000


def test_a_page_loads_what_it_uses_and_tells_what_it_is(built_book, pages):
    used = {
        "kl-charts.js": 'class="kl-chart"',
        "mathjax.js": 'class="math',
        "copybutton.js": 'class="highlight',
    }
    descriptions = {}
    for path, page in pages.items():
        text = path.read_text(encoding="utf-8")
        if 'http-equiv="Refresh"' in text[:500] or path.name == "404.html":  # which nobody finds or shares
            continue
        loaded = {file.name for _, file, _ in page.targets(page.assets)}
        assert {name for name in used if name in loaded} == {
            name for name, sign in used.items() if sign in text
        }, path
        assert not [a for a in page.assets if "fontawesome" in a], path
        tags = dict(re.findall(r'<meta (?:name|property)="([\w:]+)" content="([^"]*)"', text))
        assert 20 < len(tags["description"]) <= 200, path
        assert tags["og:description"] == tags["description"]
        assert (path.parent / tags["og:image"]).resolve() == (built_book / "_static" / "card.png").resolve()
        descriptions[path] = tags["description"]
    assert len(set(descriptions.values())) == len(descriptions)
    head = (built_book / "_static" / "card.png").read_bytes()[:24]
    assert (head[1:4], *struct.unpack(">II", head[16:])) == (b"PNG", 1200, 630)


@pytest.fixture(scope="module")
def words():
    """The script that counts words; it lies outside the package."""
    spec = importlib.util.spec_from_file_location("words", ROOT / "benchmarks" / "words.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_chapters_are_no_longer_than_they_were_and_new_ones_short(built_book, words):
    listed = {chapter: 1.1 * count for chapter, count in words.listed().items()}
    long = {c: n for c, n in words.counted(built_book).items() if n > max(words.MOST, listed.get(c, 0))}
    assert not long, "shorten them, or after a change of plan: python benchmarks/words.py --write"
    assert all(count > words.MOST for count in words.listed().values())


def test_words_are_those_of_the_text(words):
    page = """<p>menu</p><article class="bd-article"><h1>Two words<a class="headerlink">#</a></h1>
      <p>Five, with <code>code</code> and<br>2 <span class="math notranslate">\\(x\\)</span> – numbers</p>
      <pre>not this</pre><details class="hide above-input"><p>nor that</p></details>
      <figure><figcaption>nor these</figcaption></figure>
      <section id="in-depth"><h2>In depth</h2><section id="a"><h3>Nor that</h3><p>or this</p></section></section>
      <section id="b"><p>end</p></section></article><footer>nor here</footer>"""
    assert words.words(page) == 2 + 6 + 1


def test_what_a_page_does_not_use_is_left_out():
    finished = runpy.run_path(str(ROOT / "book" / "_extension" / "finish_pages.py"))["finished"]
    tags = {
        "mathjax": '<script>window.MathJax = {"a": 1}</script><script defer="defer" src="../_static/vendor/mathjax/mathjax.js?v=1"></script>',
        "fontawesome": '<link href="../_static/vendor/fontawesome/css/all.min.css" rel="stylesheet" />',
        "kl-charts": '<script src="../_static/kl-charts.js?v=2"></script>',
        "theme": '<link href="../_static/styles/theme.css" rel="stylesheet" />',
    }
    head = f"<title>T</title>{''.join(tags.values())}"
    folded = '<details><summary aria-label="Toggle hidden content"><p>Show code</p></summary></details>'
    signature = "<dt>f(<dl>\n<dd>a,</dd>\n<dd>b</dd>\n</dl>)</dt>"
    cited = '<a title="A. B, and others. T.">B and others, 2022</a> <span>]</span></span>\n<p>A. B and others. Some and others.'
    assert finished(cited) == (
        '<a title="A. B et al. T.">B et al., 2022</a> <span>]</span></span>\n<p>A. B et al. Some and others.'
    )
    plain = finished(f"<head>{head}</head><body><p>t</p>{folded}{signature}</body>")
    for name, tag in tags.items():
        assert (tag in plain) == (name == "theme"), name
    assert '<link rel="stylesheet" href="../_static/kl-icons.css" />' in plain
    assert "<summary><p>Show code</p></summary>" in plain
    link = '<head><title>T</title></head><a href="{}.ipynb">a</a>'
    assert 'href="10_one.html"' in finished(link.format("10_one"))
    assert 'href="../_sources/10_one.ipynb"' in finished(link.format("../_sources/10_one"))
    assert '<div class="kl-parameters">\n<div>a,</div>\n<div>b</div>\n</div>' in plain
    option = '<span class="pre">{}</span>'
    assert 'class="pre kl-option">--max-tpot<' in finished(option.format("--max-tpot"))
    assert finished(option.format("max-tpot")) == option.format("max-tpot")
    signs = "<p>75 % of 5\xa0%, <code>5 % 2</code></p><pre><span>5 % 2</span></pre><p>a % b</p>"
    told = finished(f'<a href="_static/a"></a><body>{signs}</body>')
    assert "<p>75% of 5%, <code>5 % 2</code></p><pre><span>5 % 2</span></pre><p>a % b</p>" in told
    rich = finished(
        f'<head>{head}</head><body><figure class="kl-chart"></figure><span class="math x">y</span></body>'
    )
    assert tags["kl-charts"] in rich
    assert "mathjax.js" in rich
    assert (
        finished('<head><title>T</title></head><body><a href="b.html">b</a></body>').count("stylesheet") == 0
    )


def test_an_equation_has_the_number_that_its_chapter_gives_it():
    """Beside the formula, in whose TeX a number would not survive several lines; references lead to it."""
    from docutils import nodes

    equations = runpy.run_path(str(ROOT / "book" / "_extension" / "finish_pages.py"))["equations"]
    anchor = nodes.paragraph("", "", nodes.raw("", '<a id="eq-one">'), nodes.raw("", "</a>"))
    tagged = nodes.math_block("", "a \\\\ b\n\\tag{12}", number=None, nowrap=False)
    plain = nodes.math_block("", "c", number=None, nowrap=False)
    page = nodes.section("", nodes.paragraph("", "Text"), anchor, tagged, nodes.paragraph("", "and"), plain)
    equations(None, page, "")
    assert [one.tagname for one in page] == ["paragraph", "math_block", "paragraph", "math_block"]
    assert (tagged["number"], tagged["ids"], tagged.astext()) == ("12", ["eq-one"], "a \\\\ b")
    assert (plain["number"], plain["ids"], plain.astext()) == (None, [], "c")


def test_the_number_of_a_chapter_in_the_text_is_a_link():
    """To its page, by its title, and in the text alone; a number that no chapter has stays as it is."""
    from types import SimpleNamespace

    from docutils import nodes

    chapters = runpy.run_path(str(ROOT / "book" / "_extension" / "finish_pages.py"))["chapters"]
    names = {f"notebooks/{name}": nodes.title("", name[3:]) for name in ("10_one", "16_two")}
    env = SimpleNamespace(found_docs=[*names, "book/intro"], titles=names)
    builder = SimpleNamespace(get_relative_uri=lambda page, name: f"../{name}.html")
    said = "In 16 lines: chapters 10 to 16 and 99, chapter 16."
    page = nodes.section("", nodes.title("", "Chapter 10"), nodes.paragraph("", "", nodes.Text(said)))
    page += nodes.paragraph("", "", nodes.literal("", "chapter 10"))
    chapters(SimpleNamespace(env=env, builder=builder), page, "book/intro")
    links = [
        (one.astext(), one["refuri"], one["reftitle"], one["internal"])
        for one in page.findall(nodes.reference)
    ]
    first, second = (f"../notebooks/{name}.html" for name in ("10_one", "16_two"))
    assert links == [("10", first, "one", True), ("16", second, "two", True), ("16", second, "two", True)]
    assert page[1].astext() == said


def test_each_parameter_of_a_docstring_has_an_entry():
    """Those that share a text share an entry; one that begins behind another's text gets a line of its own."""
    parameters = runpy.run_path(str(ROOT / "book" / "_extension" / "finish_pages.py"))["parameters"]

    def act(first, second, *, third, seed, **options):
        """Act."""

    lines = ["Act. first: no entry.", "", "Args:", "    first, second: both. A note: kept. third: one.", "        more", "    seed: a seed. options: of `x`: y.", "", "Returns. seed: not here."]  # fmt: skip
    parameters(None, "function", "act", act, None, lines)
    assert lines == ["Act. first: no entry.", "", "Args:", "    first, second: both. A note: kept.", "    third: one.", "        more", "    seed: a seed.", "    options: of `x`: y.", "", "Returns. seed: not here."]  # fmt: skip


def test_the_reference_has_an_entry_for_every_parameter_that_a_docstring_names(built_book):
    text = (built_book / "book" / "using-the-package.html").read_text(encoding="utf-8")
    own = text[text.index('id="kinetics_lab.plan"') :]
    own = own[: own.index('<dt class="sig')]
    named = re.findall(r"<li><p><strong>(.+?)</strong>", own)
    assert "n_splits" in named
    assert any("max_seconds" in one and "max_tpot" in one for one in named)
    assert len(named) == len(set(named))
    told = set(re.findall(r"\w+", re.sub(r"<[^>]+>", "", " ".join(named))))
    assert told >= set(inspect.signature(kinetics_lab.plan).parameters) - {"unit"}  # told with the budgets


def test_the_figures_of_every_page_are_numbered_in_order(pages):
    """From the first of a chapter on, charts and drawings alike; on a page of text without a chapter's number."""
    figures = 0
    for path in pages:
        chapter = re.findall(r"^0*(\d+)_", path.name)
        captions = re.findall(
            r"<figcaption>(<span class=\"kl-number\">.*?)</figcaption>", path.read_text(encoding="utf-8")
        )
        for place, caption in enumerate(captions, 1):
            told = ".".join([*chapter, str(place)])
            assert re.fullmatch(rf'<span class="kl-number">Figure {told}: </span>\S.+', caption), (
                path.name,
                caption,
            )
        assert len(captions) == len(
            re.findall(r'<figure class="kl-(?:chart|drawing)"', path.read_text(encoding="utf-8"))
        )
        figures += len(captions)
    assert figures > 100


def test_figures_of_one_long_page_are_counted_by_chapter():
    from docutils import nodes
    from docutils.utils import new_document

    extension = runpy.run_path(str(ROOT / "book" / "_extension" / "finish_pages.py"))
    long, start = new_document("book"), type("start_of_file", (nodes.Element,), {})
    for docname, figures in (("book/intro", 1), ("notebooks/21_a", 2), ("notebooks/22_b", 1)):
        part = start(docname=docname)
        part += [
            nodes.raw("", f"<figcaption>{extension['NUMBER']}t</figcaption>", format="html")
            for _ in range(figures)
        ]
        part += nodes.raw("", "<p>no figure</p>", format="html")
        long += part
    extension["number"](None, long, "book/intro")
    text = " ".join(node.astext() for node in long.findall(nodes.raw))
    assert re.findall(r">(Figure [\d.]+): <", text) == [
        "Figure 1",
        "Figure 21.1",
        "Figure 21.2",
        "Figure 22.1",
    ]


def test_every_icon_that_a_page_shows_is_drawn(built_book, pages):
    drawn = set(
        re.findall(r"\.fa-([a-z-]+) \{ --kl-icon: url", (built_book / "_static" / "kl-icons.css").read_text())
    )
    shown = {
        n
        for path in pages
        for n in re.findall(r'class="[^"]*\bfa-([a-z-]+)', path.read_text(encoding="utf-8"))
    }
    assert shown - {"solid", "lg"} <= drawn
    assert len(shown) > 8


def test_search_knows_every_page(built_book):
    index = re.search(r"^Search\.setIndex\((.*)\)$", (built_book / "searchindex.js").read_text(), re.DOTALL)
    known = set(json.loads(index[1])["docnames"])
    assert set(toc_files()) <= known


def test_every_chapter_offers_its_notebook(built_book, pages):
    for source in sorted((ROOT / "notebooks").glob("*.ipynb")):
        page = pages[(built_book / "notebooks" / source.stem).with_suffix(".html")]
        files = [file for a, file, _ in page.targets(page.links) if a.endswith(".ipynb")]
        assert files, source.name
        offered = json.loads(files[0].read_text())
        assert any(cell.get("outputs") for cell in offered["cells"]), source.name
        # At its end the page says how to run it, with parameters that it has.
        text = re.sub(r"<[^>]+>", "", page.path.read_text(encoding="utf-8"))
        [line] = re.findall(rf"kinetics-lab run notebooks/{source.name} -o _build/mine.*", text)
        given = re.findall(r"-p (\w+) ", line)
        assert set(given) <= set(declared_parameters(source)), line


def test_no_page_names_a_folder_of_the_machine(built_book):
    places = [str(ROOT), os.path.expanduser("~")]
    for path in [*built_book.rglob("*.html"), *built_book.rglob("*.ipynb"), built_book / "searchindex.js"]:
        text = path.read_text(encoding="utf-8")
        assert not [place for place in places if len(place) > 1 and f"{place}/" in text], path


def test_a_changed_data_file_stops_the_build_though_its_runs_are_kept(mended, small, tmp_path, monkeypatch):
    data = shutil.copytree(ROOT / "data", tmp_path / "data")
    (data / "published" / "printed_rows.csv").write_text("changed\n")
    monkeypatch.setenv("KINETICS_DATA", str(data))
    with pytest.raises(ValueError, match="printed_rows.csv does not match the manifest"):
        build_book(small, small / "other.yml", small / "_build" / "book", repository_url=ADDRESS)


def test_the_books_own_configuration_takes_an_address():
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    for url in ("", "https://example.org/someone/book"):
        options = repository_settings(config, url)["sphinx"]["config"]["html_theme_options"]
        assert options["use_edit_page_button"] is bool(url)
