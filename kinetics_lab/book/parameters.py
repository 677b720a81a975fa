"""A notebook's parameters: what its cell tagged ``parameters`` declares, and values for it from a YAML file."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kinetics_lab.errors import among


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


def declared_parameters(notebook: Path | str) -> dict[str, Any]:
    """Names and defaults assigned in the notebook's first cell tagged ``parameters``; empty when it has none.

    A default that is not a literal is given as its source text.
    """
    tagged = (c for c in read_notebook(notebook).cells if "parameters" in c.metadata.get("tags", []))
    cell = next(tagged, None)
    try:
        tree = ast.parse(cell.source if cell else "")
    except SyntaxError as error:
        raise ValueError(
            f"{notebook}: the parameters cell is not Python: line {error.lineno}: {error.msg}"
        ) from error
    declared: dict[str, Any] = {}
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        for target in targets:
            if isinstance(target, ast.Name) and isinstance(value, ast.expr):
                try:
                    declared[target.id] = ast.literal_eval(value)
                except ValueError:
                    declared[target.id] = ast.unparse(value)
    return declared


def check_parameters(notebook: Path | str, parameters: Mapping[str, Any], source: str = "") -> dict[str, Any]:
    """The parameters, each declared by the notebook and of its default's kind; whole floats become ints for ints.

    Raises ValueError naming the parameter, the notebook, the declared names and ``source`` (a file, say).
    """
    declared, prefix = declared_parameters(notebook), f"{source}: " if source else ""
    checked = {}
    for name, value in parameters.items():
        names = ", ".join(declared) or "no parameters"
        among(declared, name, f"{prefix}{Path(notebook).name} declares {names}; parameter")
        default = declared[name]
        if type(default) is int and isinstance(value, float) and value.is_integer():
            value = int(value)
        kind = next((k for k in (bool, int, float, str, list, dict) if isinstance(default, k)), object)
        right = isinstance(value, (int, float) if kind is float else kind)
        if not right or (isinstance(value, bool) and kind in (int, float)):
            raise ValueError(
                f"{prefix}parameter {name!r} of {Path(notebook).name} takes {kind.__name__} "
                f"(default {default!r}); got {value!r}"
            )
        checked[name] = value
    return checked


def yaml_loader() -> Any:
    """A loader class of YAML 1.1, but that 1e5 is a number and not a word."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    float_tag, digits = "tag:yaml.org,2002:float", list("-+0123456789")
    Loader.add_implicit_resolver(float_tag, re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), digits)
    return Loader


def read_parameters(params_file: Path | str | None, notebooks: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Parameters per notebook stem from a YAML file with a ``common:`` section and one per stem.

    A ``common`` value goes to every notebook that declares the name; a notebook's own section wins. ``notebooks``
    are all that the file may speak of. Raises ValueError naming the file and the section or name at fault.
    """
    import yaml

    if params_file is None:
        return {path.stem: {} for path in notebooks}
    if not Path(params_file).is_file():
        raise FileNotFoundError(f"there is no parameter file {params_file}")
    try:
        sections = yaml.load(Path(params_file).read_text(encoding="utf-8"), yaml_loader()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{params_file} is not YAML: {' '.join(str(error).split())}") from error
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
