"""Caches under every policy: plain PyTorch against the kernels and against their reference, ragged and refilled."""

from __future__ import annotations

import os

import pytest

from kinetics_lab.cost.policies import parse_policy

torch = pytest.importorskip("torch", reason="needs PyTorch (the extra 'kernels')")
torch.set_num_threads(1)  # models this small lose time to a second thread
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported

from kinetics_kernels import reference  # noqa: E402

from kinetics_lab.decode.caches import PagedCache, PlainCache, open_cache  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
N_KV, GROUP, DIM, ROOM = 2, 3, 16, 96
RARE = pytest.mark.slow(
    reason="a variant of a policy that the default set decodes with; every step is interpreted"
)
POLICIES = [
    "dense", "topk:5", "topk:200", "local:7:3", "block_topk:16:8:8:true", "block_topk:32:16:16",
    "strided_block_topk:32:16:4:true:4", "quest:16:8:16:true",
    *(pytest.param(text, marks=RARE) for text in (
        "local:64", "block_topk:16:8", "strided_block_topk:16:8:0:false:4", "strided_block_topk:64:32:0:false:8",
        "quest:16:8",
    )),
]  # fmt: skip


def numbers(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def both(text: str, batch: int = 3) -> list:
    sizes = (parse_policy(text), batch, N_KV, DIM, ROOM)
    made = [kind(*sizes, dtype=torch.float32, device=DEVICE) for kind in (PlainCache, PagedCache)]
    for x in (made[1].cache.k, made[1].cache.v, made[1].cache.key_means):
        x.fill_(torch.nan)  # nothing may be read that was not written
    return made


def play(cache) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Ragged prompts, steps in which some requests pause, one request begun anew: every step's output, the last q."""
    for row, length in enumerate((40, 1, 64)):
        cache.fill(
            numbers(row, 1, length, N_KV, DIM), numbers(9 + row, 1, length, N_KV, DIM), slice(row, row + 1)
        )
    outs = []
    for step in range(4):
        if step == 2:
            cache.fill(numbers(70, 1, 33, N_KV, DIM), numbers(71, 1, 33, N_KV, DIM), slice(1, 2))
        counts = torch.tensor([1, step % 2, step < 2], dtype=torch.int32, device=DEVICE)
        k, v, q = (
            numbers(100 * step + i, 3, heads, DIM) for i, heads in enumerate((N_KV, N_KV, N_KV * GROUP))
        )
        cache.append(k, v, counts)
        outs.append(cache.attend(q))
    return outs, q


@pytest.mark.parametrize("text", POLICIES)
def test_plain_and_paged_attend_alike_and_as_the_reference(text) -> None:
    plain, paged = both(text)
    (ours, q), (theirs, _) = play(plain), play(paged)
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=2e-5, msg=lambda m, step=step: f"step {step}: {m}")
    assert plain.lengths.tolist() == paged.cache.lengths.tolist() == [44, 34, 66]
    wanted = {
        "dense": reference.dense_decode,
        "topk:5": lambda q, cache: reference.token_topk_decode(q, cache, 5),
        "block_topk:16:8:8:true": lambda q, cache: reference.block_topk_decode(
            q, cache, 2, sink_blocks=1, window_blocks=1
        ),
    }.get(text)
    assert ours[-1][:2].abs().min() > 0
    assert (
        ours[-1][2].abs().max() == theirs[-1][2].abs().max() == 0
    )  # it took no token, and counts as length 0
    if wanted:
        want = wanted(q.cpu(), paged.cache)[0]
        want[2] = 0
        torch.testing.assert_close(ours[-1].double().cpu(), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("text", ["dense", "quest:16:8"])
def test_an_empty_request_reads_nothing(text) -> None:
    for cache in both(text, 2):
        cache.fill(numbers(0, 1, 20, N_KV, DIM), numbers(1, 1, 20, N_KV, DIM), slice(0, 1))
        out = cache.attend(numbers(2, 2, N_KV * GROUP, DIM))
        assert out[0].abs().min() > 0
        assert out[1].abs().max() == 0


@pytest.mark.parametrize("text", ["dense", "topk:5", "block_topk:16:8:8:true"])
def test_nothing_of_a_finished_request_is_read(text) -> None:
    """Its keys are poisoned: whatever reads them, in scoring, selection or attention, shows it."""
    paged = both(text, 2)[1]
    paged.fill(numbers(0, 2, 40, N_KV, DIM), numbers(1, 2, 40, N_KV, DIM))
    q, new = numbers(2, 2, N_KV * GROUP, DIM), numbers(3, 2, N_KV, DIM)
    one = torch.tensor([1, 0], dtype=torch.int32, device=DEVICE)
    paged.append(new, new, one)
    for x in (paged.cache.k, paged.cache.v):
        x[paged.cache.page_table[1].long()] = torch.nan
    paged.cache.key_means[1] = torch.nan
    for finish in (lambda: paged.append(new, new, one), lambda: paged.keep(one > 0)):
        finish()
        out = paged.attend(q)
        assert out[1].abs().max() == 0
        assert out[0].isfinite().all()
    paged.append(new, new)  # what `keep` left out stays out, until it is begun anew
    assert paged.attend(q)[1].abs().max() == 0
    paged.fill(numbers(4, 1, 7, N_KV, DIM), numbers(5, 1, 7, N_KV, DIM), slice(1, 2))
    assert paged.attend(q)[1].isfinite().all()
    assert paged.attend(q)[1].abs().min() > 0


def test_requests_can_be_dropped_where_that_is_cheap() -> None:
    whole, part = PlainCache(parse_policy("topk:3"), 3, N_KV, DIM, ROOM), both("dense", 2)[1]
    whole.fill(numbers(0, 3, 9, N_KV, DIM), numbers(1, 3, 9, N_KV, DIM))
    q = numbers(2, 3, N_KV * GROUP, DIM).cpu()
    kept = torch.tensor([True, False, True])
    wanted = whole.attend(q)[kept]
    assert whole.keep(kept)
    torch.testing.assert_close(whole.attend(q[kept]), wanted)
    assert not part.keep(kept[:2])


def test_the_scale_of_the_scores_is_given_on() -> None:
    for cache in both("dense", 1):
        cache.fill(numbers(0, 1, 20, N_KV, DIM), numbers(1, 1, 20, N_KV, DIM))
        q = numbers(2, 1, N_KV * GROUP, DIM)
        torch.testing.assert_close(cache.attend(q, 0.5), cache.attend(q * 2))
        assert (cache.attend(q, 0.5) - cache.attend(q)).abs().max() > 1e-3


def test_only_whole_blocks_can_be_decoded_with() -> None:
    with pytest.raises(ValueError, match=r"block_topk:16:8:3: .* multiples of 8 tokens"):
        PlainCache(parse_policy("block_topk:16:8:3"), 1, N_KV, DIM, ROOM)
    with pytest.raises(ValueError, match=r"multiples of 3 tokens"):
        PlainCache(parse_policy("strided_block_topk:16:8:0:false:3"), 1, N_KV, DIM, ROOM)


def test_the_device_chooses_the_cache() -> None:
    made = open_cache(parse_policy("dense"), 1, N_KV, DIM, 8, dtype=torch.float32, device=DEVICE)
    assert isinstance(made, PagedCache if DEVICE == "cuda" else PlainCache)
