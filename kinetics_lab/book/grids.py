"""The grid of a sweep: a YAML file that says which notebook runs with which parameters, as a list of points.

::

    notebook: notebooks/14_which_hardware_which_precision.ipynb
    fixed: {n_trials: 1}                                 # the same at every point
    axes:                                                # every combination of these
      hardware: [h100, h200]
      n_out: {from: 1024, to: 16384, factor: 2}          # or step: 1024; both ends included
    zip:                                                 # axes of one group move together
      - {model: [qwen3-8b, qwen3-32b], budget: [512, 1024]}
    exclude:                                             # points with all of these values
      - {hardware: h100, n_out: 16384}
    show: seconds                                        # the result's column that the summary draws
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinetics_lab.book.parameters import check_parameters, yaml_loader
from kinetics_lab.book.runs import project_root
from kinetics_lab.errors import among

SECTIONS = ("notebook", "fixed", "axes", "zip", "exclude", "show")
MOST_POINTS = 100_000
RANGE = "a range reads {from: 1, to: 9, step: 2} or {from: 1, to: 16, factor: 2}"


@dataclass(frozen=True)
class Grid:
    """A grid read and checked: ``axes`` are the values by parameter, ``points`` the parameters of each run."""

    path: Path
    notebook: Path
    axes: dict[str, list[Any]]
    points: list[dict[str, Any]]
    show: str | None = None


def read_grid(path: Path | str) -> Grid:
    """The grid of a YAML file, its parameters checked against the notebook's own.

    The notebook's path counts from the working folder, else from the grid file's folder or its project's. Raises
    FileNotFoundError, or ValueError naming the file, the line and what would be right.
    """
    path = Path(path)
    spec, lines = _load(path)
    for section in spec:
        among(SECTIONS, section, f"{path} line {lines[section,]}: section")
    reader = _Reader(path, lines, _notebook(path, spec.get("notebook")))
    fixed = reader.mapping(spec, "fixed")
    fixed = {name: reader.value(name, value, ("fixed", name)) for name, value in fixed.items()}
    groups, axes = reader.groups(spec), dict[str, list[Any]]()
    for where, group in groups:
        for name, values in group.items():
            if name in fixed or name in axes:
                raise ValueError(f"{reader.at((*where, name))}: parameter {name!r} is given twice")
            axes[name] = values
    total = math.prod(len(next(iter(group.values()))) for _, group in groups) if groups else 0
    if not total:
        raise ValueError(f"{path} has no points: give it `axes` (one run alone is `kinetics-lab run`)")
    if total > MOST_POINTS:
        raise ValueError(f"{path} has {total:,} points; at most {MOST_POINTS:,} make a sweep")
    steps = (
        [dict(zip(group, row, strict=True)) for row in zip(*group.values(), strict=True)]
        for _, group in groups
    )
    points = [
        fixed | dict(itertools.chain(*(step.items() for step in row))) for row in itertools.product(*steps)
    ]
    points = reader.without_excluded(spec, points)
    seen: dict[str, int] = {}
    for number, point in enumerate(points, 1):
        if (first := seen.setdefault(canonical(point), number)) != number:
            raise ValueError(f"{path}: points {first} and {number} are the same: {brief(point, axes)}")
    show = spec.get("show")
    if show is not None and not isinstance(show, str):
        raise ValueError(f"{reader.at(('show',))}: `show` names a column of the result; got {show!r}")
    return Grid(path, reader.notebook, axes, points, show)


def canonical(value: Any) -> str:
    """A value as text, the same for equal values: 1 and 1.0 are, 1 and true are not."""

    def number(text: str) -> float:
        return int(float(text)) if float(text).is_integer() else float(text)

    return json.dumps(json.loads(json.dumps(value), parse_float=number), sort_keys=True)


def brief(parameters: Mapping[str, Any], names: Any) -> str:
    """Some of a point's parameters as ``name=value`` words."""
    words = {name: parameters[name] for name in names}
    return " ".join(f"{n}={v if isinstance(v, str) else json.dumps(v)}" for n, v in words.items())


