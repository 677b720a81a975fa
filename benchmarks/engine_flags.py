"""The flags of a release of vLLM and of SGLang, read from the text of their wheels: data/engine_flags.csv, anew.

    pip download --no-deps --only-binary :all: vllm==0.33.0 sglang==0.5.23
    python benchmarks/engine_flags.py vllm-*.whl sglang-*.whl

Nothing of the engines is installed or run. vLLM's flags are the calls of ``add_argument`` in vllm/engine/arg_utils.py; its choices
are the literals of the types that it names. SGLang's are the annotated fields in sglang/srt/arg_groups/fields.
"""

import ast
import csv
import sys
import zipfile
from pathlib import Path

TYPES = {  # vLLM: flag -> file and literal type of its values
    "--dtype": ("vllm/config/model.py", "ModelDType"),
    "--quantization": ("vllm/model_executor/layers/quantization/__init__.py", "QuantizationMethods"),
    "--kv-cache-dtype": ("vllm/config/cache.py", "CacheDType"),
}


def texts(node: ast.AST) -> list[str]:
    """All string literals under a node, in order."""
    return [
        one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str)
    ]


def assigned(source: str, name: str) -> list[str]:
    """The literals that a module assigns to a name."""
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(getattr(target, "id", "") == name for target in targets):
            return texts(node.value)
    raise SystemExit(f"no {name}")


def of_vllm(wheel: zipfile.ZipFile) -> dict[str, list[str]]:
    """Flag -> choices."""
    found = {}
    for node in ast.walk(ast.parse(wheel.read("vllm/engine/arg_utils.py"))):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
            for flag in (text for arg in node.args for text in texts(arg) if text.startswith("--")):
                file, name = TYPES.get(flag, ("", ""))
                found[flag] = assigned(wheel.read(file).decode(), name) if file else []
    return found


def of_sglang(wheel: zipfile.ZipFile) -> dict[str, list[str]]:
    """Flag -> choices."""
    lists, found = wheel.read("sglang/srt/arg_groups/choices.py").decode(), {}
    for file in (name for name in wheel.namelist() if name.startswith("sglang/srt/arg_groups/fields/")):
        for node in ast.walk(ast.parse(wheel.read(file))):
            if not (isinstance(node, ast.AnnAssign) and getattr(node.annotation, "value", None)):
                continue
            calls = [one for one in ast.walk(node.annotation) if isinstance(one, ast.Call)]
            given = {key.arg: key.value for call in calls for key in call.keywords}
            if getattr(node.annotation.value, "id", "") != "A" or "no_cli" in given:
                continue
            choices = given.get("choices", ast.List([]))
            values = assigned(lists, choices.id) if isinstance(choices, ast.Name) else texts(choices)
            named = (
                texts(given["cli_name"]) if "cli_name" in given else [f"--{node.target.id.replace('_', '-')}"]
            )
            for flag in [*named, *texts(given.get("aliases", ast.List([])))]:
                found[flag] = values
    return found


def main(wheels: list[str]) -> None:
    rows = []
    for path in map(Path, wheels):
        engine, version = path.name.split("-")[:2]
        with zipfile.ZipFile(path) as wheel:
            flags = (of_vllm if engine == "vllm" else of_sglang)(wheel)
        rows += [(engine, version, flag, " ".join(flags[flag])) for flag in sorted(flags)]
    with open(
        Path(__file__).parent.parent / "data/engine_flags.csv", "w", newline="", encoding="utf-8"
    ) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([("engine", "version", "flag", "choices"), *rows])


if __name__ == "__main__":
    main(sys.argv[1:])
