"""Kernel tests run everywhere: compiled where there is a GPU, elsewhere in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from itertools import combinations, product
from typing import Any

import pytest

MISSING = [name for name in ("torch", "triton") if importlib.util.find_spec(name) is None]
if MISSING:
    collect_ignore_glob = ["test_*.py"]
else:
    import torch

    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported
    torch.set_num_threads(2)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if MISSING:
        terminalreporter.write_line(
            f"SKIPPED tests/kernels: needs {' and '.join(MISSING)} (the extra 'kernels')"
        )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not MISSING and not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "pairs(name=[values], ...): a few cases in which all pairs of values occur"
    )
    config.addinivalue_line("markers", "xdist_group(name): run by one worker, where there are workers")


def pairs(values: dict[str, list[Any]]) -> list[tuple[Any, ...]]:
    """Few rows of one value each, in which any two values of two names meet: greedily, the first best row next."""

    def met(row: tuple[Any, ...]) -> set[Any]:
        return set(combinations(enumerate(row), 2))

    grid = list(product(*values.values()))
    missing, rows = set().union(*map(met, grid)), []
    while missing:
        rows.append(max(grid, key=lambda row: len(met(row) & missing)))
        missing -= met(rows[-1])
    return rows


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Kernels are wrong at single values or where two meet, so pairs stand for the grid that is too long to run."""
    for mark in metafunc.definition.iter_markers("pairs"):
        metafunc.parametrize(tuple(mark.kwargs), pairs(mark.kwargs), ids=str)


@pytest.fixture(scope="session")
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="session")
def make(device: str) -> Callable[..., Any]:
    """``make(lengths, ...) -> q, cache``: random contexts on shuffled pages, NaN where nothing was written."""
    from kinetics_kernels import PagedKVCache

    def build(
        lengths: list[int], *, n_kv: int = 2, group: int = 2, head_dim: int = 16, page_size: int = 16,
        block_size: int | None = None, bounds: bool = False, dtype: Any = torch.float16, seed: int = 0,
        max_tokens: int | None = None, debug: bool = False,
    ) -> tuple[Any, Any]:  # fmt: skip
        draw = torch.Generator().manual_seed(seed)
        block = block_size or page_size
        longest = max(*lengths, 1) if max_tokens is None else max_tokens
        width = -(-longest // block) * (block // page_size)
        pool = len(lengths) * width + 3  # a few pages belong to nobody
        table = torch.randperm(pool, generator=draw)[: len(lengths) * width].view(len(lengths), width)
        cache = PagedKVCache(
            len(lengths), n_kv, head_dim, longest, page_size=page_size, block_size=block, bounds=bounds,
            page_table=table.int().to(device), n_pages=pool, dtype=dtype, device=device, debug=debug,
        )  # fmt: skip
        poison(cache)

        def random(*shape: int) -> Any:
            return torch.randn(*shape, generator=draw).to(dtype).to(device)

        shape = (len(lengths), max(*lengths, 1), n_kv, head_dim)
        cache.append(random(*shape), random(*shape), torch.tensor(lengths, dtype=torch.int32, device=device))
        return random(len(lengths), n_kv * group, head_dim), cache

    def poison(cache: Any) -> None:
        for x in (cache.k, cache.v, cache.key_means, cache.key_min, cache.key_max, cache.open_sum):
            if x is not None:
                x.fill_(float("nan"))

    return build


@pytest.fixture(scope="session")
def close() -> Callable[..., None]:
    """Compare an output with the float64 reference. Values reach about 4.5.

    fp16: probabilities and output are each rounded by at most 2^-11 of that. bf16: 2^-8 for the output alone,
    twice that in the interpreter, which cuts where the hardware rounds. fp32: summation order.
    """
    tolerance = {torch.float16: 5e-3, torch.bfloat16: 4e-2, torch.float32: 1e-5} if not MISSING else {}

    def check(got: Any, want: Any, scale: float = 1.0) -> None:
        torch.testing.assert_close(
            got.double().cpu(), want.double().cpu(), atol=tolerance[got.dtype] * scale, rtol=0
        )

    return check
