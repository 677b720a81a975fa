"""The scorecard: every published number the book touches, beside what its chapters find.

``data/claims.toml`` holds the claims as published. A chapter hands its own value over with :func:`record`;
a run folder keeps it as one JSON line; :func:`scorecard` joins the two and fails where one is missing.
"""

from __future__ import annotations

import html
import json
import math
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinetics_lab.data import data_path
from kinetics_lab.errors import lookup, require
from kinetics_lab.files import read_text

if TYPE_CHECKING:
    import pandas as pd

VERDICTS = "reproduced", "consistent", "in range", "differs", "not testable", "needs data"
#: Where a verdict has its reason.
REASONS = {"differs": "why", "needs data": "needs", "not testable": "untestable"}
CODE = partial(re.compile("`(.+?)`").sub, r"<code>\1</code>")  # of text, what stands in backticks
CONFIDENCE = ("bootstrap", "t-interval")  # how the names of confidence intervals begin


@dataclass(frozen=True)
class Claim:
    """One published number: ``tolerance`` is relative, ``atol`` absolute, ``why`` explains a difference.

    ``shown`` stands for a published value that is no number ("negligible"), with its unit. ``needs``: what is missing
    where no chapter can check the number yet. ``derived``: it follows from printed ones and is not printed itself.
    ``interval``: what our interval is. ``untestable``: why nothing could contradict it. ``headline``: no mere arithmetic.
    """

    id: str
    where: str
    statement: str
    published: float
    chapter: str = ""
    unit: str = ""
    tolerance: float = 0.01
    atol: float = 0.0
    why: str = ""
    shown: str = ""
    needs: str = ""
    derived: bool = False
    interval: str = ""
    untestable: str = ""
    headline: bool = False
    title: str = ""


@dataclass(frozen=True)
class Finding:
    """What a chapter found for a claim, with an interval where there is one; no value for what needs data."""

    claim: Claim
    value: float | None
    interval: tuple[float, float] | None = None

    @property
    def status(self) -> str:
        """One of ``VERDICTS``; only a confidence interval makes a number consistent, a range over choices is weaker."""
        if self.value is None:
            return "needs data"
        claim, (low, high) = self.claim, self.interval or (math.inf, -math.inf)
        if abs(self.value - claim.published) <= max(claim.tolerance * abs(claim.published), claim.atol):
            return "reproduced"
        if claim.untestable:
            return "not testable"
        held = "consistent" if claim.interval.startswith(CONFIDENCE) else "in range"
        return held if low <= claim.published <= high else "differs"

    @property
    def row(self) -> dict[str, Any]:
        claim, found = self.claim, "" if self.value is None else number(self.value)
        if self.interval:
            found += f" [{number(self.interval[0], 4)}, {number(self.interval[1], 4)}]"
        return {
            "claim": claim.statement,
            "where": claim.where + "; follows from it" * claim.derived,
            "published": claim.shown or f"{number(claim.published)} {claim.unit}".strip(),
            "here": f"{found} {claim.unit}".strip() if found else "",
            "verdict": self.status,
            "interval": claim.interval if self.interval else "",
            "why": getattr(claim, REASONS.get(self.status, ""), ""),
            "group": "headline" if claim.headline else "arithmetic",
            "chapter": claim.chapter,
            "id": claim.id,
            "derived": claim.derived,
        }


def number(value: float, most: int = 6) -> str:
    """A number in the book's tables: as it is if ``most`` digits say it exactly, else four significant digits."""
    digits = most if float(f"{value:.6g}") == value else 4
    if value == 0 or 1e-4 <= abs(value) < 1e7:
        decimals = digits - 1 - math.floor(math.log10(abs(value))) if value else 0
        text = f"{value:,.{max(decimals, 0)}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{value:.3g}"


def load_claims(path: str | Path | None = None) -> dict[str, Claim]:
    """All claims by id; ``ValueError`` naming the entry for a field that is unknown or missing."""
    path = Path(path) if path else data_path("claims")
    claims: dict[str, Claim] = {}
    for entry in tomllib.loads(read_text(path, 1)).get("claim", []):
        try:
            claim = Claim(**entry)
        except TypeError as error:
            raise ValueError(f"{path}: claim {entry.get('id', '?')!r}: {error}") from None
        require(claim.id not in claims, f"{path}: claim ids must be unique", claim.id)
        one = f"{path}: claim {claim.id!r} must have either a chapter or what it needs"
        require(bool(claim.chapter) != bool(claim.needs), one, (claim.chapter, claim.needs))
        claims[claim.id] = claim
    return claims


