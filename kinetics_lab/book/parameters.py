"""What a notebook declares, its parameters above all, and values for them from YAML: of one run, or a grid of many.

A grid::

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

import ast
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from threading import Lock
from typing import Any

from kinetics_lab.errors import MOST, among, require
from kinetics_lab.files import read_yaml, yaml_loader

# of a grid
SECTIONS = {"notebook": str, "fixed": dict, "axes": dict, "zip": list, "exclude": list, "show": str}
LOOKS = {str: "is one text", dict: "maps names to values", list: "is a list of mappings, - {a: [1, 2]}"}
RANGE = "a range reads {from: 1, to: 9, step: 2} or {from: 1, to: 16, factor: 2}, and leads to its end"
MOST_POINTS = 100_000


@dataclass(frozen=True)
class Grid:
    """A grid read and checked: ``axes`` are the values by parameter, ``points`` the parameters of each run."""

    notebook: Path
    axes: dict[str, list[Any]]
    points: list[dict[str, Any]]
    show: str = ""


_PARSING = Lock()


def parsed(source: str) -> ast.Module:
    """The syntax tree, one at a time: CPython 3.11 counts nesting for all threads together and fails where two parse."""
    with _PARSING:
        return ast.parse(source)


def read_notebook(path: Path | str) -> Any:
    """The notebook as nbformat's node (version 4). Raises FileNotFoundError, or ValueError if it is not a notebook."""
    import nbformat

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no notebook {path}")
    try:
        return nbformat.read(path, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is not a Jupyter notebook: {error}") from error


def project_root(path: Path | str) -> Path:
    """Nearest folder above ``path`` with a ``pyproject.toml`` or ``_config.yml``, else the file's own folder."""
    above = Path(path).resolve().parents
    marks = "pyproject.toml", "_config.yml"
    return next((folder for folder in above if any((folder / mark).exists() for mark in marks)), above[0])


def declared_parameters(notebook: Path | str) -> dict[str, Any]:
    """Names and defaults assigned in the notebook's first cell tagged ``parameters``; empty when it has none.

    A default that is not a literal is given as its source text.
    """
    tagged = (c for c in read_notebook(notebook).cells if "parameters" in c.metadata.get("tags", []))
    cell = next(tagged, None)
    try:
        return assigned(cell.source if cell else "")
    except SyntaxError as error:
        raise ValueError(
            f"{notebook}: the parameters cell is not Python: line {error.lineno}: {error.msg}"
        ) from error


def assigned(source: str) -> dict[str, Any]:
    """What the source's plain assignments give, name to value, or to its text where it is no literal."""
    found: dict[str, Any] = {}
    for node in parsed(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        for target in targets:
            if isinstance(target, ast.Name) and isinstance(value, ast.expr):
                try:
                    found[target.id] = ast.literal_eval(value)
                except ValueError:
                    found[target.id] = ast.unparse(value)
    return found


def check_parameters(notebook: Path | str, parameters: Mapping[str, Any], source: str = "") -> dict[str, Any]:
    """The parameters, each declared by the notebook and of its default's kind; whole floats become ints for ints.

    Raises ValueError naming the parameter, the notebook, the declared names and ``source`` (a file, say).
    """
    declared, prefix = declared_parameters(notebook), f"{source}: " if source else ""
    return {
        name: checked(Path(notebook).name, declared, name, value, prefix)
        for name, value in parameters.items()
    }


def checked(notebook: str, declared: Mapping[str, Any], name: str, value: Any, prefix: str) -> Any:
    """One value of one parameter, as :func:`check_parameters` has it."""
    names = ", ".join(declared) or "no parameters"
    among(declared, name, f"{prefix}{notebook} declares {names}; parameter")
    default = declared[name]
    if type(default) is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    kind = next((k for k in (bool, int, float, str, list, dict) if isinstance(default, k)), object)
    right = isinstance(value, (int, float) if kind is float else kind)
    if not right or (isinstance(value, bool) and kind in (int, float)):
        rule = f"{prefix}parameter {name!r} of {notebook} takes {kind.__name__} (default {default!r})"
        raise ValueError(f"{rule}; got {value!r}")
    return value


def scalar(text: str, name: str) -> Any:
    """The value that a file of parameters would give for the parameter's ``text``."""
    import yaml

    try:
        return yaml.load(text, yaml_loader())
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"parameter {name!r} must be YAML; got {text!r}") from error


def read_parameters(params_file: Path | str | None, notebooks: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Parameters per notebook stem from a YAML file with a ``common:`` section and one per stem.

    A ``common`` value goes to every notebook that declares the name; a notebook's own section wins. ``notebooks``
    are all that the file may speak of. Raises ValueError naming the file and the section or name at fault.
    """
    if params_file is None:
        return {path.stem: {} for path in notebooks}
    sections = read_yaml(params_file, "parameter file") or {}
    if not isinstance(sections, dict) or not all(isinstance(s, dict | None) for s in sections.values()):
        raise ValueError(
            f"{params_file} must map section names (common, or a notebook's) to name: value pairs"
        )
    declared = {path.stem: declared_parameters(path) for path in notebooks}
    for section in sections:
        among(["common", *declared], section, f"{params_file}: section")
    common = sections.get("common") or {}
    everything = sorted({name for names in declared.values() for name in names})
    for name in common:
        what = "no notebook declares a parameter of that name: common parameter"
        among(everything, name, f"{params_file}: {what}")
    parameters = {}
    for path in notebooks:
        shared = {name: value for name, value in common.items() if name in declared[path.stem]}
        values = shared | (sections.get(path.stem) or {})
        parameters[path.stem] = check_parameters(path, values, str(params_file))
    return parameters


def read_grid(path: Path | str) -> Grid:
    """The grid of a YAML file, its parameters checked against the notebook's own.

    The notebook's path counts from the working folder, else from the grid file's folder or its project's. Raises
    FileNotFoundError, or ValueError naming the file, the parameter and what would be right.
    """
    spec = _sections(path)
    places = [Path(folder, spec["notebook"]) for folder in ("", Path(path).parent, project_root(path))]
    notebook = next((place for place in places if place.is_file()), None)
    if notebook is None:
        raise FileNotFoundError(f"{path}: there is no notebook {' or '.join(map(str, places))}")

    declared = declared_parameters(notebook)

    def values(name: str, axis: Any) -> list[Any]:
        axis = _range(f"{path}: axis {name!r}", axis) if isinstance(axis, dict) else axis
        rule = f"{path}: axis {name!r} must be a list of values, or {RANGE[2:]}"
        require(isinstance(axis, list) and bool(axis), rule, axis)
        return [checked(notebook.name, declared, name, value, f"{path}: ") for value in axis]

    fixed = {name: values(name, [value])[0] for name, value in spec["fixed"].items()}
    groups = [{name: axis} for name, axis in spec["axes"].items()] + spec["zip"]
    groups = [{name: values(name, axis) for name, axis in group.items()} for group in groups]
    names = [*fixed, *chain(*groups)]
    require(len({*names}) == len(names), f"{path}: each parameter must be given once", names)
    lengths = [{name: len(axis) for name, axis in group.items()} for group in groups]
    uneven = next((each for each in lengths if len({*each.values()}) > 1), None)
    require(uneven is None, f"{path}: axes that move together must be equally long", uneven)
    total = math.prod(min(each.values()) for each in lengths) if groups else 0
    require(0 < total <= MOST_POINTS, f"{path}: `axes` must give 1 to {MOST_POINTS:,} points", total)
    steps = [[*zip(*([(name, v) for v in axis] for name, axis in g.items()), strict=True)] for g in groups]
    for rows in steps:
        seen: dict[str, Any] = {}
        for row in rows:
            same = seen.setdefault(json.dumps(row, default=str), row) is row
            require(same, f"{path}: points must differ", dict(row))
    points = [fixed | dict(chain(*row)) for row in product(*steps)]
    for given in spec["exclude"]:
        for name in given:
            among(names, name, f"{path}: `exclude`: the grid's parameter")
        rule = {name: values(name, [value])[0] for name, value in given.items()}
        kept = [point for point in points if any(point[name] != value for name, value in rule.items())]
        told = f"{path}: a rule of `exclude` must match some of the points, and not all"
        require(0 < len(kept) < len(points), told, given)
        points = kept
    return Grid(notebook, dict(chain(*(group.items() for group in groups))), points, spec["show"])


def _sections(path: Path | str) -> dict[str, Any]:
    """The file's content, every section of the right kind, empty where it is left out."""
    spec = read_yaml(path, "grid file")
    require(isinstance(spec, dict), f"{path} must map sections ({', '.join(SECTIONS)}) to content", spec)
    for section in spec:
        among(SECTIONS, section, f"{path}: section")
    for section, kind in SECTIONS.items():
        given = kind() if spec.get(section) is None else spec[section]
        parts = given if kind is list and isinstance(given, list) else []
        whole = isinstance(given, kind) and all(isinstance(each, dict) and each for each in parts)
        require(whole, f"{path}: `{section}` {LOOKS[kind]}", given)
        spec[section] = given
    rule = f"{path} must name its notebook, `notebook: notebooks/NN_name.ipynb`"
    require(bool(spec["notebook"]), rule, spec["notebook"])
    return dict(spec)


def _range(where: str, spec: Mapping[str, Any]) -> list[int | float]:
    """Values of an arithmetic or a geometric range, both ends included where they are met."""
    name = "factor" if "factor" in spec else "step"
    given: list[Any] = [spec.get("from"), spec.get("to"), spec.get(name)]
    numbers = [value for value in given if type(value) in (int, float) and abs(value) <= MOST]
    require(len(numbers) == len(spec) == 3, f"{where}: {RANGE}", spec)
    start, stop, by = numbers
    if name == "factor":
        rule = f"{where}: with a factor, from, to and factor are above 0 and factor is not 1"
        require(min(numbers) > 0 and by != 1, rule, spec)
        steps = math.log(stop / start) / math.log(by)
    else:
        require(by != 0, f"{where}: step must not be 0", spec)
        steps = (stop - start) / by
    require(-1e-9 < steps < MOST_POINTS, f"{where}: {RANGE}, in less than {MOST_POINTS:,} steps", spec)
    values = [start * by**i if name == "factor" else start + by * i for i in range(int(steps + 1e-9) + 1)]
    return [value if isinstance(value, int) else float(f"{value:.12g}") for value in values]