def _load(path: Path) -> tuple[dict[str, Any], dict[tuple[Any, ...], int]]:
    """The file's content, and the line of every key and item by its place, ("axes", "n_out") say."""
    import yaml

    if not path.is_file():
        raise FileNotFoundError(f"there is no grid file {path}")

    lines: dict[tuple[Any, ...], int] = {}

    def walk(node: Any, where: tuple[Any, ...]) -> None:
        children = node.value if isinstance(node.value, list) else []
        for i, child in enumerate(children):
            key, value = child if isinstance(child, tuple) else (child, child)
            place = (*where, key.value if isinstance(child, tuple) else i)
            if isinstance(key.value, list) and isinstance(child, tuple):
                continue  # no parameter has such a name
            line = key.start_mark.line + 1
            if place in lines:
                raise ValueError(f"{path} line {line}: {key.value!r} is given twice")
            lines[place] = line
            walk(value, place)

    try:
        loader = yaml_loader()(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if node is not None:
            walk(node, ())
        spec = loader.construct_document(node) if node is not None else None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(spec, dict):
        raise ValueError(f"{path} must map sections ({', '.join(SECTIONS)}) to their content")
    return spec, lines


def _notebook(path: Path, given: Any) -> Path:
    """The notebook that the grid names."""
    if not isinstance(given, str):
        raise ValueError(f"{path} must name its notebook, `notebook: notebooks/NN_name.ipynb`; got {given!r}")
    folders = [Path(), path.parent, project_root(path)]
    found = next((folder / given for folder in folders if (folder / given).is_file()), None)
    if found is None:
        places = list(dict.fromkeys(str(folder) for folder in folders))
        raise FileNotFoundError(f"{path}: there is no notebook {given}, counted from {' or '.join(places)}")
    return found


class _Reader:
    """What checks sections of one grid file against its notebook."""

    def __init__(self, path: Path, lines: dict[tuple[Any, ...], int], notebook: Path) -> None:
        self.path, self.lines, self.notebook = path, lines, notebook

    def at(self, where: tuple[Any, ...]) -> str:
        """File and line, for a message."""
        return f"{self.path} line {self.lines[where]}"

    def mapping(self, spec: Mapping[str, Any], section: str) -> dict[str, Any]:
        content = spec.get(section)
        if content is None:
            return {}
        if not isinstance(content, dict):
            raise ValueError(f"{self.at((section,))}: `{section}` maps names to values; got {content!r}")
        return content

    def value(self, name: str, value: Any, where: tuple[Any, ...]) -> Any:
        """One value of one parameter, as the notebook takes it."""
        try:
            json.dumps(value)
        except TypeError:
            rule = "takes numbers, texts, true, false, null and lists or mappings of them"
            raise ValueError(f"{self.at(where)}: a parameter {rule}; got {value!r} for {name!r}") from None
        return check_parameters(self.notebook, {name: value}, self.at(where))[name]

    def values(self, name: str, given: Any, where: tuple[Any, ...]) -> list[Any]:
        """The values of an axis, written as a list or as a range."""
        values = _range(given, self.at(where)) if isinstance(given, dict) else given
        if not isinstance(values, list):
            raise ValueError(f"{self.at(where)}: axis {name!r} must be a list, or {RANGE[2:]}; got {given!r}")
        if not values:
            raise ValueError(f"{self.at(where)}: axis {name!r} has no values, so the grid has no points")
        return [self.value(name, value, where) for value in values]

    def groups(self, spec: Mapping[str, Any]) -> list[tuple[tuple[Any, ...], dict[str, list[Any]]]]:
        """Axes in groups that move together, each with its place; an axis of its own is a group of one."""
        axes = self.mapping(spec, "axes")
        found: list[tuple[tuple[Any, ...], dict[str, list[Any]]]] = [
            (("axes",), {name: self.values(name, given, ("axes", name))}) for name, given in axes.items()
        ]
        groups = spec.get("zip") or []
        if not isinstance(groups, list) or not all(isinstance(group, dict) and group for group in groups):
            raise ValueError(
                f"{self.at(('zip',))}: `zip` is a list of groups of axes, - {{a: [1, 2], b: [3, 4]}}"
            )
        for i, group in enumerate(groups):
            where = ("zip", i)
            together = {name: self.values(name, given, (*where, name)) for name, given in group.items()}
            lengths = {name: len(values) for name, values in together.items()}
            if len(set(lengths.values())) > 1:
                told = ", ".join(f"{name} has {length}" for name, length in lengths.items())
                raise ValueError(f"{self.at(where)}: axes that move together must be equally long; {told}")
            found.append((where, together))
        return found

    def without_excluded(self, spec: Mapping[str, Any], points: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The points that no rule of `exclude` matches; a rule that matches none is an error."""
        rules = spec.get("exclude") or []
        if not isinstance(rules, list) or not all(isinstance(rule, dict) and rule for rule in rules):
            raise ValueError(f"{self.at(('exclude',))}: `exclude` is a list of rules, - {{a: 1, b: x}}")
        for i, rule in enumerate(rules):
            for name in rule:
                among(points[0], name, f"{self.at(('exclude', i, name))}: the grid's parameter")
            values = {name: self.value(name, value, ("exclude", i, name)) for name, value in rule.items()}
            wanted = {name: canonical(value) for name, value in values.items()}
            kept = [p for p in points if any(canonical(p[name]) != text for name, text in wanted.items())]
            if len(kept) == len(points):
                raise ValueError(
                    f"{self.at(('exclude', i))}: the rule {brief(values, values)} excludes no point"
                )
            if not kept:
                raise ValueError(f"{self.at(('exclude', i))}: with this rule the grid has no points")
            points = kept
        return points


def _range(spec: Mapping[str, Any], where: str) -> list[int | float]:
    """Values of an arithmetic or a geometric range, both ends included where they are met."""
    numbers = [
        value for value in spec.values() if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    if (
        set(spec) not in ({"from", "to", "step"}, {"from", "to", "factor"})
        or len(numbers) < 3
        or not all(map(math.isfinite, numbers))
    ):
        raise ValueError(f"{where}: {RANGE}; got {dict(spec)!r}")
    start, stop = spec["from"], spec["to"]
    by, geometric = (spec["factor"], True) if "factor" in spec else (spec["step"], False)
    if geometric:
        if start <= 0 or stop <= 0 or by <= 0 or by == 1:
            raise ValueError(
                f"{where}: with a factor, from, to and factor are above 0 and factor is not 1; got {dict(spec)!r}"
            )
        steps = math.log(stop / start) / math.log(by)
    else:
        if not by:
            raise ValueError(f"{where}: step must not be 0; got {dict(spec)!r}")
        steps = (stop - start) / by
    if steps < -1e-9:
        raise ValueError(
            f"{where}: the range leads away from its end, so the grid has no points; got {dict(spec)!r}"
        )
    if steps >= MOST_POINTS:
        raise ValueError(
            f"{where}: the range has {steps + 1:,.0f} values; at most {MOST_POINTS:,} make a sweep"
        )
    values = [start * by**i if geometric else start + by * i for i in range(int(steps + 1e-9) + 1)]
    return [value if isinstance(value, int) else float(f"{value:.12g}") for value in values]
