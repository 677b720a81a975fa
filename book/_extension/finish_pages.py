"""A Sphinx extension: what the theme's pages lack. Numbers of figures and equations, links of chapter numbers, an entry for each
parameter of a docstring, a description for search engines and cards, icons without a library of icons, and no script or
style sheet that a page does not use.

The icons are Font Awesome Free's (CC BY 4.0), taken from the theme's own copy: those that the pages show, as masks in
one style sheet, so that they work from a file, too, where browsers load no fonts.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

from docutils import nodes

LONGEST = 200  # characters of a description
NUMBER = '<span class="kl-number"></span>'  # in the caption of a chart or a drawing
CARD = "_static/card.png"
TAG = re.compile(r"\n\\tag\{(\d+)\}\s*$")  # the number of an equation, in its formula
ANCHOR = re.compile(r'<a id="([\w-]+)"></a>')  # before it: where references lead
CHAPTER = re.compile(
    r'(<a href="\d\d_\w+)\.ipynb(?=")'
)  # a link in what a cell printed, which opens the notebook elsewhere
# "chapters 10 to 16, 25 and 30", and each number in it
CHAPTERS, TWO_DIGITS = re.compile(r"\b[Cc]hapters?\s\d\d(?:(?:,?\sand|,|\sto)\s\d\d)*\b"), re.compile(r"\d\d")
# another parameter, behind one on the same line
FIELD = re.compile(r"(?<=\.) (?=((?:\*{0,2}\w+, )*\*{0,2}\w+): )")
OPTION = re.compile(r'<span class="pre">(?=--?\w)')  # of a command line: it breaks at no hyphen
# In text that a page's own scripts or the theme's style sheets show, beside the icons in its HTML.
BY_SCRIPT = ("xmark",)
ADMONITIONS = {"tip": "lightbulb", "hint": "lightbulb", "note": "circle-info", "warning": "triangle-exclamation",
               "error": "circle-exclamation", "": "bell"}  # fmt: skip
# A script or style sheet, by its file name, and what a page that uses it has in its HTML.
USED_BY = {"kl-charts.js": "kl-chart", "mathjax.js": 'class="math', "copybutton": 'class="highlight',
           "clipboard.min.js": 'class="highlight', "design-tabs.js": "sd-tab-set", "sphinx_highlight.js": "",
           "mystnb.": 'class="cell', "sphinx-design": 'class="sd-'}  # fmt: skip
AWESOME = re.compile(r"\s*<(?:link|script)\b[^>]*fontawesome[^>]*>(?:</script>)?")
# A percent sign apart from its number, outside of code and figures: it would fall on the next line.
SIGNED = re.compile(r"(<(pre|code|script|style|svg)\b.*?</\2>)|(?<=\d)[ \xa0]%(?=[\s<.,;:)])", re.DOTALL)
LOADED = re.compile(
    r'\s*<(?:link|script)\b[^>]*(?:href|src)="[^"]*_static/([^"?]+)[^"]*"[^>]*>(?:</script>)?'
)


def describe(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """The description of a page, its first paragraph, and the picture of the book where somebody shares it."""
    texts = (" ".join(one.astext().split()) for one in doctree.findall(nodes.paragraph)) if doctree else ()
    title = re.sub(r"<[^>]+>", "", context.get("title") or {"genindex": "Index"}.get(page, "Search"))
    own = f"{title}. {app.config.html_title}: an executable book on what test-time compute costs."
    text = next((text for text in texts if len(text) > 40), own)
    if len(text) > LONGEST:
        text = text[: LONGEST - 1].rsplit(" ", 1)[0].rstrip(",;:(") + "…"
    base = app.config.html_baseurl
    card = f"{base.rstrip('/')}/{CARD}" if base else context["pathto"](CARD, 1)
    tags = [("name", "description", text), ("property", "og:title", title), ("property", "og:description", text),
            ("property", "og:type", "article"), ("property", "og:image", card), ("name", "twitter:card", "summary_large_image")]  # fmt: skip
    said = "".join(f'\n<meta {kind}="{name}" content="{escape(value)}" />' for kind, name, value in tags)
    context["metatags"] = context.get("metatags", "") + said


def number(app: Any, doctree: Any, page: str) -> None:
    """Count the figures of each chapter: the second of chapter 21 is "Figure 21.2"; that of a page of text "Figure 2"."""
    counts: dict[str, int] = {}
    for node in doctree.findall(lambda one: isinstance(one, nodes.raw) or one.tagname == "start_of_file"):
        if not isinstance(node, nodes.raw):  # the book as one page
            page = node["docname"]
        elif NUMBER in node.astext():
            counts[page] = counts.get(page, 0) + 1
            chapter = re.findall(r"notebooks/(\d+)_", page)
            told = ".".join([*(str(int(one)) for one in chapter), str(counts[page])])
            whole = node.astext().replace(NUMBER, f"{NUMBER[:-7]}Figure {told}: </span>")
            node.replace_self(nodes.raw("", whole, format=node["format"], classes=node["classes"]))


def equations(app: Any, doctree: Any, page: str) -> None:
    """Set the number that a chapter gives an equation as Sphinx sets its own, beside the formula."""
    for node in list(doctree.findall(nodes.math_block)):
        if found := TAG.search(text := node.astext()):
            node["number"], node[:] = found[1], [nodes.Text(text[: found.start()])]
            before = node.parent[max(node.parent.index(node) - 1, 0)]
            if anchor := ANCHOR.fullmatch(before.astext()):
                node["ids"].append(anchor[1])
                node.parent.remove(before)


def chapters(app: Any, doctree: Any, page: str) -> None:
    """Link the number of a chapter in the text, "chapter 36", to its page, with the title as what a pointer is told."""
    found = {Path(name).name[:2]: name for name in app.env.found_docs if re.search(r"(^|/)\d\d_", name)}
    outside = nodes.reference, nodes.literal, nodes.title, nodes.raw, nodes.FixedTextElement
    for text in list(doctree.findall(lambda node: isinstance(node, nodes.Text) and CHAPTERS.search(node))):
        if any(isinstance(one, outside) for one in _around(text)):
            continue
        said = text.astext()
        parts, end = list[nodes.Node](), 0
        for match in CHAPTERS.finditer(said):
            for one in TWO_DIGITS.finditer(said, *match.span()):
                if not (name := found.get(one[0])):
                    continue
                address, title = app.builder.get_relative_uri(page, name), app.env.titles[name].astext()
                link = nodes.reference("", one[0], internal=True, refuri=address, reftitle=title)
                parts, end = [*parts, nodes.Text(said[end : one.start()]), link], one.end()
        text.parent.replace(text, [*parts, nodes.Text(said[end:])])


def _around(node: Any) -> Iterator[Any]:
    """What a node stands in, from the inside out."""
    while node := node.parent:
        yield node


def parameters(app: Any, what: str, name: str, of: Any, options: Any, lines: list[str]) -> None:
    """Give each parameter of a docstring a line of its own, where several share one to save lines in the code."""
    try:
        known = set(inspect.signature(of).parameters)
    except (TypeError, ValueError):
        return
    inside, told = False, list[str]()
    for line in lines:
        inside = line == "Args:" or (inside and (not line or line.startswith(" ")))
        shared = FIELD.finditer(line) if inside else ()
        starts = [found.end() for found in shared if set(found[1].replace("*", "").split(", ")) <= known]
        parts = [line[a:b].rstrip() for a, b in pairwise([0, *starts, len(line)])]
        told += [parts[0], *(f"    {part}" for part in parts[1:])]
    lines[:] = told


def icons(library: str, names: set[str]) -> str:
    """A style sheet that draws the icons of these names, from the text of Font Awesome's script."""
    rules = [
        "/* Icons: Font Awesome Free 6 (https://fontawesome.com), CC BY 4.0 */",
        ".fa-solid, .fas { display: inline-block; width: 1em; height: 1em; vertical-align: -0.125em; background: currentColor;"
        " -webkit-mask: var(--kl-icon) center / contain no-repeat; mask: var(--kl-icon) center / contain no-repeat; }",
        ".fa-lg { font-size: 1.25em; line-height: 0.05em; vertical-align: -0.075em; }",
        *(f"html[data-mode={mode}] .theme-switch-button .theme-switch.fa-solid[data-mode={mode}] {{ display: inline-block; }}"
          for mode in ("auto", "light", "dark")),
        ".admonition > .admonition-title::after, div.admonition > .admonition-title::after { content: ''; display: block; width: 1em;"
        " height: 1em; top: 0.7rem; background: currentColor; opacity: 1; mask: var(--kl-icon) center / contain no-repeat; }",
    ]  # fmt: skip
    drawn = {}
    for name in sorted(names | set(ADMONITIONS.values())):
        found = re.findall(rf'[{{,]"?{name}"?:\[(\d+),(\d+),\[[^\]]*\],"[0-9a-f]+","([^"]+)"', library)
        if found:  # brands, then outlines, then solid ones
            width, height, path = found[-1]
            svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"><path d="{path}"/></svg>'
            drawn[name] = f'--kl-icon: url("data:image/svg+xml,{quote(svg, safe=" /:=")}")'.replace(
                '"data', "'data"
            ).replace('")', "')")
    rules += [f".fa-{name} {{ {drawn[name]}; }}" for name in sorted(names & set(drawn))]
    rules += [f"{f'.admonition.{kind}' if kind else '.admonition'} > .admonition-title::after {{ {drawn[name]}; }}"
              for kind, name in sorted(ADMONITIONS.items())]  # fmt: skip
    return "\n".join(rules) + "\n"


