"""The wheel's bill of materials, CycloneDX 1.5 as JSON: the package, and what it needs, in the versions of constraints.txt.

python benchmarks/sbom.py > sbom.json
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def key(name: str) -> str:
    """A distribution's name as indexes spell it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def component(name: str, version: str, **more: Any) -> dict[str, Any]:
    """One entry; its package URL is its reference, too."""
    url = f"pkg:pypi/{key(name)}@{version}"
    return {"type": "library", "bom-ref": url, "name": name, "version": version, "purl": url, **more}


def bill(root: Path = ROOT) -> dict[str, Any]:
    """The whole document. An extra's packages are optional; a package that no list pins is left out."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (root / "constraints.txt").read_text(), re.MULTILINE))
    versions = {key(name): version for name, version in pins.items()}
    whole = component(project["name"], project["version"], type="application")
    needs = {key(re.match(r"[\w.-]+", text)[0]): "required" for text in project["dependencies"]}  # type: ignore[index]
    for extra, texts in project["optional-dependencies"].items():
        if extra != "dev":
            for text in texts:
                needs.setdefault(key(re.match(r"[\w.-]+", text)[0]), "optional")  # type: ignore[index]
    parts = [
        component(name, versions[name], scope=scope)
        for name, scope in sorted(needs.items())
        if name in versions
    ]
    return {
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "metadata": {"component": whole}, "components": parts,
        "dependencies": [{"ref": whole["bom-ref"], "dependsOn": [part["bom-ref"] for part in parts]}],
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(bill(), indent=1))
