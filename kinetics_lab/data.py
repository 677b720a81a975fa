"""The project's data files: ``data/MANIFEST.toml`` says what each is; a file that does not match is refused."""

from __future__ import annotations

import hashlib
import os
import tomllib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinetics_lab.errors import lookup

if TYPE_CHECKING:
    import pandas as pd

_HERE = Path(__file__).parent


def data_dir() -> Path:
    """The data folder: $KINETICS_DATA, the one packed into an installed wheel, or the checkout's."""
    if "KINETICS_DATA" in os.environ:
        return Path(os.environ["KINETICS_DATA"])
    packed = _HERE / "_data"
    return packed if packed.is_dir() else _HERE.parent / "data"


def manifest(folder: Path | None = None) -> dict[str, dict[str, Any]]:
    """All entries of the manifest, checked to have ``file``, ``sha256``, ``source`` and ``license``."""
    path = (folder or data_dir()) / "MANIFEST.toml"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; set KINETICS_DATA to the folder that holds MANIFEST.toml"
        )
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: not TOML ({error})") from None
    for name, entry in entries.items():
        for field in ("file", "sha256", "source", "license"):
            if field not in entry:
                raise ValueError(f"{path}: entry {name!r} has no {field!r}")
    return entries


@cache
def _sha256(path: Path, mtime_ns: int, size: int) -> str:  # the last two make a changed file a new question
    return hashlib.sha256(path.read_bytes()).hexdigest()


def data_path(name: str, folder: Path | None = None) -> Path:
    """Path of the data file called ``name``.

    Raises ``ValueError`` for a name the manifest does not list and for a file whose SHA-256 differs (both
    hashes are shown), ``FileNotFoundError`` where the file is absent.
    """
    folder = folder or data_dir()
    entry = lookup(manifest(folder), name, f"{folder / 'MANIFEST.toml'}: data file")
    path = folder / entry["file"]
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, though the manifest lists it as {name!r}")
    stat = path.stat()
    found = _sha256(path, stat.st_mtime_ns, stat.st_size)
    if found != entry["sha256"]:
        raise ValueError(
            f"{path} does not match the manifest: sha256 {found}, expected {entry['sha256']}; "
            "restore the file, or update the entry if the change is meant"
        )
    return path


def read_table(name: str, folder: Path | None = None) -> pd.DataFrame:
    """A CSV or Parquet data file as a DataFrame, its columns checked against the manifest."""
    import pandas as pd

    path = data_path(name, folder)
    table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    declared = manifest(folder)[name].get("columns", {})
    if list(declared) != list(table.columns):
        raise ValueError(f"{path} has columns {list(table.columns)}, the manifest says {list(declared)}")
    return table
