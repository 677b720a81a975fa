"""The repository as a whole: what is in it, what it promises, what importing the package costs."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import yaml

import kinetics_lab
from kinetics_lab.book.imports import modules
from kinetics_lab.book.parameters import declared_parameters

ROOT = Path(__file__).parent.parent
TEXT = {".bib", ".cff", ".css", ".ipynb", ".js", ".md", ".py", ".sh", ".toml", ".txt", ".yml", ""}


def tracked() -> list[Path]:
    """Files under version control, or that would be; without git (an sdist) nothing can be said."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [path for name in done.stdout.splitlines() if (path := ROOT / name).is_file()]


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_no_file_names_a_machines_folder_or_a_package_index():
    machine = re.compile(r"(?<![\w.:/-])/(?:home|root|work|farm|Users)/")
    index = re.compile(r"://[^\s\"']*/simple\b|--(?:extra-)?index[-]url|--find[-]links")
    for path in tracked():
        if path.suffix in TEXT and "vendor" not in path.parts:
            text = path.read_text(encoding="utf-8")
            assert not machine.search(text), f"{path.relative_to(ROOT)}: a folder of one machine"
            assert not index.search(text), f"{path.relative_to(ROOT)}: an index of packages"


def test_nothing_large_or_built_is_tracked():
    for path in tracked():
        assert path.stat().st_size < 4_000_000, path
        assert not {"_build", "__pycache__", ".venv", ".ipynb_checkpoints"} & set(
            path.relative_to(ROOT).parts
        ), path


def test_one_version_everywhere():
    version = project()["project"]["version"]
    assert kinetics_lab.__version__ == version
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == version
    assert re.search(
        rf"^## \[?{re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )


def test_citation_and_licence_are_whole():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert project()["project"]["license"] == "MIT" == citation.get("license", "MIT")
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert licence.startswith("MIT License")
    assert "WITHOUT WARRANTY OF ANY KIND" in licence


def test_kernels_is_no_package():
    """A `kernels` that can be imported from the root would hide Hugging Face's package of that name."""
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_what_chapters_import_loads_neither_torch_nor_the_tools_of_the_book():
    """All modules but those that decode a model, or drive one, in one interpreter."""
    need_torch = ("kinetics_lab.decode.", "kinetics_lab.ladder.", "kinetics_lab.measure.ahead")
    names = [name for name in modules() if not name.startswith(need_torch) and not name.endswith("__main__")]
    code = f"import importlib, sys; [importlib.import_module(name) for name in {names}]; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "papermill", "nbformat", "jupyter_book", "sphinx"} & set(done.stdout.split())


# --- the picture of the house, and what the pages for contributors say of it -------------------------------------


@pytest.fixture(scope="module")
def house():
    """The script that draws the house; it lies outside the package."""
    spec = importlib.util.spec_from_file_location("house", ROOT / "benchmarks" / "house.py")
    script = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = script  # where its dataclasses look for their module
    spec.loader.exec_module(script)
    yield script
    del sys.modules[spec.name]


def test_the_picture_of_the_house_and_its_lists_are_what_the_files_say(house):
    wrong = house.outdated()
    assert not wrong, f"{'; '.join(wrong)}. Run: {house.COMMAND}"


def test_every_module_is_on_the_page_and_every_module_named_is_there(house):
    text = house.PAGE.read_text(encoding="utf-8")
    listed = "\n".join(house.blocks(text).values())
    rooms = {name for name, path in modules().items() if path.name == "__init__.py" and name.count(".") == 1}
    known = {name.removeprefix("kinetics_lab.") for name in set(modules()) - rooms - {"kinetics_lab"}}
    assert set(re.findall(r"^\| `([\w.]+)` \|", listed, re.MULTILINE)) == known
    prose = re.sub(r"^\|.*", "", text, flags=re.MULTILINE)
    rooms_named = "|".join(house.ROOMS)
    assert set(re.findall(rf"`((?:{rooms_named})(?:\.\w+)+)`", prose)) <= known


def test_a_changed_import_changes_the_picture_and_a_circle_is_refused(house, monkeypatch):
    drawn, real = house.draw(), house.imports()
    monkeypatch.setattr(house, "imports", lambda: real | {"book": real["book"] | {"cost"}})
    assert "book imports cost" in house.describe(
        house.arrows({k: v - set(house.GROUND) for k, v in house.imports().items() if k not in house.GROUND})
    )
    assert house.draw() != drawn
    assert "book/_static/house.svg differs from the imports" in house.outdated()
    with pytest.raises(ValueError, match="rooms import in a circle: cost, laws"):
        house.floors({"cost": {"laws"}, "laws": {"cost"}, "book": set()})
    with pytest.raises(ValueError, match="the room 'cellar' has no place in the picture"):
        house.room_of("kinetics_lab.cellar.wine")


def test_an_import_that_others_imply_is_no_arrow(house):
    above = {"cost": set(), "traces": {"cost"}, "laws": {"traces", "cost"}}
    assert house.arrows(above) == [("traces", "cost"), ("laws", "traces")]


def test_the_length_of_the_laws_argument_is_kept_true(house, monkeypatch):
    text = house.PAGE.read_text(encoding="utf-8")
    monkeypatch.setattr(house, "law_lines", lambda: 9000)
    assert "book/architecture.md: the law's argument has 9,000 lines" in house.outdated()
    assert "about 9,000 lines" in house.with_facts(text)
    assert not house.tells_length(text.replace("lines", "words"))


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CONTRIBUTING.md",
        "book/architecture.md",
        "book/how-to-run.md",
        *sorted(str(page.relative_to(ROOT)) for page in ROOT.glob("book/on-[ac]*.md")),
    ],
)
def test_files_and_commands_that_a_page_names_are_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z][\w-]*)", text, re.MULTILINE)) <= targets
    named = re.findall(
        r"(?<![\w/.-])((?:benchmarks|book|data|kernels|notebooks|tests)/[\w./-]*\w)(?![*<\w])", text
    )
    assert not [path for path in named if not (ROOT / path).exists()]


