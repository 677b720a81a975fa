"""The models this package knows by name, and the one way from a name or a ``config.json`` to a shape."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from functools import lru_cache
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from kinetics_lab.cost.families import from_hf_config
from kinetics_lab.cost.shapes import ModelShape
from kinetics_lab.data import data_path
from kinetics_lab.errors import lookup

#: Values of each model's ``config.json``, by name, and its family; in ``data/models.toml`` "null" stands for null.
CONFIGS: dict[str, dict[str, Any]] = {
    name: {key: None if value == "null" else value for key, value in given.items()}
    for family, table in tomllib.loads(data_path("models").read_text(encoding="utf-8")).items()
    for name, values in table["models"].items()
    for given in [{"family": family, **table["all"], **values}]
}
#: Shapes by name, smallest first within a family.
MODELS: dict[str, ModelShape] = {
    name: replace(
        from_hf_config(values),
        name=name,
        family=values["family"],
        released_params=values.get("released_params"),
    )
    for name, values in CONFIGS.items()
}


def find_model(name: str | PathLike[str]) -> ModelShape:
    """The shape called ``name``: one of MODELS, or that of a Hugging Face ``config.json``, given by its path or its folder's.

    A shape from a file has the family "own" and is read anew when the file changes. Raises ``ValueError`` with
    the near matches for another name, ``FileNotFoundError`` for a missing file and for a folder without one.
    """
    name = fspath(name)
    path = Path(name)
    if path.is_dir() and name not in MODELS:
        path = path / "config.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{name} is a folder without a config.json; give a model's folder, or the file"
            )
    elif not name.endswith(".json"):
        return lookup(MODELS, name, "model")
    return _own_model(str(path), path.absolute(), path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _own_model(name: str, path: Path, changed: int) -> ModelShape:
    """The shape in a file that was changed at that time (ns); errors name it as it was given."""
    return replace(from_hf_config(name), family="own")