def finished(page: str) -> str:
    """The HTML of a page without what it does not use, with the style sheet of the icons."""
    page = AWESOME.sub("", page)
    page = re.sub(r"\s*<script>window\.MathJax = .*?</script>", "", page)  # settings of the whole MathJax
    body = page[page.find("<body") :]

    def kept(tag: re.Match[str]) -> str:
        needs = next((need for name, need in USED_BY.items() if tag[1].split("/")[-1].startswith(name)), "")
        return tag[0] if needs in body else ""

    page = LOADED.sub(kept, page)
    page = OPTION.sub('<span class="pre kl-option">', page)
    page = SIGNED.sub(lambda found: found[1] or "%", page)
    page = CHAPTER.sub(r"\1.html", page)
    page = page.replace('<summary aria-label="Toggle hidden content">', "<summary>")  # it says what it shows
    # entries of a bibliography, and the links beside them, are no items of a list
    page = page.replace('<div role="list" class="citation-list">', '<div class="citation-list">')
    page = page.replace(' role="doc-biblioentry"', "")
    # the many authors of a work, in a citation, its link and its entry
    page = re.sub(r",? and others(?=, \d{4})", " et al.", page)
    page = re.sub(r'(\]</span></span>\s*<p>|title=")([^<"]*?),? and others\. ', r"\1\2 et al. ", page)
    # parameters of a signature are no definitions without terms
    page = re.sub(
        r"<dl>((?:\s*<dd>.*?</dd>)+\s*)</dl>", lambda found: _plain(found[1]), page, flags=re.DOTALL
    )
    if not (static := re.search(r'(?:href|src)="([^"]*_static/)', page)):
        return page  # it only leads to another
    return page.replace(
        "</title>", f'</title>\n    <link rel="stylesheet" href="{static[1]}kl-icons.css" />', 1
    )