def test_constraints_pin_everything_and_point_nowhere():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.!+]+", line) for line in lines)
    pinned = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lines}
    facts = project()["project"]
    extras = [name for extra in ("book", "dev") for name in facts["optional-dependencies"][extra]]
    for requirement in facts["dependencies"] + extras:
        name = re.match(r"[\w.-]+", requirement).group()
        assert re.sub(r"[-_.]+", "-", name).lower() in pinned, requirement


def test_continuous_integration_runs_what_a_reader_runs():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "book.yml").read_text())
    events = workflow[True]  # YAML 1.1 takes the key `on` for a truth value
    assert {"push", "pull_request", "schedule"} <= set(events)
    assert workflow["permissions"] == {"contents": "read"}
    steps = workflow["jobs"]["build"]["steps"]
    assert any(step.get("run") == ".ci/run" for step in steps)
    assert any(step.get("run") == ".ci/audit" for step in steps)
    [upload] = [step for step in steps if "upload-pages-artifact" in step.get("uses", "")]
    assert upload["with"]["path"] == "_build/book/_build/html"
    assert workflow["jobs"]["publish"]["permissions"] == {"pages": "write", "id-token": "write"}
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    lines = [line for line in script.read_text().splitlines() if not line.startswith("#")]
    made = re.findall(r"^ *(?:make|step) ([\w-]+)", "\n".join(lines), re.MULTILINE)
    assert made == ["torch", "lint", "test-triton36", "book", "test", "test-slow"]


