"""The records of a file, one at a time: JSON lines, a JSON document, CSV, Parquet, Inspect's .eval, in bounded memory."""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import os
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from importlib import import_module
from itertools import chain, starmap
from lzma import LZMAError
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd

from kinetics_lab.traces.said import Record, shortened
from kinetics_lab.traces.table import COLUMNS, check_traces
from kinetics_lab.traces.trial import TraceFileError

LONGEST = 2**27  # bytes of what memory holds as a whole: a line, a cell, a document, a sample of an archive
#: Times its size in the file that a column may hold, if that is over 8 LONGEST; texts are packed 10 times.
PACKED = 100
MOST = 10_000_000  # trials: their table then takes about 1 GB
ENDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".eval")
Records = Iterator[tuple[int, Record | ValueError]]
_AS_LINES = (
    "which would have to be in memory; a document can be written as lines: jq -c '.[]' FILE > FILE.jsonl (Inspect's: inspect log "
    "convert --to eval)"
)
_DECODE = json.JSONDecoder().raw_decode


def paths_of(given: Any) -> list[Path]:
    """The files to read: as given, folders replaced by what they hold."""
    found: list[Path] = []
    for path in map(Path, [given] if isinstance(given, (str, os.PathLike)) else given):
        inside = [path]
        if path.is_dir():
            shut = list[OSError]()  # folders that may not be read: theirs would be missing without a word
            walked = os.walk(path, onerror=shut.append)
            files = (Path(top, name) for top, _, names in walked for name in names)
            inside = sorted(p for p in files if p.name.removesuffix(".gz").endswith(ENDS))
            if shut:
                raise shut[0]
            if not inside:
                raise ValueError(f"{path}: no {', '.join(ENDS[:-1])} or {ENDS[-1]} file in it")
        found += inside
    if odd := [path for path in found if not path.is_file()]:
        raise FileNotFoundError(f"{odd[0]}: no such file, or a pipe or device, which is not read")
    if not found:
        raise ValueError("no trace file given; at least one is needed")
    real = [path.resolve() for path in found]
    for path, one in zip(found, real, strict=True):
        if real.count(one) > 1:
            raise ValueError(f"{path} was given twice: its trials would count twice")
    return found


def records(file: BinaryIO, many: bool = False) -> Iterator[tuple[int, Any]]:
    """Line numbers and records of a file (of what kind, its name says), or what is wrong with a line.

    What has no lines (a JSON document, an archive) numbers its records. With ``many``, rows of a Parquet file that are
    a trace table's come as tables of many, numbered by their first. Raises ``TraceFileError`` for a file that is none,
    or too large to be held in memory.
    """
    name = Path(file.name)
    kind = Path(name.name.removesuffix(".gz")).suffix
    if kind == ".parquet":
        return _parquet_rows(file, many)
    if kind == ".eval":
        return _archive(file)
    data: Any = gzip.GzipFile(fileobj=file) if name.suffix == ".gz" else file
    return _cells(data, "\t" if kind == ".tsv" else ",") if kind in (".csv", ".tsv") else _json(data)


def _lines(data: Any) -> Iterator[bytes]:
    for number, line in enumerate(iter(partial(data.readline, LONGEST + 1), b""), 1):
        if len(line) > LONGEST:
            raise TraceFileError(f"line {number} is longer than {LONGEST >> 20} MiB, {_AS_LINES}")
        yield line


def _json(data: Any) -> Records:
    """A record a line; or a whole document, where the first line is no object or the only one."""

    def numbered() -> Iterator[tuple[int, bytes]]:
        return ((number, line) for number, line in enumerate(_lines(data), 1) if not line.isspace())

    head = next(lines := numbered(), None)
    if head is None:
        return
    head = (head[0], head[1].removeprefix(codecs.BOM_UTF8))
    first, second = _parsed(*head), next(lines, None)
    if second is not None and isinstance(first[1], dict):
        yield first
        yield from starmap(_parsed, chain([second], lines))
        return
    text = head[1] + (second[1] if second else b"")
    if head[1].lstrip()[:1] in (b"[", b"{"):
        text += data.read(LONGEST + 1 - len(text)) if len(text) <= LONGEST else b""
        if len(text) > LONGEST:
            raise TraceFileError(
                f"line 1 is no JSON object, and as a document the file has over {LONGEST >> 20} MiB, {_AS_LINES}"
            )
        try:
            yield from enumerate(_entries(json.loads(text)), 1)
            return
        except (ValueError, RecursionError):
            pass
    data.seek(0)  # so it is lines, of which the first is broken
    yield from starmap(_parsed, numbered())


def _parsed(number: int, line: bytes) -> tuple[int, Record | ValueError]:
    try:
        text = line.decode().strip()
        record, end = _DECODE(text)
        if end != len(text):
            raise ValueError(f"extra data after {end} characters")
    except (ValueError, RecursionError) as error:
        start = line[:40].decode("utf-8", "replace").rstrip()
        return number, ValueError(f"not a JSON object but {start!r} ({error})")
    if isinstance(record, dict):
        return number, record
    return number, ValueError(f"each line must be a JSON object; got {shortened(record)}")


