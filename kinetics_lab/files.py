"""Files written whole or not at all, folders locked, YAML read: what every room writes and reads with."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from filelock import FileLock, Timeout

from kinetics_lab.errors import report

if TYPE_CHECKING:
    import pandas as pd

MOST_VALUES = 1_000_000  # of a YAML file, its aliases written out
MOST_MIB = 16  # of a file that is read whole; 1 of TOML and of YAML, which takes eight seconds


@contextmanager
def at_path(path: Path) -> Iterator[None]:
    """Make an OSError from within name a file: a full disk shows when buffers are written, and then without one."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Let ``write`` fill a file beside ``path`` and rename it: the file is whole or not there. OSError names the path.

    The file beside is new and has a name that nobody can guess, so nothing is written through a link that waits there.
    """
    part = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    try:
        with at_path(path):
            os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            write(part)
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


@contextmanager
def opened(path: Path | str) -> Iterator[BinaryIO]:
    """A file to read its bytes; ValueError where another process writes into it meanwhile."""
    with Path(path).open("rb") as file:
        before = os.fstat(file.fileno())
        yield file
        after = os.fstat(file.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise ValueError(f"{path} changed while it was read; give it when it is whole")


def read_text(path: Path | str, most: int = MOST_MIB) -> str:
    """The whole of a text file in UTF-8; ValueError for another encoding, and beyond ``most`` MiB, which memory is spared."""
    if Path(path).exists() and not Path(path).is_file():
        raise ValueError(f"{path} must be a file; a folder, pipe or device is not read")
    with opened(path) as file:
        content = file.read((most << 20) + 1)
    if len(content) > most << 20:
        raise ValueError(f"{path} has more than {most} MiB, the most that is read of a file of its kind")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from None


def write_text(path: Path, text: str) -> Path:
    """Write a text file in UTF-8, whole or not at all; returns the path."""
    return write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_table(path: Path, table: pd.DataFrame) -> Path:
    """Write a table without its index as Parquet, whole or not at all; returns the path."""
    return write_whole(path, lambda part: part.write_bytes(table.to_parquet(index=False)))


@contextmanager
def locked(path: Path, busy: Exception | None = None) -> Iterator[None]:
    """Hold the file's lock: of two processes the second waits and then finds the work done, or is told ``busy``.

    Who holds it is told. The system lets go of the lock of a process that ends, however it ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if busy:
            raise type(busy)(f"{busy}{holder(path)}") from None
        if other := holder(path):
            report(f"waiting for another process{other}")
        lock.acquire()
    with lock:
        lock.release()  # the second of the two that are held now
        yield


def sole_writer(path: Path) -> AbstractContextManager[None]:
    """Hold a file or folder, to be replaced, alone; FileExistsError where another process does, which it names."""
    busy = FileExistsError(f"another process writes {path}; wait for it or give another place")
    return locked(path.with_name(f".{path.name}.lock"), busy)


def holder(path: Path) -> str:
    """The other process that holds a file's lock, as far as the system tells: " (123: kinetics-lab run ...)"."""
    try:
        inode = path.stat().st_ino
        held = (line.split() for line in Path("/proc/locks").read_text(encoding="ascii").splitlines())
        pids = [w[4] for w in held if w[1] == "FLOCK" and int(w[5].rpartition(":")[2]) == inode]
        pid = next(pid for pid in pids if int(pid) not in (0, os.getpid()))
        words = Path("/proc", pid, "cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
        return f" ({pid}: {' '.join(words).strip()[:200]})"
    except (OSError, ValueError, IndexError, StopIteration):
        return ""


def is_ours(folder: Path, record: str, kind: str) -> bool:
    """Whether a folder may be written to: not there, empty, or its JSON file ``record`` says that it is of this kind."""
    if folder.is_symlink():
        return False
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if all(name == ".lock" or re.fullmatch(rf"{re.escape(record)}(\.\w+)?\.part", name) for name in names):
        return True  # all there is when killed at the start
    try:
        return bool(json.loads(read_text(folder / record))["kind"] == kind)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def yaml_loader() -> Any:
    """A loader class of YAML 1.1, but that 1e5 is a number, a date is a text, and no name is given twice."""
    import yaml

    def refuse(node: Any, wrong: Iterable[str]) -> None:
        for told in wrong:
            raise yaml.constructor.ConstructorError(problem=told, problem_mark=node.start_mark)

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            refuse(node, (f"{name!r} is given twice" for name, count in names.items() if count > 1))
            made = super().construct_mapping(node, deep)
            refuse(node, (f"a name must be text; got {key!r}" for key in made if not isinstance(key, str)))
            return made

        def construct_document(self, node: Any) -> Any:
            sizes: dict[int, float] = {}  # of what a node stands for once its aliases are written out

            def size(node: Any) -> float:
                if id(node) not in sizes:
                    sizes[id(node)] = math.inf  # until it is known: a node within itself
                    inner = node.value if isinstance(node, yaml.CollectionNode) else []
                    parts = chain(*inner) if isinstance(node, yaml.MappingNode) else inner
                    sizes[id(node)] = 1 + sum(map(size, parts))
                return sizes[id(node)]

            told = f"with its aliases written out it has more than {MOST_VALUES:,} values"
            refuse(node, [told] if size(node) > MOST_VALUES else [])
            return super().construct_document(node)

    float_tag, digits = "tag:yaml.org,2002:float", list("-+0123456789")
    Loader.yaml_implicit_resolvers = {
        first: [rule for rule in rules if not rule[0].endswith(":timestamp")]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver(float_tag, re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), digits)
    return Loader


def read_yaml(path: Path | str, what: str) -> Any:
    """The content of a YAML file, which an error calls ``what``. Raises FileNotFoundError, or ValueError with the path."""
    import yaml

    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no {what} {path}")
    try:
        return yaml.load(read_text(path, 1), yaml_loader())
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
