"""The manifest matches the files, and whatever does not match is refused."""

import hashlib

import pandas as pd
import pytest

from kinetics_lab import data as datafiles


def make(folder, *, text="a,b\n1,2\n", sha256=None, extra='[demo.columns]\na = "x"\nb = "y"\n'):
    (folder / "demo.csv").write_text(text)
    sha256 = sha256 or hashlib.sha256(text.encode()).hexdigest()
    entry = f'[demo]\nfile = "demo.csv"\nsha256 = "{sha256}"\nsource = "made up"\nlicense = "none"\n'
    (folder / "MANIFEST.toml").write_text(entry + extra)
    return folder


@pytest.mark.parametrize("name", datafiles.manifest())
def test_every_file_matches_its_entry(name):
    path = datafiles.data_path(name)
    assert path.stat().st_size > 0
    if path.suffix in (".csv", ".parquet"):
        assert len(datafiles.read_table(name)) > 0
        assert all(datafiles.manifest()[name]["columns"].values())


def test_every_file_is_listed():
    folder = datafiles.data_dir()
    listed = {entry["file"] for entry in datafiles.manifest().values()} | {"MANIFEST.toml"}
    found = {p.relative_to(folder) for p in folder.rglob("*") if p.is_file()}
    # rows of measurements say in themselves where they come from, and more come with every `make gpu`
    assert {str(path) for path in found if path.parts[0] != "measurements"} == listed


def test_measured_rows_say_where_they_come_from():
    for path in (datafiles.data_dir() / "measurements").glob("*/*.parquet"):
        rows = pd.read_parquet(path)
        assert not rows["dirty"].any(), path
        assert rows["commit"].str.fullmatch("[0-9a-f]{40}").all(), path
        assert set(rows["device"]) <= {"cuda", "host"}, path
        assert rows[["gpu", "torch", "date", "kernels_digest", "suite_version"]].notna().all(axis=None), path


def test_a_good_file_is_read(tmp_path):
    assert datafiles.read_table("demo", make(tmp_path)).to_dict("list") == {"a": [1], "b": [2]}


def test_a_changed_file_is_refused_with_both_hashes(tmp_path):
    make(tmp_path)
    datafiles.data_path("demo", tmp_path)
    (tmp_path / "demo.csv").write_text("a,b\n1,3\n")  # same size: only the content tells
    was, now = (hashlib.sha256(text.encode()).hexdigest() for text in ("a,b\n1,2\n", "a,b\n1,3\n"))
    with pytest.raises(ValueError, match=f"does not match the manifest: sha256 {now}, expected {was}"):
        datafiles.data_path("demo", tmp_path)


def test_other_columns_are_refused(tmp_path):
    make(tmp_path, extra='[demo.columns]\na = "x"\nc = "y"\n')
    with pytest.raises(ValueError, match=r"has columns \['a', 'b'\], the manifest says \['a', 'c'\]"):
        datafiles.read_table("demo", tmp_path)


def test_missing_things_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="MANIFEST.toml is missing; set KINETICS_DATA"):
        datafiles.manifest(tmp_path)
    make(tmp_path)
    with pytest.raises(ValueError, match="data file 'demi' is not known; did you mean demo"):
        datafiles.data_path("demi", tmp_path)
    (tmp_path / "demo.csv").unlink()
    with pytest.raises(
        FileNotFoundError, match="demo.csv is missing, though the manifest lists it as 'demo'"
    ):
        datafiles.data_path("demo", tmp_path)
    (tmp_path / "MANIFEST.toml").write_text('[demo]\nfile = "demo.csv"\n')
    with pytest.raises(ValueError, match="entry 'demo' has no 'sha256'"):
        datafiles.manifest(tmp_path)
    (tmp_path / "MANIFEST.toml").write_text("[demo\n")
    with pytest.raises(ValueError, match="MANIFEST.toml: not TOML"):
        datafiles.manifest(tmp_path)


def test_the_environment_names_another_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("KINETICS_DATA", str(make(tmp_path)))
    assert datafiles.data_path("demo") == tmp_path / "demo.csv"
