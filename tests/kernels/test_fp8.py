"""An fp8 (e4m3) cache: what is stored to the bit, attention over it against float64, and scales that are wrong."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from kinetics_kernels import (
    PagedKVCache,
    block_topk_decode,
    dense_decode,
    reference,
    score_blocks,
    score_quest,
    score_tokens,
    select_quest,
    select_tokens,
    sparse_decode,
    token_topk_decode,
)

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9),
    reason="fp8 needs a GPU of compute capability 8.9 or newer",
)

FP8 = torch.float8_e4m3fn
RAGGED = [0, 1, 37, 200]  # the last takes two tiles of 128
SHORT = [0, 1, 130]
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def quantized(x, scale):
    """fp8 of ``x [..., Hkv, D] / scale [Hkv]`` by PyTorch's own conversion, which rounds halfway cases to even."""
    return (x.float() / scale[:, None]).clamp(-448, 448).to(FP8)


@pytest.fixture(scope="session")
def make8(device):
    """``make8(lengths, ...) -> q, cache, k, v``: as ``make``, with a scale for each head, and what was appended."""

    def build(lengths, *, n_kv=2, group=2, head_dim=64, page_size=16, block_size=None, bounds=False, dtype=torch.float16,
              max_tokens=None, scales="powers", size=1.0, seed=0, steps=0):  # fmt: skip
        draw = torch.Generator().manual_seed(seed)
        block = block_size or page_size
        longest = max(*lengths, 1) if max_tokens is None else max_tokens
        width = -(-longest // block) * (block // page_size)
        pool = len(lengths) * width + 3
        table = torch.randperm(pool, generator=draw)[: len(lengths) * width].view(len(lengths), width)
        k_scale, v_scale = (2.0 ** torch.randint(-7, -2, (n_kv,), generator=draw) for _ in range(2))
        if scales == "any":
            k_scale, v_scale = k_scale * 1.3, v_scale * 0.7
        cache = PagedKVCache(
            len(lengths), n_kv, head_dim, longest, page_size=page_size, block_size=block, bounds=bounds,
            page_table=table.int().to(device), n_pages=pool, dtype=FP8, device=device,
            k_scale=k_scale.to(device), v_scale=v_scale.to(device),
        )  # fmt: skip
        for x in (cache.k, cache.v):
            x.view(torch.uint8).fill_(0x7F)  # NaN; to the interpreter 480, which shows as well
        for x in (cache.key_means, cache.key_min, cache.key_max, cache.open_sum):
            if x is not None:
                x.fill_(float("nan"))
        shape = (len(lengths), max(*lengths, 1), n_kv, head_dim)
        k, v = ((torch.randn(shape, generator=draw) * size).to(dtype).to(device) for _ in range(2))
        counts = torch.tensor(lengths, dtype=torch.int32, device=device)
        cache.append(k, v, (counts - steps).clamp(min=0))  # the last ones step by step
        for _ in range(steps):
            at = cache.lengths.long()
            last = (at.clamp(max=shape[1] - 1))[:, None, None, None].expand(-1, 1, n_kv, head_dim)
            cache.append(*(x.gather(1, last)[:, 0].contiguous() for x in (k, v)), (at < counts).int())
        q = torch.randn(len(lengths), n_kv * group, head_dim, generator=draw).to(dtype).to(device)
        return q, cache, k, v

    return build


def check_contents(cache, k, v):
    """The pages hold PyTorch's quantization of what was appended; search keys are those of what the pages hold."""
    for b, n in enumerate(cache.lengths.tolist()):
        stored = reference.context(cache, b)
        for x, scale, got in ((k, cache.k_scale, stored[0]), (v, cache.v_scale, stored[1])):
            want = quantized(x[b, :n], scale).double() * scale[:, None].double()
            assert torch.equal(got, want.transpose(0, 1))
        for h in range(cache.n_kv_heads):
            mean, low, high = reference.block_summaries(stored[0][h], cache.block_size)
            whole = -(-n // cache.block_size)
            keys = [(cache.key_means, mean), (cache.key_min, low), (cache.key_max, high)]
            for got, want in keys if cache.key_min is not None else keys[:1]:
                torch.testing.assert_close(got[b, h, :whole].double(), want, rtol=2**-10, atol=2**-20)  # fp16
                assert got[b, h, whole:].isnan().all()
    written = int(cache.lengths.sum()) * cache.n_kv_heads * cache.head_dim
    for x in (cache.k, cache.v):
        assert int((x.view(torch.uint8) != 0x7F).sum()) == written  # nothing else was touched


# ---- what is stored -------------------------------------------------------------------------------------------


@given(
    lengths=st.lists(st.integers(0, 70), min_size=1, max_size=3),
    n_kv=st.integers(1, 3),
    page_size=st.sampled_from([1, 4, 16]),
    pages_per_block=st.integers(1, 3),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    scales=st.sampled_from(["powers", "any"]),
    steps=st.integers(0, 5),
    seed=st.integers(0, 99),
)
@example([70, 33, 0], 3, 4, 2, torch.bfloat16, "any", 3, 1)  # steps that close a block, and open one
@example([32, 5], 2, 16, 3, torch.float32, "any", 1, 2)
def test_any_sequence_of_appends(
    make8, lengths, n_kv, page_size, pages_per_block, dtype, scales, steps, seed
):
    if torch.cuda.is_available() and scales == "any":
        return  # a quotient of the GPU may differ in its last bit, and fall to the other side of a halfway case
    _, cache, k, v = make8(lengths, n_kv=n_kv, page_size=page_size, block_size=page_size * pages_per_block, dtype=dtype,
                           scales=scales, seed=seed, steps=steps, bounds=True, max_tokens=80)  # fmt: skip
    assert cache.lengths.tolist() == lengths
    check_contents(cache, k, v)


def test_every_number_rounds_as_it_should(device):
    """All of fp8, the halfway cases between neighbours and their neighbours in fp32, both signs, both kernels."""
    grid = torch.arange(127, dtype=torch.uint8).view(FP8).float()
    middle = (grid[1:] + grid[:-1]) / 2
    numbers = [grid, middle, middle.nextafter(torch.tensor(0.0)), middle.nextafter(torch.tensor(1e9))]
    numbers = torch.cat(
        [*numbers, torch.tensor([448.1, 464.0, 480.0, 1e9, 3e38, float("inf"), 1e-30, 2**-10])]
    )
    numbers = torch.cat([numbers, -numbers])
    rows = -(-len(numbers) // 256)
    k = torch.nn.functional.pad(numbers, (0, rows * 256 - len(numbers))).view(1, rows, 1, 256).to(device)
    want = quantized(k, torch.ones(1, device=device))[0, :, 0].float()
    assert want.abs().max() == 448
    for step in (False, True):
        cache = PagedKVCache(1, 1, 256, rows, page_size=1, dtype=FP8, device=device)
        cache.calibrate(torch.ones_like(k), torch.ones_like(k))
        cache.k_scale.fill_(1.0)
        cache.v_scale.fill_(1.0)
        if step:
            for row in k[0]:
                cache.append(row[None], row[None])
        else:
            cache.append(k, k)
        assert torch.equal(cache.k[:, 0, 0].float(), want)
        assert torch.equal(cache.v[:, 0, 0].float(), want)


@pytest.mark.gpu  # the interpreter makes 0 of it
@pytest.mark.parametrize("step", [False, True])
def test_a_nan_stays_a_nan(device, step):
    cache = PagedKVCache(1, 1, 16, 16, dtype=FP8, device=device, k_scale=torch.ones(1, device=device),
                         v_scale=torch.ones(1, device=device))  # fmt: skip
    x = torch.ones(1, 1 if step else 2, 1, 16, device=device)
    x[..., 3] = float("nan")
    cache.append(x[:, 0] if step else x, x[:, 0] if step else x)
    assert cache.k[0, 0, 0].float().isnan().tolist() == [i == 3 for i in range(16)]
    assert cache.v[0, 0, 0].float().isnan().tolist() == [i == 3 for i in range(16)]


@pytest.mark.parametrize("n_tokens", [31, 32, 33])
def test_refresh_makes_the_same_search_keys(make8, n_tokens):
    _, cache, k, v = make8([n_tokens, 0], page_size=8, block_size=32, bounds=True, max_tokens=128)
    names = ("key_means", "key_min", "key_max")
    before = {name: getattr(cache, name).clone() for name in names}
    for name in (*names, "open_sum"):
        getattr(cache, name).fill_(float("nan"))
    cache.refresh()
    for name in names:
        torch.testing.assert_close(getattr(cache, name), before[name], atol=0, rtol=0, equal_nan=True)
    cache.append(*(x[:, 0].contiguous() for x in (k, v)))  # and the next step goes on from them
    check_contents(cache, *(torch.cat([x, x[:, :1]], 1) for x in (k, v)))


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("head_dim", "dtype", "page_size"),
    [(head_dim, dtype, 16) for head_dim in (16, 32, 64, 128, 256) for dtype in (torch.float16, torch.bfloat16, torch.float32)]
    + [(128, torch.bfloat16, 1), (128, torch.bfloat16, 128), (256, torch.float16, 128), (64, torch.float32, 1)],
    ids=str,
)  # fmt: skip
def test_compiled_kernels(make8, close, head_dim, dtype, page_size):
    q, cache, k, v = make8([0, 1, 1000, 4097], group=7, head_dim=head_dim, page_size=page_size, dtype=dtype, bounds=True,
                           steps=3)  # fmt: skip
    check_contents(cache, k, v)
    for splits in (1, 5, None):
        close(dense_decode(q, cache, splits=splits), reference.dense_decode(q, cache)[0])
    chosen = select_quest(q, cache, 5)
    close(sparse_decode(q, cache, chosen), reference.sparse_decode(q, cache, chosen.blocks)[0])
    close(token_topk_decode(q, cache, 8000), reference.dense_decode(q, cache)[0])  # all of them


# ---- scales ---------------------------------------------------------------------------------------------------


def test_calibration(device):
    cache = PagedKVCache(2, 4, 16, 16, dtype=FP8, device=device)
    k = torch.zeros(2, 3, 4, 16, device=device)
    for h, largest in enumerate((448.0, 224.5, 1e-3, 0.0)):
        k[1, 1, h, 5] = -largest
    v = torch.full_like(k, 7.0)
    v[0, 2] = 1e30  # beyond the first request's two tokens
    cache.calibrate(k, v, torch.tensor([2, 3], dtype=torch.int32, device=device))
    assert cache.k_scale.tolist() == [4.0, 2.0, 2**-17, 1.0]
    assert (
        cache.v_scale.tolist() == [2**-4] * 4
    )  # 7 / 2^-4 = 112: at least twice, at most four times in range
    assert cache.lengths.tolist() == [0, 0]  # nothing is appended
    kept = cache.k_scale.data_ptr()
    cache.calibrate(v.clamp(max=7), v.clamp(max=7))
    assert cache.k_scale.data_ptr() == kept  # a captured graph goes on reading the same place
    assert cache.k_scale.tolist() == [2**-4] * 4


def scales(n, device, value=1.0):
    return torch.full((n,), value, device=device)


WRONG = {
    "k_scale must be a torch.Tensor, got NoneType": lambda d: dict(v_scale=scales(2, d)),
    "v_scale must be a torch.Tensor, got NoneType": lambda d: dict(k_scale=scales(2, d)),
    "k_scale must have shape (2,), got (3,)": lambda d: dict(k_scale=scales(3, d), v_scale=scales(2, d)),
    "v_scale must have dtype torch.float32, got torch.float64": lambda d: dict(
        k_scale=scales(2, d), v_scale=scales(2, d).double()
    ),
    "k_scale must be above 0 and at most 128, got 0 to 0": lambda d: dict(
        k_scale=scales(2, d, 0.0), v_scale=scales(2, d)
    ),
    "v_scale must be above 0 and at most 128, got nan to nan": lambda d: dict(
        k_scale=scales(2, d), v_scale=torch.tensor([1.0, float("nan")], device=d)
    ),
    "k_scale must be above 0 and at most 128, got 1 to 129": lambda d: dict(
        k_scale=torch.tensor([1.0, 129.0], device=d), v_scale=scales(2, d)
    ),
    "scales must go with an fp8 cache, got torch.float16": lambda d: dict(
        k_scale=scales(2, d), v_scale=scales(2, d), dtype=torch.float16
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_scales(device, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        PagedKVCache(2, 2, 16, 64, device=device, **{"dtype": FP8} | WRONG[message](device))


def test_without_scales_nothing_runs(device):
    cache = PagedKVCache(1, 2, 16, 64, dtype=FP8, device=device, bounds=True)
    k = torch.ones(1, 2, 16, device=device)
    for call in (
        lambda: cache.append(k, k),
        lambda: cache.append(k[:, None], k[:, None]),
        cache.refresh,
        lambda: dense_decode(k, cache),
        lambda: block_topk_decode(k, cache, 1),
        lambda: select_tokens(k, cache, 1),
        lambda: select_quest(k, cache, 1),
    ):
        with pytest.raises(
            ValueError, match="an fp8 cache must have k_scale and v_scale: give both, or call"
        ):
            call()
    cache.calibrate(k[:, None], k[:, None])
    cache.append(k, k)
    assert torch.equal(dense_decode(k, cache), k)


def test_bad_calls(device):
    cache = PagedKVCache(1, 2, 16, 64, dtype=FP8, device=device)
    k = torch.ones(1, 3, 2, 16, device=device)
    for message, call in {
        "k must have 4 dimensions (batch, tokens, KV heads, head_dim), got (1, 2, 16)": lambda: cache.calibrate(k[:, 0], k),
        "v must have shape (1, 3, 2, 16), got (1, 2, 2, 16)": lambda: cache.calibrate(k, k[:, :2]),
        "k must be finite to calibrate on, got [inf, inf]": lambda: cache.calibrate(k / 0, k),
        "v must be finite to calibrate on, got [nan, nan]": lambda: cache.calibrate(k, k * float("nan")),
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=re.escape(message)):
            call()
    cache.calibrate(k, k)
    cache.append(k, k)
    for message, call in {
        "calibrate must come before the first append, at length 0, got 3": lambda: cache.calibrate(k, k),
        "k must have dtype torch.float16 or torch.bfloat16 or torch.float32, got": lambda: cache.append(k.to(FP8), k),
        "v must have dtype torch.float32, got torch.float16": lambda: cache.append(k, k.half()),
        "q must have dtype torch.float16 or torch.bfloat16 or torch.float32, got": lambda: dense_decode(k[:, 0].to(FP8), cache),
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=re.escape(message)):
            call()
    other = PagedKVCache(1, 2, 16, 64, device=device)
    with pytest.raises(ValueError, match="scales must go with an fp8 cache, got torch.float16"):
        other.calibrate(k.half(), k.half())


# ---- attention ------------------------------------------------------------------------------------------------


def check(make8, close, lengths, splits=1, **shape):
    """Against float64 over the stored numbers, as closely as a 16-bit cache: nothing else is rounded.

    bf16 more closely than its own cache: it multiplies in fp16, and only the output is bf16.
    """
    q, cache, _, _ = make8(lengths, **shape)
    out, lse = dense_decode(q, cache, splits=splits, return_lse=True)
    want, want_lse = reference.dense_decode(q, cache)
    close(out, want)
    torch.testing.assert_close(lse.double().cpu(), want_lse, atol=1e-5, rtol=1e-5)  # the same -inf, too


@pytest.mark.parametrize(
    ("head_dim", "group", "splits", "page_size", "dtype"),
    [  # bytes below head_dim 64, words of two from there on; fp32 queries take bytes
        (32, 5, 3, 8, torch.bfloat16),
        (64, 16, 1, 16, torch.float16),
        (128, 1, 3, 1, torch.bfloat16),
        (256, 5, 1, 128, torch.float16),
        (64, 1, 2, 128, torch.float32),
    ],
    ids=str,
)
def test_shapes(make8, close, head_dim, group, splits, page_size, dtype):
    check(make8, close, [page_size, 129], splits, head_dim=head_dim, group=group, page_size=page_size,
          block_size=128, dtype=dtype, scales="any")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("group", [1, 4, 5, 8])
@pytest.mark.parametrize("splits", [1, 3])
def test_groups(make8, close, group, splits):
    check(make8, close, RAGGED, splits, group=group, scales="any")


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_head_dims_and_queries(make8, close, head_dim, dtype):
    check(make8, close, [150, 3], head_dim=head_dim, dtype=dtype, group=5)


@pytest.mark.slow
@pytest.mark.parametrize("page_size", [1, 8, 16, 64, 128])
def test_page_boundaries(make8, close, page_size):
    check(make8, close, [page_size - 1, page_size, page_size + 1, 130], splits=2, page_size=page_size)


@pytest.mark.parametrize("size", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_error_of_quantization_itself(make8, size, seed):
    """Against the numbers before quantization: each key and value is off by at most 1/16 of itself (half a step of an
    eighth), or by 2^-10 of its scale where it is small. So a logit is off by at most scale * sum |q k| / 16, a
    probability by the factor exp(twice that), and the output by 1/16 of the largest value more. At random the errors
    of 64 dimensions and 200 tokens mostly cancel: within 5 % of the largest value, which is stated and not proved."""
    lengths = [200, 77]
    q, cache, k, v = make8(lengths, dtype=torch.float32, size=size, seed=seed)
    cache.lengths.zero_()
    cache.calibrate(k, v)
    cache.append(k, v, torch.tensor(lengths, dtype=torch.int32, device=k.device))
    scale = 64**-0.5 / size
    out = dense_decode(q, cache, scale=scale)
    for b, n in enumerate(lengths):
        stored = reference.context(cache, b)
        for x, unit, got in ((k, cache.k_scale, stored[0]), (v, cache.v_scale, stored[1])):
            exact = x[b, :n].transpose(0, 1).double()
            step = torch.maximum(exact.abs() / 16, unit[:, None, None].double() * 2**-10)
            assert ((got - exact).abs() <= step).all()
        for h in range(2):
            heads = slice(2 * h, 2 * h + 2)
            want, _ = reference.attention(
                q[b, heads].double(), k[b, :n, h].double(), v[b, :n, h].double(), scale
            )
            error = (out[b, heads].double() - want).abs().max() / v[b, :n, h].abs().max()
            assert 1e-4 < error < 0.05


def test_large_queries_and_scales(make8, close):
    """Logits up to about 1000, and scales at both ends of what is allowed."""
    q, cache, _, _ = make8([120], n_kv=1, dtype=torch.float16)
    for unit in (2**-20, 128.0):
        cache.k_scale.fill_(unit)
        want, want_lse = reference.dense_decode(q, cache, scale=1 / unit / 30)
        out, lse = dense_decode(q, cache, scale=1 / unit / 30, return_lse=True)
        close(out, want, scale=2.0)
        torch.testing.assert_close(lse.double().cpu(), want_lse, atol=1e-3, rtol=1e-5)


def test_where_pages_lie_and_how_they_were_filled_changes_no_bit(make8):
    q, cache, _, _ = make8(SHORT)
    first = dense_decode(q, cache, splits=2)
    again, stepwise, _, _ = make8(SHORT, steps=9)
    assert torch.equal(dense_decode(again, stepwise, splits=2), first)
    order = torch.randperm(cache.k.shape[0], generator=torch.Generator().manual_seed(1))
    moved = torch.empty_like(order)
    moved[order] = torch.arange(len(order))
    cache.k, cache.v = (x.view(torch.uint8)[order.to(x.device)].view(FP8) for x in (cache.k, cache.v))
    cache.page_table.copy_(moved.to(cache.device)[cache.page_table.long()])
    assert torch.equal(dense_decode(q, cache, splits=2), first)


@pytest.mark.parametrize("splits", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_block_topk_and_quest_read_only_their_pages(make8, close, splits):
    q, cache, _, _ = make8([0, 1, 100], page_size=8, block_size=16, bounds=True, group=5, dtype=torch.float32)
    want, _ = reference.block_topk_decode(q, cache, 3, sink_blocks=1)
    close(block_topk_decode(q, cache, 3, sink_blocks=1, splits=splits), want)
    selection = select_quest(q, cache, 2)
    want, _ = reference.block_topk_decode(q, cache, 2, scores=reference.quest_scores)
    for h in range(cache.n_kv_heads):  # NaN in every page a head did not choose
        unread = torch.ones(cache.k.shape[0], dtype=torch.bool)
        pages = selection.pages.cpu()[:, h]
        unread[pages[pages >= 0].long()] = False
        for x in (cache.k, cache.v):
            x.view(torch.uint8)[unread.to(x.device), h] = 0x7F
    close(sparse_decode(q, cache, selection, splits=splits), want)


def test_search_keys_are_scored_unscaled(make8):
    """Mean keys carry the scale already, in fp16: 2^-11 of values below 4, times 64 numbers of q / 8."""
    q, cache, _, _ = make8([100, 3], page_size=8, bounds=True, scales="any", dtype=torch.float32)
    for score, reference_score in (
        (score_blocks, reference.mean_scores),
        (score_quest, reference.quest_scores),
    ):
        got = score(q, cache).double()
        for b, n in enumerate([100, 3]):
            k, _ = reference.context(cache, b)
            for h in range(2):
                want = reference_score(q[b, 2 * h : 2 * h + 2].double() / 8, k[h], 8)
                torch.testing.assert_close(got[b, h, : -(-n // 8)], want, atol=2e-2, rtol=0)


@pytest.mark.parametrize(
    "dtype", [pytest.param(x, marks=[] if x == torch.bfloat16 else pytest.mark.slow) for x in DTYPES], ids=str
)
def test_token_topk_scores_the_stored_keys(make8, close, dtype):
    q, cache, _, _ = make8(SHORT, group=5, page_size=8, block_size=128, n_kv=3, dtype=dtype, scales="any")
    scores = score_tokens(q, cache)
    for b, n in enumerate(SHORT):
        k, _ = reference.context(cache, b)
        for h in range(3):
            logits = (q[b, 5 * h : 5 * h + 5].double() @ k[h].T).mean(0) * 64**-0.5
            torch.testing.assert_close(scores[b, h, :n].double(), logits, atol=1e-5, rtol=1e-5)
    want, want_lse = reference.token_topk_decode(q, cache, 20)
    out, lse = token_topk_decode(q, cache, 20, return_lse=True)
    close(out, want)
    torch.testing.assert_close(lse.double().cpu(), want_lse, atol=1e-5, rtol=1e-5)


def test_a_budget_of_the_whole_context_is_dense(make8):
    q, cache, _, _ = make8(SHORT, page_size=8, block_size=24)
    dense = dense_decode(q, cache, splits=2)
    assert torch.equal(block_topk_decode(q, cache, cache.max_blocks, splits=2), dense)
    assert torch.equal(token_topk_decode(q, cache, cache.max_tokens, splits=2), dense)


def test_half_the_bytes(make8, make):
    _, eight, _, _ = make8([5])
    _, sixteen = make([5], head_dim=64)
    assert 2 * eight.k.nbytes == sixteen.k.nbytes
    assert eight.key_means.nbytes == sixteen.key_means.nbytes  # search keys stay as they are


def test_scales_belong_to_the_whole_cache(device) -> None:
    cache = PagedKVCache(2, 2, 16, 32, dtype=FP8, device=device)
    prompt = torch.randn(1, 8, 2, 16, device=device).half()
    with pytest.raises(ValueError, match="scales must be set for the whole cache, .*, got rows of it: 1"):
        cache.rows(0, 1).calibrate(prompt, prompt)
    cache.calibrate(prompt.expand(2, -1, -1, -1).contiguous(), prompt.expand(2, -1, -1, -1).contiguous())
    cache.rows(1, 2).append(prompt, prompt)
    assert cache.lengths.tolist() == [0, 8]