def _plain(definitions: str) -> str:
    lines = definitions.replace("<dd>", "<div>").replace("</dd>", "</div>")
    return f'<div class="kl-parameters">{lines}</div>'


def finish(app: Any, failure: Exception | None) -> None:
    """Put right the pages of a build that succeeded, and leave out the files that none of them loads any more."""
    if failure or app.builder.format != "html":
        return
    out, static = Path(app.outdir), Path(app.outdir, "_static")
    pages = [path for path in out.rglob("*.html") if static not in path.parents]
    texts = {path: path.read_text(encoding="utf-8") for path in pages}
    shown = set(re.findall(r"\bfa-([a-z-]+)", " ".join(texts.values()))) | set(BY_SCRIPT)
    [library] = static.glob("vendor/fontawesome/*/js/all.min.js")
    (static / "kl-icons.css").write_text(icons(library.read_text(encoding="utf-8"), shown), encoding="utf-8")
    for path, text in texts.items():
        path.write_text(finished(text), encoding="utf-8")
    for path in (static / "vendor" / "fontawesome").rglob("*"):
        if path.is_file() and path.name != "LICENSE.txt":
            path.unlink()


def setup(app: Any) -> dict[str, Any]:
    app.connect("doctree-resolved", number)
    app.connect("doctree-resolved", equations)
    app.connect("doctree-resolved", chapters)
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", parameters, priority=400)  # before napoleon reads it
    app.connect("html-page-context", describe)
    app.connect("build-finished", finish)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