def _entries(document: Any) -> Iterable[Record | ValueError]:
    """The records in a document: a list, or an object around or of them; else it is a record itself."""

    def objects(entries: list[Any], **said: Any) -> Iterable[Record | ValueError]:
        rule = "each entry must be a JSON object; got {}"
        return [said | e if isinstance(e, dict) else ValueError(rule.format(shortened(e))) for e in entries]

    if isinstance(document, list):
        return objects(document)
    if not isinstance(document, dict):
        return [ValueError(f"not JSON objects but {shortened(document)}")]
    log, samples = document.get("eval"), document.get("samples")
    if isinstance(log, dict) and isinstance(samples, list):  # Inspect
        return objects(samples, eval=log)
    if document.keys() & {"choices", "outputs", "messages", "output", "content", "response"}:
        return [document]
    parts = [v for v in document.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
    if len(parts) == 1:
        names = (name for name in ("model", "task", "policy") if isinstance(document.get(name), str))
        return objects(parts[0], **{name: document[name] for name in names})
    if len(document) > 1 and all(isinstance(v, dict) for v in document.values()):
        return [{"problem": name} | v for name, v in document.items()]
    lengths = {len(v) if isinstance(v, list) else 0 for v in document.values()}
    if len(document) > 2 and len(lengths) == 1 and 0 not in lengths:  # columns
        return [dict(zip(document, row, strict=True)) for row in zip(*document.values(), strict=True)]
    return [document]


def _cells(data: Any, delimiter: str) -> Records:
    csv.field_size_limit(LONGEST)
    reader = csv.reader(codecs.iterdecode(_lines(data), "utf-8-sig"), delimiter=delimiter)
    header = next(reader, [])
    for cells in filter(None, reader):
        rule = f"the row must have {len(header)} cells like the header; got {len(cells)}"
        whole = len(cells) == len(header)
        yield reader.line_num, dict(zip(header, cells, strict=True)) if whole else ValueError(rule)


def _parquet_rows(data: Any, many: bool) -> Iterator[tuple[int, Any]]:
    try:
        table, line = import_module("pyarrow.parquet").ParquetFile(data), 1
        if (rows := table.metadata.num_rows) > MOST:
            raise TraceFileError(f"{rows:,} rows; at most {MOST:,} fit into the memory of one table")
        many = many and {*table.schema_arrow.names} == {*COLUMNS}
        size = min(2**18 if many else 4096, _rows_at_once(data, table.metadata))
        for batch in table.iter_batches(batch_size=size):
            if many and (checked := _checked(batch)) is not None:
                yield line, checked
            else:
                yield from enumerate(batch.to_pylist(), line)
            line += batch.num_rows
    except (ValueError, OSError, import_module("pyarrow").ArrowException) as error:
        wrong = f"not a Parquet file ({error})"
        raise error if isinstance(error, TraceFileError) else TraceFileError(wrong) from None


def _rows_at_once(data: Any, metadata: Any) -> int:
    """Rows that take at most 4 LONGEST bytes if each holds all of a column's dictionary, as its longest text might."""
    most, groups = 1, map(metadata.row_group, range(metadata.num_row_groups))
    for column in (group.column(i) for group in groups for i in range(metadata.num_columns)):
        whole, name = column.total_uncompressed_size, column.path_in_schema
        if whole > 8 * LONGEST and whole > PACKED * column.total_compressed_size:
            told = f"column {name!r} holds {whole >> 20:,} MiB in one row group, over {PACKED} times its size in the file"
            raise TraceFileError(f"{told}, which no text does; above {LONGEST >> 17} MiB it is not read")
        if column.physical_type == "BYTE_ARRAY":
            data.seek(min(filter(None, (column.dictionary_page_offset, column.data_page_offset))))
            # as Thrift writes it: a page's kind (4: a dictionary), then its bytes when unpacked, seven bits a byte, lowest first
            head = data.read(8)
            more = next((i for i, byte in enumerate(head[3:]) if byte < 128), 0)
            large = sum((byte & 127) << 7 * i for i, byte in enumerate(head[3 : 4 + more])) >> 1
            most = max(most, large if head[:3] == b"\x15\x04\x15" else 1)
            if most > LONGEST:
                raise TraceFileError(f"column {name!r} has a dictionary of more than {LONGEST >> 20} MiB")
    return max(1, 4 * LONGEST // most)


def _checked(batch: Any) -> pd.DataFrame | None:
    """Rows of a trace table at once; None where a value has to be looked at by itself."""
    rows = batch.to_pandas(strings_to_categorical=True, ignore_metadata=True)
    with suppress(ValueError):
        if rows.correct.dtype == rows.truncated.dtype == bool:
            rows = check_traces(rows)
            names = rows.problem.cat.categories
            return rows if all(name.isprintable() and name == name.strip() for name in names) else None
    return None


def _archive(data: Any) -> Records:
    """Inspect's .eval: a zip archive with a JSON file a sample, and the header that says model and task."""
    try:
        with zipfile.ZipFile(data) as archive:
            names = archive.namelist()
            head = next((n for n in ("header.json", "_journal/start.json") if n in names), None)
            if head is None:
                raise TraceFileError("an archive without header.json is no log of Inspect")
            if archive.getinfo(head).file_size > LONGEST:
                raise TraceFileError(f"{head} is larger than {LONGEST >> 20} MiB")
            said = json.loads(archive.read(head)).get("eval", {})
            samples = [n for n in names if n.startswith("samples/") and n.endswith(".json")]
            for number, name in enumerate(samples, 1):
                if archive.getinfo(name).file_size > LONGEST:
                    yield number, ValueError(f"{name} is larger than {LONGEST >> 20} MiB")
                else:
                    found = _parsed(number, archive.read(name))[1]
                    yield number, found if isinstance(found, ValueError) else found | {"eval": said}
    except (RuntimeError, zipfile.BadZipFile, LZMAError, ValueError, AttributeError) as error:
        # RuntimeError: encrypted, or a compression that zipfile does not know, as Zstandard before Python 3.14
        how = "to convert one: inspect log convert LOG --to json --output-dir DIR"
        raise TraceFileError(f"no log of Inspect that can be read here ({error}); {how}") from None