@pytest.mark.parametrize("broken", ["", "lint", "test-triton36", "book", "test", "test-slow"])
def test_continuous_integration_tells_all_that_fails_in_one_run(broken, tmp_path):
    """Its script, with a make that only says what it was asked and fails at one target."""
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "run").write_bytes((ROOT / ".ci" / "run").read_bytes())
    (tmp_path / "bin").mkdir()
    for name, does in (("make", f'echo "$1" >> asked; test "$1" != "{broken}"'), ("chromium", "")):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", tmp_path / ".ci" / "run"], env=env, capture_output=True, text=True, check=False)  # fmt: skip
    asked = (tmp_path / "asked").read_text().split()
    assert sorted(asked) == ["book", "lint", "test", "test-slow", "test-triton36", "torch"]
    assert asked[-2:] == ["test", "test-slow"]
    assert done.returncode == bool(broken), done.stdout + done.stderr
    assert ("FAILED: " in done.stdout) == bool(broken)
    assert broken in done.stdout.partition("FAILED: ")[2]


def test_the_bill_of_materials_names_what_the_wheel_needs():
    done = subprocess.run(
        [sys.executable, "benchmarks/sbom.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    bill = json.loads(done.stdout)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs = {part["name"] for part in bill["components"] if part["scope"] == "required"}
    assert needs == {re.match(r"[\w.-]+", text)[0].lower() for text in project["dependencies"]}
    assert {"torch", "papermill"} <= {part["name"] for part in bill["components"]}
    assert bill["metadata"]["component"]["version"] == project["version"]


@pytest.mark.skipif(not shutil.which("actionlint"), reason="needs actionlint on the PATH")
def test_actionlint_finds_nothing():
    done = subprocess.run(["actionlint", "-no-color"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_make_lists_its_targets():
    done = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = set(re.findall(r"^  ([\w-]+) ", done.stdout, re.MULTILINE))
    tests = {"test", "test-slow", "test-triton36", "gpu-check"}
    assert {
        "help",
        "install",
        "torch",
        "book",
        "gpu",
        "lab",
        "serve",
        "lint",
        "strip",
        "pdf",
        "clean",
        "distclean",
        "constraints",
    } | tests == listed


def test_make_refuses_an_old_python(tmp_path):
    old = tmp_path / "python3"
    old.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "import sys; sys.version_info = (3, 9); sys.version = \'3.9.2 x\'; exec(sys.argv[1])" "$2"\n'
    )
    old.chmod(0o755)
    command = ["make", "-s", f"PYTHON={old}", f"VENV={tmp_path}/venv", "book"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode
    assert "Kinetics Lab needs Python 3.11 or newer; this one is 3.9.2" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_the_list_of_pages_for_search_engines(tmp_path):
    for name in ("index", "404", "search", "notebooks/10_one", "_static/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.html").touch()
    done = subprocess.run([ROOT / ".ci" / "sitemap", "https://a.github.io/b/", tmp_path], check=True)
    assert done.returncode == 0
    found = re.findall("<loc>(.+)</loc>", (tmp_path / "sitemap.xml").read_text())
    assert found == ["https://a.github.io/b/index.html", "https://a.github.io/b/notebooks/10_one.html"]


# --- make, where it removes, strips and looks ------------------------------------------------------------------


def a_clone(folder: Path) -> Path:
    """The files under version control, as they are now, in a folder of their own."""
    for path in tracked():
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    return folder


def installed(folder: Path) -> Path:
    """The copy, with this interpreter's environment in the place of its .venv."""
    (folder / ".venv").mkdir()
    (folder / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    for stamp in (".installed", ".kernels"):
        (folder / ".venv" / stamp).touch()
    return folder


def run(command: list[str] | str, cwd: Path, **options) -> subprocess.CompletedProcess:
    # A make that runs these tests hands its flags down, and its child would print the folders that it enters.
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    given = {
        "capture_output": True,
        "text": True,
        "check": False,
        "shell": isinstance(command, str),
        "env": bare,
    }
    return subprocess.run(command, cwd=cwd, **(given | options))


def test_clean_keeps_what_somebody_made_and_names_it(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("book/stage", "runs/10_x-1", "ladder/cpu", "answers", "my-sweep/points"):
        (tmp_path / "_build" / name).mkdir(parents=True)
    (tmp_path / ".venv" / "lib" / "__pycache__").mkdir(parents=True)
    (tmp_path / "kinetics_lab" / "__pycache__").mkdir(parents=True)
    done = run(["make", "clean"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^kept: (.+)$", done.stdout, re.MULTILINE) == [
        f"_build/{name}" for name in ("answers", "ladder", "my-sweep")
    ]
    assert {path.name for path in (tmp_path / "_build").iterdir()} == {"answers", "ladder", "my-sweep"}
    assert (tmp_path / ".venv" / "lib" / "__pycache__").exists()
    assert not (tmp_path / "kinetics_lab" / "__pycache__").exists()
    refused = run(["make", "distclean"], tmp_path, input="no\n")
    assert refused.returncode
    assert "nothing was removed" in refused.stdout
    assert (tmp_path / "_build" / "answers").exists()
    assert run(["make", "distclean"], tmp_path, input="yes\n").returncode == 0
    assert not (tmp_path / "_build").exists()
    assert not (tmp_path / ".venv").exists()


def test_strip_brings_a_chapter_back_that_was_run_and_saved(tmp_path):
    import nbformat

    clone = installed(a_clone(tmp_path))
    path = sorted((clone / "notebooks").glob("*.ipynb"))[0]
    before = path.read_bytes()
    book = nbformat.read(path, as_version=4)
    for number, cell in enumerate(book.cells):
        if cell.cell_type == "code":
            cell.execution_count = number
            cell.outputs = [nbformat.v4.new_output("stream", text="told\n")]
            cell.metadata["execution"] = {"iopub.status.busy": "2026-01-01"}
            cell.metadata["jupyter"] = {"outputs_hidden": False}
    book.metadata.language_info.update(
        version="3.11.2", file_extension=".py", codemirror_mode={"name": "ipython"}
    )
    nbformat.write(book, path)
    assert path.read_bytes() != before
    done = run(["make", "strip"], clone)
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() == before


def test_a_machine_without_a_gpu_installs_nothing_for_one(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("make", "sh", "python3"):
        (tools / name).symlink_to(shutil.which(name))
    done = run(["make", "-j4", "gpu"], tmp_path, env={"PATH": str(tools)})
    assert done.returncode
    assert "this needs an NVIDIA GPU and its driver" in done.stdout
    assert not (tmp_path / ".venv").exists()


def test_lab_takes_address_port_and_token_and_says_so(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    tools = tmp_path / ".venv" / "bin"
    tools.mkdir(parents=True)
    (tmp_path / ".venv" / ".installed").touch()
    for name in ("python", "jupyter"):
        (tools / name).write_text('#!/bin/sh\necho "$(basename $0) $* [$JUPYTER_TOKEN]"\n')
        (tools / name).chmod(0o755)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    (tmp_path / ".venv" / ".installed").touch()
    told = run(["make", "lab", "ADDRESS=0.0.0.0", "PORT=9000", "TOKEN=secret"], tmp_path).stdout
    assert "JupyterLab at http://0.0.0.0:9000/" in told
    assert "jupyter lab --notebook-dir=. --ip=0.0.0.0 --port=9000" in told
    assert told.rstrip().endswith("[secret]")
    root = run("id -u", tmp_path).stdout.strip() == "0"
    assert ("--allow-root" in told) == root
    assert "--ip=127.0.0.1 --port=8888" in run(["make", "lab"], tmp_path).stdout


def test_addresses_elsewhere_are_found_and_asked(tmp_path):
    """On a server of our own; what answers, what refuses programs and what is not there are told apart."""
    import http.server
    import threading

    script = runpy.run_path(str(ROOT / "benchmarks" / "links.py"))
    (tmp_path / "a.html").write_text(
        '<a class="x" href="https://example.org/?a=1&amp;b=2#part">t</a> <a href="b.html">own</a>'
    )
    (tmp_path / "b.md").write_text("[t](https://example.org/c#d) and [own](e.md)")
    assert script["addresses"]([tmp_path / "a.html", tmp_path / "b.md"]) == {
        "https://example.org/?a=1&b=2": {"a.html"},
        "https://example.org/c": {"b.md"},
    }

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(int(self.path[1:]))
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"http://127.0.0.1:{server.server_port}"
        said = [script["answer"](f"{place}/{code}") for code in (200, 404, 403)]
        server.shutdown()
    assert said == ["ok", "dead: 404", "refused: 403"]
    assert script["answer"](place, timeout=2).startswith("dead: ")


def ticks(svg: str, anchor: str) -> list[tuple[float, float, float]]:
    """(x, y, value) of the labels of one axis; "10k" and "1M" as numbers."""
    label = rf'<text text-anchor="{anchor}" transform="translate\(([-.\d]+),([-.\d]+)\)"[^>]*>([\d.]+)([kM]?)</text>'
    size = {"": 1, "k": 1e3, "M": 1e6}
    return [(float(x), float(y), float(n) * size[unit]) for x, y, n, unit in re.findall(label, svg)]


def test_the_picture_of_the_readme_shows_what_the_first_chapter_computes():
    """Its curves, read back off their axes, are sums over steps with the chapter's defaults."""
    svg = (ROOT / "book" / "_static" / "cost-of-a-request.svg").read_text(encoding="utf-8")
    (chapter,) = (ROOT / "notebooks").glob("10_*.ipynb")
    given = declared_parameters(chapter)
    shape = kinetics_lab.MODELS[given["model"]]
    device = kinetics_lab.find_hardware(given["hardware"], given["precision"])
    assert f"Cost of {given['n_trials']} answers by {given['model']} against their length" in svg

    def read_off(places: np.ndarray, labels: list[tuple[float, float]]) -> np.ndarray:
        """Values at places on a log axis, by its first and last label."""
        (start, low), (end, high) = labels[0], labels[-1]
        return low * (high / low) ** ((places - start) / (end - start))

    along = [(x, value) for x, _, value in ticks(svg, "middle")]
    up = [(y - 4, value) for _, y, value in ticks(svg, "end")]  # a label stands 4 px below its line
    curves = re.findall(r'<path d="M([^"Z]+)" stroke="#\w+" stroke-width="2.5"/>', svg)
    names = re.findall(r">(matrices: [^<]+|attention: [^<]+)<", svg)
    assert names == ["matrices: arithmetic", "attention: arithmetic", "attention: reading the KV cache"]
    assert len(curves) == len(names)

    def summed(n: int) -> list[float]:
        """Tera-eFLOPs of all answers of n tokens, step by step."""
        own = np.arange(n) + 0.5  # in the middle of a step
        elements = given["n_trials"] * own.sum() + given["n_in"] * n  # the prompt is read once for all
        read = shape.kv_bytes_per_token(device.bytes_per_element) * elements
        each = 2 * shape.n_matmul_params * n, shape.attention_flops_per_token * (own + given["n_in"]).sum()
        return [x / 1e12 for x in (*(given["n_trials"] * y for y in each), device.intensity * read)]

    for i, curve in enumerate(curves):
        points = np.array([point.split(",") for point in curve.split("L")], float)
        lengths = read_off(points[:, 0], along).round().astype(int)
        assert len(points) == 40, names[i]
        assert lengths[[0, -1]] == pytest.approx([256, 32768], rel=1e-3), names[i]
        drawn = read_off(points[:, 1], up)
        assert drawn == pytest.approx([summed(n)[i] for n in lengths], rel=5e-3), names[i]
