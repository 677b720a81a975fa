"""Verdicts, the record a run keeps, and a scorecard that lets nothing go missing."""

import json
import re
from pathlib import Path

import pytest

from kinetics_lab.book import claims
from kinetics_lab.book.claims import (
    VERDICTS,
    Claim,
    Finding,
    load_claims,
    number,
    read_findings,
    record,
    scorecard,
    to_html,
)
from kinetics_lab.book.parameters import read_notebook

ROOT = Path(__file__).parent.parent


def claim(**more):
    return Claim(id="x", chapter="10", where="Table 1", statement="s", published=10.0, **more)


@pytest.mark.parametrize(
    ("more", "value", "interval", "status"),
    [
        ({}, 10.1, None, "reproduced"),  # 1 % by default
        ({}, 10.11, None, "differs"),
        ({"tolerance": 0.2}, 8.0, None, "reproduced"),
        ({"atol": 3.0}, 7.0, None, "reproduced"),
        ({"interval": "bootstrap over problems"}, 12.0, (9.9, 14.0), "consistent"),
        ({"interval": "t-interval of the fit"}, 12.0, (9.9, 14.0), "consistent"),
        ({"interval": "range over accuracies"}, 12.0, (9.9, 14.0), "in range"),
        ({"interval": "bootstrap over problems"}, 12.0, (11.0, 14.0), "differs"),
        ({"untestable": "no cost is named"}, 12.0, None, "not testable"),
        ({"untestable": "no cost is named"}, 10.0, None, "reproduced"),
    ],
)
def test_verdicts(more, value, interval, status):
    assert Finding(claim(**more), value, interval).status == status


def test_a_reason_shows_only_where_we_differ():
    c = claim(why="because")
    assert Finding(c, 10.0).row["why"] == ""
    assert Finding(c, 20.0).row["why"] == "because"
    assert Finding(c, 12.0, (11, 14)).row["here"] == "12 [11, 14]"
    assert Finding(claim(shown="negligible"), 0.1).row["published"] == "negligible"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1.74, "1.74"), (28.611234, "28.61"), (281.25, "281.25"), (1234567, "1,234,567"), (0.0012345678, "0.001235"), (3e-7, "3e-07"), (-2.5, "-2.5"), (100, "100"), (4.2e9, "4.2e+09")],
)  # fmt: skip
def test_numbers_read_well(value, text):
    assert number(value) == text


def test_record_appends_a_line_in_a_run_and_only_there(tmp_path, monkeypatch):
    monkeypatch.delenv("KINETICS_RUN_DIR", raising=False)
    assert record("iso-lp", 28.6, (28, 29)).status == "differs"
    monkeypatch.setenv("KINETICS_RUN_DIR", str(tmp_path))
    record("iso-lp", 28.0)
    record("iso-lp", 28.6, (28, 29))
    lines = [json.loads(line) for line in (tmp_path / "claims.jsonl").read_text().splitlines()]
    assert lines[1] == {"id": "iso-lp", "value": 28.6, "interval": [28.0, 29.0]}
    found = read_findings(tmp_path / "claims.jsonl")
    assert (found["iso-lp"].value, found["iso-lp"].interval) == (28.6, (28.0, 29.0))  # the last one counts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("iso-pl", 1.0), "claim 'iso-pl' is not known; did you mean iso-lp"),
        (("iso-lp", float("nan")), "claim 'iso-lp': value must be finite; got nan"),
        (("iso-lp", 5.0, (6, 7)), r"interval must contain the value 5.0; got \(6.0, 7.0\)"),
        (
            ("iso-l2d", 9.0, (8, 10)),
            r"'iso-l2d' must say in data/claims.toml what its interval is; got \(8.0, 10.0\)",
        ),
    ],
)
def test_a_bad_record_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        record(*arguments)