def record(id: str, value: float, interval: tuple[float, float] | None = None) -> Finding:
    """Hand a number to the scorecard; in a run (``KINETICS_RUN_DIR``) it is kept in ``claims.jsonl``.

    Raises ``ValueError`` for an unknown id, a value that is not finite, or an interval that excludes it.
    """
    claim = lookup(load_claims(), id, "claim")
    require(not claim.needs, f"claim {id!r} is listed as one that nobody can check yet", claim.needs)
    found = _finding(claim, value, interval)
    told = found.interval is None or bool(claim.interval)
    require(told, f"claim {id!r} must say in data/claims.toml what its interval is", found.interval)
    if run := os.environ.get("KINETICS_RUN_DIR"):
        line = json.dumps({"id": id, "value": found.value, "interval": found.interval})
        with (Path(run) / "claims.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    return found


def _finding(claim: Claim, value: Any, interval: Any) -> Finding:
    """A finding whose value is finite and lies in its interval, where it has one."""
    ends = (value, value) if interval is None else tuple(interval)
    real = len(ends) == 2 and not any(x is None or isinstance(x, bool | str) for x in (value, *ends))
    rule = f"claim {claim.id!r}: value and both ends of its interval must be numbers"
    require(real, rule, (value, interval))
    value, low, high = float(value), float(ends[0]), float(ends[1])
    require(math.isfinite(value), f"claim {claim.id!r}: value must be finite", value)
    require(low <= value <= high, f"claim {claim.id!r}: interval must contain the value {value}", (low, high))
    return Finding(claim, value, None if interval is None else (low, high))


class FindingTable(list[Finding]):
    """Findings that a notebook shows as a table: claim and place, published, here, verdict and reason."""

    def _repr_html_(self) -> str:
        return to_html({"": self})

    def __repr__(self) -> str:
        line = "{claim}: published {published}, here {here}: {verdict}"
        return "\n".join(line.format(**finding.row) for finding in self)


table = FindingTable


def to_html(groups: Mapping[str, Iterable[Finding]]) -> str:
    """One HTML table of findings, a heading (HTML; none where empty) above each group, each remark once; rows bear verdict and group."""
    bodies = []
    for heading, findings in groups.items():
        lines, said = [f'<tr class="kl-group"><th colspan="4">{heading}</th></tr>'] * bool(heading), heading
        for finding in findings:
            row = {name: CODE(html.escape(str(text))) for name, text in finding.row.items()}
            why, said = row["why"] * (row["why"] != said), row["why"] or said
            notes = "".join(f"<br><small>{text}</small>" for text in (row["interval"], why) if text)
            verdict = row["verdict"].split()[0]
            cells = [
                f"<td>{row['claim']}<br><small>{row['where']}</small></td>",
                *(f'<td data-label="{name}: ">{row[name]}</td>' for name in ("published", "here")),
                f'<td><strong class="kl-{verdict}">{row["verdict"]}</strong>{notes}</td>',
            ]
            lines.append(f'<tr class="kl-{row["group"]} kl-is-{verdict}">{"".join(cells)}</tr>')
        bodies.append(f"<tbody>{''.join(lines)}</tbody>")
    head = "<tr><th>claim</th><th>published</th><th>here</th><th>verdict</th></tr>"
    return f'<table class="dataframe kl-claims"><thead>{head}</thead>{"".join(bodies)}</table>'


def read_findings(path: str | Path) -> dict[str, Finding]:
    """Findings of a ``claims.jsonl``, and the claims that need data; of several lines for one the last counts."""
    claims = load_claims()
    findings = {claim.id: Finding(claim, None) for claim in claims.values() if claim.needs}
    for i, line in enumerate(read_text(path).splitlines(), 1):
        try:
            entry = json.loads(line)
            claim = lookup(claims, entry["id"], "claim")
            findings[claim.id] = _finding(claim, entry["value"], entry["interval"])
        except (json.JSONDecodeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{path} line {i}: not a finding ({error})") from None
    return findings


def scorecard(path: str | Path) -> pd.DataFrame:
    """Every claim beside its finding; ``ValueError`` where a claim has none, or differs and does not say why."""
    import pandas as pd

    claims, findings = load_claims(), read_findings(path)
    missing = [f"{id} (chapter {claim.chapter})" for id, claim in claims.items() if id not in findings]
    require(not missing, "every claim needs a finding from its chapter", missing)
    silent = [f.claim.id for f in findings.values() if f.status == "differs" and not f.claim.why]
    require(not silent, "every claim that differs needs a `why` in data/claims.toml", silent)
    return pd.DataFrame([findings[id].row for id in claims])
