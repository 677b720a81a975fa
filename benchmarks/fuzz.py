"""Give many inputs to every fuzzer of tests/fuzz and count how they ended: tried, refused, right, wrong.

python benchmarks/fuzz.py [N] [TARGET ...]     # 10,000 of each by default; FUZZ_SEED=2 draws others
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "fuzz"))
from inputs import TARGETS, WrongError


def run(name: str, examples: int) -> tuple[Counter[str], list[str]]:
    """How the examples of one target ended, and what went wrong."""
    strategy, target = TARGETS[name]
    ended, wrong = Counter[str](), list[str]()

    @seed(int(os.environ.get("FUZZ_SEED", "1")))
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[*HealthCheck],
    )
    @given(strategy)
    def one(value: Any) -> None:
        try:
            ended[target(value)] += 1
        except WrongError as error:
            ended["wrong"] += 1
            wrong.append(str(error))

    one()
    return ended, wrong


def main() -> None:
    """Print a table in Markdown, and the first faults of each kind on stderr."""
    examples = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    print(
        "| input | tried | refused | right | of them by transformers | wrong | CPU s |\n|---|---|---|---|---|---|---|"
    )
    for name in sys.argv[2:] or TARGETS:
        began = time.process_time()
        ended, wrong = run(name, examples)
        tried, ended["right"] = sum(ended.values()), ended["right"] + ended["compared"]
        counts = " | ".join(f"{ended[kind]:,}" for kind in ("refused", "right", "compared", "wrong"))
        print(f"| {name} | {tried:,} | {counts} | {time.process_time() - began:.0f} |", flush=True)
        for text in wrong[:40]:
            print(text[-1500:], "\n----", file=sys.stderr)


if __name__ == "__main__":
    main()