def everything(path, skip=()):
    lines = [
        {"id": c.id, "value": c.published, "interval": None}
        for c in load_claims().values()
        if c.id not in skip and not c.needs
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


def test_the_scorecard_has_a_row_for_every_claim(tmp_path):
    table = scorecard(everything(tmp_path / "claims.jsonl"))
    assert list(table.id) == list(load_claims())
    waiting = [c.id for c in load_claims().values() if c.needs]
    assert waiting
    assert table[table.verdict == "needs data"].id.tolist() == waiting
    assert set(table[~table.id.isin(waiting)].verdict) == {"reproduced"}
    assert (table[table.id.isin(waiting)].here == "").all()
    assert (table[table.id.isin(waiting)].why != "").all()


def test_a_claim_no_chapter_produces_fails_the_scorecard(tmp_path):
    path = everything(tmp_path / "claims.jsonl", skip=["iso-lp"])
    with pytest.raises(
        ValueError, match=r"every claim needs a finding from its chapter; got \['iso-lp \(chapter 12\)'\]"
    ):
        scorecard(path)


def test_a_difference_without_a_reason_fails_the_scorecard(tmp_path):
    path = everything(tmp_path / "claims.jsonl", skip=["kv-qwen3-8b"])
    with path.open("a") as file:
        file.write('\n{"id": "kv-qwen3-8b", "value": 9.0, "interval": null}\n')
    with pytest.raises(ValueError, match=r"needs a `why` in data/claims.toml; got \['kv-qwen3-8b'\]"):
        scorecard(path)


def test_broken_findings_and_claims_are_named(tmp_path):
    path = tmp_path / "claims.jsonl"
    path.write_text('{"id": "iso-lp", "value": 1, "interval": null}\n{"id": ')
    with pytest.raises(ValueError, match=r"claims.jsonl line 2: not a finding"):
        read_findings(path)
    toml = tmp_path / "claims.toml"
    toml.write_text('[[claim]]\nid = "a"\npublsihed = 1\n')
    with pytest.raises(ValueError, match=r"claims.toml: claim 'a': .*publsihed"):
        load_claims(toml)
    entry = '[[claim]]\nid = "a"\nchapter = "10"\nwhere = "w"\nstatement = "s"\npublished = 1\n'
    toml.write_text(entry + entry)
    with pytest.raises(ValueError, match="claim ids must be unique; got 'a'"):
        load_claims(toml)


def test_a_claim_has_a_chapter_or_says_what_it_needs(tmp_path):
    toml = tmp_path / "claims.toml"
    entry = '[[claim]]\nid = "a"\nwhere = "w"\nstatement = "s"\npublished = 1\n'
    for more in ("", 'chapter = "10"\nneeds = "traces"\n'):
        toml.write_text(entry + more)
        with pytest.raises(ValueError, match="claim 'a' must have either a chapter or what it needs"):
            load_claims(toml)
    toml.write_text(entry + 'needs = "traces"\n')
    assert load_claims(toml)["a"].needs == "traces"
    waiting = next(c.id for c in load_claims().values() if c.needs)
    with pytest.raises(ValueError, match="nobody can check yet"):
        record(waiting, 1.0)


def test_claims_belong_to_chapters_that_exist():
    from pathlib import Path

    chapters = {path.name[:2] for path in (Path(__file__).parent.parent / "notebooks").glob("*.ipynb")}
    assert {c.chapter for c in load_claims().values() if not c.needs} <= chapters


def test_findings_make_a_table_for_a_chapter():
    table = claims.table([record("iso-lp", 28.6), record("kv-qwen3-8b", 4.5)])
    page = table._repr_html_()
    assert page.count("<tr") == 3
    assert '<strong class="kl-differs">differs</strong><br><small>14B has 3.5' in page
    assert '<strong class="kl-reproduced">reproduced</strong></td>' in page
    assert '<td data-label="published: ">24 K tokens</td><td data-label="here: ">28.6 K tokens</td>' in page
    assert repr(table).splitlines()[1].endswith("published 4.5 GiB, here 4.5 GiB: reproduced")


def test_groups_get_their_headings_and_text_is_escaped():
    finding = Finding(Claim(id="x", chapter="1", where="a < b", statement="<i>", published=1.0), 1.0)
    page = claims.to_html({"<a>Chapter</a>": [finding]})
    assert '<th colspan="4"><a>Chapter</a></th>' in page
    assert "&lt;i&gt;<br><small>a &lt; b</small>" in page


def test_every_claim_of_the_chart_has_a_short_title_of_its_own():
    titles = [c.title for c in load_claims().values() if c.chapter and (c.title or len(c.statement) > 40)]
    assert all(0 < len(title) <= 30 for title in titles), titles
    assert len(set(titles)) == len(titles)


def test_no_interval_reaches_down_to_nothing():
    """What lies between 0 and the largest value found contains every smaller number: no test."""
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        for cell in read_notebook(path).cells:
            assert not re.search(r"record\([^\n]*\(0,", cell.source), path


def test_every_verdict_has_a_colour_and_can_be_chosen():
    style = (ROOT / "book" / "_static" / "kinetics.css").read_text(encoding="utf-8")
    for verdict in VERDICTS:
        assert f'option[value="is-{verdict.split()[0]}"]:checked' in style
    page = to_html({"": [Finding(claim(headline=True, untestable="why"), 12.0), Finding(claim(), 10.0)]})
    assert '<tr class="kl-headline kl-is-not">' in page
    assert '<tr class="kl-arithmetic kl-is-reproduced">' in page
    assert "<small>why</small>" in page
