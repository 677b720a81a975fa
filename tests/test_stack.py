"""A stack of layers: counts against sums over layers and tokens, and the law of equal layers as it was before there were others."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_lab.cost.hardware import find_hardware
from kinetics_lab.cost.models import MODELS
from kinetics_lab.cost.policies import Dense, TopK, parse_policy
from kinetics_lab.cost.request import cost_parts, decode_cost, max_batch, mixing, prefill_cost
from kinetics_lab.cost.shapes import CACHE_KINDS, PARAMETER_KINDS, ModelShape
from kinetics_lab.cost.shapes.parts import Attention, Experts, FeedForward, Part, State
from kinetics_lab.cost.silicon import Silicon

# Model, counting, policy, FLOP and bytes of the settings below, by the closed forms for equal layers of version 0.2.
BEFORE = """
qwen3-8b exact dense 5.152486434578432e+16 6753023802584577.0
qwen3-8b exact topk:512 2.4701641165550304e+16 1345059777202872.0
qwen3-8b exact topk:512:false 3.833259542553878e+16 4103877457361592.0
qwen3-8b exact block_topk:512:32 2.5127608486174944e+16 1431272829707832.0
qwen3-8b exact block_topk:512:32:4:true 2.514417239361976e+16 1435413806569036.5
qwen3-8b exact strided_block_topk:512:32:4:true:16 2.55701397142444e+16 1521626859073996.5
qwen3-8b exact quest:512:16 2.6405510448048868e+16 1689911987222712.0
qwen3-8b exact local:512:4 2.4705039713974656e+16 1345909414308960.2
qwen3-8b paper dense 5.341794281524224e+16 6753023802584577.0
qwen3-8b paper topk:512 2.659800904571085e+16 1345882129878528.0
qwen3-8b paper block_topk:512:32 2.692079317416909e+16 1432095182383488.2
qwen3-8b paper local:512:4 2.6601461973448704e+16 1346745361812992.0
qwen3-8b released dense 5.341794281524224e+16 6753023802584577.0
qwen3-8b released topk:512 2.660290567438131e+16 1347106287046144.0
qwen3-8b released block_topk:512:32 2.7019062830747136e+16 1423712216335232.2
qwen3-8b released local:512:4 2.660644277341184e+16 1347990561803776.0
qwen3-30b-a3b exact dense 4.723091450281984e+16 6480971722632152.0
qwen3-30b-a3b exact topk:512 1.1068126567915312e+16 2838575016138685.5
qwen3-30b-a3b exact topk:512:false 2.944493649711083e+16 4696700364603325.0
qwen3-30b-a3b exact block_topk:512:32 1.1642401878202672e+16 2896641433278205.5
qwen3-30b-a3b exact block_topk:512:32:4:true 1.1664710530312364e+16 2899430014791917.0
qwen3-30b-a3b exact strided_block_topk:512:32:4:true:16 1.2238985840599724e+16 2957496431931437.0
qwen3-30b-a3b exact quest:512:16 1.3365227809064752e+16 3070840684696765.5
qwen3-30b-a3b exact local:512:4 1.1072703811959548e+16 2839147171644215.0
qwen3-30b-a3b paper dense 4.801706135365632e+16 6480971722632152.0
qwen3-30b-a3b paper topk:512 1.1858702286327808e+16 2839128624585687.5
qwen3-30b-a3b paper block_topk:512:32 1.2270846781178368e+16 2897195041725208.0
qwen3-30b-a3b paper local:512:4 1.1863352761257984e+16 2839709933951959.5
qwen3-30b-a3b released dense 4.801706135365632e+16 6480971722632152.0
qwen3-30b-a3b released topk:512 1.1865297167716352e+16 2839952984759255.5
qwen3-30b-a3b released block_topk:512:32 1.242636017266944e+16 2891598142297880.0
qwen3-30b-a3b released local:512:4 1.187006100629504e+16 2840548464581591.5
deepseek-v3 exact dense 9.317861082749747e+17 3.959706831830219e+16
deepseek-v3 exact topk:512 1.4501506248308243e+17 3.697637371686365e+16
deepseek-v3 exact topk:512:false 5.6834182675813914e+17 3.965020047848093e+16
deepseek-v3 exact block_topk:512:32 1.5824402386667795e+17 3.705993080316419e+16
deepseek-v3 exact block_topk:512:32:4:true 1.587290700001209e+17 3.706193696823818e+16
deepseek-v3 exact strided_block_topk:512:32:4:true:16 1.719580313837164e+17 3.714549405453872e+16
deepseek-v3 exact quest:512:16 1.979309080174645e+17 3.731060206206581e+16
deepseek-v3 exact local:512:4 1.451145832761673e+17 3.697678533779093e+16
deepseek-v3 paper dense 9.346083278248755e+17 3.959706831830219e+16
deepseek-v3 paper topk:512 1.4793355777919386e+17 3.697677191618161e+16
deepseek-v3 paper block_topk:512:32 1.5693014442572694e+17 3.706032900248215e+16
deepseek-v3 paper local:512:4 1.480346706804654e+17 3.6977190122115176e+16
deepseek-v3 released dense 9.346083278248755e+17 3.959706831830219e+16
deepseek-v3 released topk:512 1.4807694691702374e+17 3.6977364977873e+16
deepseek-v3 released block_topk:512:32 1.6101861436396387e+17 3.70529127010764e+16
deepseek-v3 released local:512:4 1.4818052462620672e+17 3.6977793378324584e+16
"""


@pytest.mark.parametrize("row", BEFORE.split("\n")[1:-1], ids=lambda row: ":".join(row.split()[:3]))
def test_models_of_equal_layers_cost_what_they_did(row):
    name, counting, policy, flops, moved = row.split()
    n_in, n_out = np.array([0.0, 100, 700, 40000])[:, None], np.array([1.0, 300, 5000, 32768])
    request = MODELS[name], parse_policy(policy), n_in, n_out
    mean = {"n_out_sq": 1.7 * n_out**2, "dense_layers": 2, "batch": 16}
    cost = decode_cost(*request, 7, counting=counting, **mean)
    cost += decode_cost(*request, 3, counting=counting, share_prompt=False)
    assert (cost.flops.sum(), cost.bytes.sum()) == pytest.approx((float(flops), float(moved)), rel=1e-12)


# --- random stacks --------------------------------------------------------------------------------

SMALL = st.integers(1, 4)


@st.composite
def attentions(draw, owns=True):
    """One attention of any kind: whole, window, chunk, compressed, with or without an index."""
    kv, ratio, qk, v = (draw(SMALL) for _ in range(4))
    kind = draw(st.sampled_from(["whole", "window", "chunk", "topk", "stride", "strided topk", "latent"]))
    more = {
        "window": {"window": draw(st.integers(1, 90))},
        "chunk": {"chunk": draw(st.integers(1, 90))},
        "topk": {"topk": draw(st.integers(1, 90)), "index": draw(st.integers(0, 3)), "index_heads": 2},
        "stride": {"stride": draw(st.integers(2, 9))},
        "strided topk": {
            "stride": draw(st.integers(2, 9)),
            "topk": draw(st.integers(1, 9)),
            "index": 3,
            "index_heads": 2,
        },
        "latent": {"latent": True, "unabsorbed": 3},
    }.get(kind, {})
    return Attention(
        heads=kv * ratio,
        kv_heads=kv,
        qk=qk,
        v=v,
        matrices=draw(SMALL),
        owns=owns and draw(st.booleans()),
        **more,
    )


STATES = st.builds(State, recurrent=SMALL, conv=SMALL, flops=SMALL, matrices=SMALL)
FEEDS = st.one_of(
    st.builds(FeedForward, matrices=SMALL, vectors=SMALL),
    st.builds(
        Experts, count=st.integers(4, 9), chosen=SMALL, each=SMALL, width=SMALL, router=SMALL, matrices=SMALL
    ),
)
LAYERS = st.tuples(st.one_of(attentions(), STATES), FEEDS)


def stack(layers, **more):
    return ModelShape(name="s", family="t", hidden=2, vocab=3, layers=tuple(layers), **more)


STACKS = st.lists(LAYERS, min_size=1, max_size=6).map(stack)


def entries(one, n):
    """Entries that a step at context n attends to, the entries kept, by looking at each token."""
    tokens = list(range(1, n + 1))
    seen = [
        t
        for t in tokens
        if t > n - one.window and (one.chunk == math.inf or (t - 1) // one.chunk == (n - 1) // one.chunk)
    ]
    kept = [t for t in tokens if t > n - min(one.window, one.chunk)]
    whole = [len([t for t in which if t % one.stride == 0]) for which in (seen, kept)]
    return min(whole[0], one.topk), whole[1]


@given(shape=STACKS, n=st.integers(0, 200))
def test_a_context_is_the_sum_over_layers_and_tokens(shape, n):
    stored, read, flops = dict.fromkeys(CACHE_KINDS, 0), dict.fromkeys(CACHE_KINDS, 0), 0
    for mixer, _ in shape.layers:
        if isinstance(mixer, State):
            for held in (stored, read):
                held["state"] += mixer.recurrent
                held["conv"] += mixer.conv
            flops += mixer.flops
            continue
        chosen, kept = entries(mixer, n)
        width = mixer.kv_heads * (mixer.qk + (0 if mixer.latent else mixer.v))
        read["kv"] += width * chosen
        read["index"] += mixer.index * kept
        stored["kv"] += width * kept * mixer.owns
        stored["index"] += mixer.index * kept * mixer.owns
        flops += 2 * mixer.heads * (mixer.qk + mixer.v) * chosen + 2 * mixer.index_heads * mixer.index * kept
    assert {kind: float(value) for kind, value in shape.stored(n).items()} == stored
    assert {kind: float(value) for kind, value in shape.read(n).items()} == read
    assert float(shape.flops(n)) == flops


@given(shape=STACKS)
def test_more_context_reads_no_less_and_no_more_than_is_stored(shape):
    n = np.arange(300)
    stored, read = shape.stored(n), shape.read(n)
    shared = any(not one.owns for one in shape.mixers if isinstance(one, Attention))
    for kind in CACHE_KINDS:
        assert shared or (stored[kind] >= read[kind]).all()
        if all(one.chunk == math.inf for one in shape.mixers if isinstance(one, Attention)):
            assert (np.diff(read[kind] * np.ones(300)) >= 0).all()


@given(layers=st.lists(LAYERS, min_size=1, max_size=6), data=st.data())
def test_the_order_of_layers_changes_no_total(layers, data):
    one, other = stack(layers), stack(data.draw(st.permutations(layers)))
    assert one.parameters == other.parameters
    for what in ("stored", "read"):
        assert {k: float(v) for k, v in getattr(one, what)(99).items()} == {
            k: float(v) for k, v in getattr(other, what)(99).items()
        }
    assert sum(count for count, _ in one.groups) == one.n_layers == len(layers)


FINE = 8


def brute_force(shape, n_in, n_out, n_trials, share, policy):
    """Attention, search and state of a decode, added up over fine steps; a compressed entry counts as it fills."""
    own = (np.arange(n_out * FINE) + 0.5) / FINE
    context, prompt_once = n_in + own, 1 / n_trials if share else 1
    total = np.zeros(2)  # FLOP, elements
    for mixer, _ in shape.layers:
        if isinstance(mixer, State):
            total += n_trials * n_out * np.array([mixer.flops, 2 * (mixer.recurrent + mixer.conv)])
            continue
        start = np.maximum(context - mixer.window, 0)
        if mixer.chunk < math.inf:
            start = context // mixer.chunk * mixer.chunk
        of_prompt = np.maximum(n_in - start, 0)
        mine = context - start - of_prompt
        moved = of_prompt * prompt_once + mine
        reads = seen = (context - start) / mixer.stride
        read_moved = moved / mixer.stride
        if mixer.topk < math.inf:
            reads = read_moved = np.minimum(seen, mixer.topk)
        elif mixer.whole and not isinstance(policy, Dense):
            reads = read_moved = np.minimum(seen, policy.tokens_read)
        width = mixer.kv_heads * (mixer.qk + (0 if mixer.latent else mixer.v))
        scan = mixer.topk < math.inf
        total += n_trials / FINE * np.array([
            2 * mixer.heads * (mixer.qk + mixer.v) * reads.sum() + scan * 2 * mixer.index_heads * mixer.index * seen.sum(),
            width * read_moved.sum() + scan * mixer.index * moved.sum() / mixer.stride,
        ])  # fmt: skip
    return total


@given(
    shape=STACKS, n_in=st.integers(0, 200), n_out=st.integers(0, 300), n_trials=st.sampled_from([1, 5]),
    share=st.booleans(), policy=st.sampled_from([Dense(), TopK(64)]),
)  # fmt: skip
def test_a_decode_is_the_sum_over_its_steps(shape, n_in, n_out, n_trials, share, policy):
    parts = cost_parts(shape, policy, n_in, n_out, n_trials, bytes_per_element=1, share_prompt=share)
    flops, elements = brute_force(shape, n_in, n_out, n_trials, share, policy)
    mixers = [part for name, part in parts.items() if name != "parameters"]
    slack = n_trials * 40 * len(shape.layers)  # the cells in which a cap binds or a chunk ends
    assert sum(float(part.flops) for part in mixers) == pytest.approx(flops, rel=1e-9, abs=slack)
    assert sum(float(part.bytes) for part in mixers) == pytest.approx(elements, rel=1e-9, abs=slack)


def test_the_law_of_a_chunk_and_a_window_by_hand():
    chunked = stack([(Attention(heads=1, kv_heads=1, qk=1, v=1, chunk=10),)])
    # From 15 to 32 tokens: 5 to 10, 0 to 10, 0 to 2, each token two elements.
    assert cost_parts(chunked, Dense(), 15, 17, bytes_per_element=1)["attention"].bytes == 2 * (37.5 + 50 + 2)
    # Ten answers share what is left of the prompt in its chunk: 5 tokens while 5 more are written.
    ten = cost_parts(chunked, Dense(), 15, 17, 10, bytes_per_element=1)["attention"].bytes
    assert ten == 2 * (10 * (37.5 + 50 + 2) - 9 * 25)
    window = stack([(Attention(heads=1, kv_heads=1, qk=1, v=1, window=10),)])
    assert cost_parts(window, Dense(), 4, 20, bytes_per_element=1)["attention"].bytes == 2 * (6 * 7 + 14 * 10)
    # The prompt's 4 tokens are seen for 6 steps whole, then leave one by one.
    shared = cost_parts(window, Dense(), 4, 20, 10, bytes_per_element=1)["attention"].bytes
    assert shared == 2 * (10 * (6 * 7 + 14 * 10) - 9 * (4 * 6 + 8))


def test_an_element_of_each_kind_has_its_own_size():
    layers = [
        (
            Attention(heads=2, kv_heads=1, qk=2, v=2, topk=8, index=3, index_heads=1),
            FeedForward(matrices=10, vectors=1),
        ),
        (
            State(recurrent=7, conv=5, flops=1, matrices=4),
            Experts(count=4, chosen=2, each=6, width=1, router=3),
        ),
    ]
    shape = stack(layers, outside=(Part(matrices=2),))
    size = {kind: 3.0**i for i, kind in enumerate((*CACHE_KINDS, *PARAMETER_KINDS))}
    parts = cost_parts(shape, Dense(), 20, 1, batch=2, bytes_per_element=size)
    assert parts["attention"].bytes == 4 * 8 * size["kv"]
    assert parts["search"].bytes == pytest.approx(3 * 20.5 * size["index"])
    assert parts["state"].bytes == 2 * (7 * size["state"] + 5 * size["conv"])
    weights = {
        "mixer": 4,
        "ffn": 10,
        "router": 3,
        "experts": 6 * 3,
        "other": 2,
        "vectors": 1,
        "head": 6,
    }  # 3 of 4 met
    assert parts["parameters"].bytes == pytest.approx(sum(n * size[kind] for kind, n in weights.items()) / 2)
    # What fits is counted by kind, too: all experts, one embedding more, and per sequence 20 entries and the state.
    all_weights = sum(n * size[kind] for kind, n in (weights | {"experts": 24, "embedding": 6}).items())
    each = 20 * (4 * size["kv"] + 3 * size["index"]) + 7 * size["state"] + 5 * size["conv"]
    device = find_hardware("h200")
    assert max_batch(shape, device, 20, bytes_per_element=size) == (device.memory - all_weights) // each


def test_a_policy_acts_on_layers_that_read_their_whole_cache_alone():
    window = Attention(heads=2, kv_heads=1, qk=4, v=4, window=100)
    whole = Attention(heads=2, kv_heads=1, qk=4, v=4)
    mixed, windows = stack([(window,), (whole,), (window,)]), stack([(window,)])
    assert decode_cost(windows, TopK(10), 500, 9) == decode_cost(windows, Dense(), 500, 9)
    found = cost_parts(mixed, TopK(10), 500, 9, bytes_per_element=1)["attention"].bytes
    assert found == 8 * 9 * (2 * 100 + 10)
    assert cost_parts(mixed, TopK(10), 500, 9, dense_layers=1)["attention"].bytes == pytest.approx(
        cost_parts(mixed, Dense(), 500, 9)["attention"].bytes
    )
    with pytest.raises(ValueError, match=r"dense_layers must be 0..1 for s; got 2"):
        decode_cost(mixed, TopK(10), 500, 9, dense_layers=2)


def test_a_prompt_is_read_through_windows_and_unabsorbed():
    n = 1000
    window = stack([(Attention(heads=3, kv_heads=1, qk=2, v=5, window=64),)])
    pairs = np.minimum(np.arange(n) + 0.5, 64).sum()
    head = 2 * 3 * 2
    assert prefill_cost(window, n).flops == pytest.approx(head + 2 * 3 * 7 * pairs, rel=1e-3)
    # DeepSeek-V3 at 16K: engines read a prompt with 128 heads of 192 + 128.
    shape = MODELS["deepseek-v3"]
    matrices = 2 * ((shape.n_matmul_params - shape.head_params) * 16384 + shape.head_params)
    found = prefill_cost(shape, 16384).flops
    assert found == pytest.approx(matrices + 61 * 2 * 128 * (128 + 64 + 128) * 16384**2 / 2)
    assert found / 1e12 == pytest.approx(1840, abs=5)
    # Chosen entries are read absorbed where that takes less: long prompts, not short ones.
    chooses = stack(
        [
            (
                Attention(
                    heads=4,
                    kv_heads=1,
                    qk=10,
                    v=8,
                    latent=True,
                    unabsorbed=6,
                    topk=50,
                    index=2,
                    index_heads=3,
                ),
            )
        ]
    )
    scan = 2 * 3 * 2 * n**2 / 2
    assert prefill_cost(chooses, n).flops == head + scan + 2 * 4 * 18 * (50 * n - 50**2 / 2)
    assert prefill_cost(chooses, 40).flops == head + 2 * 3 * 2 * 800 + 2 * 4 * 6 * 800


def test_no_one_number_where_layers_differ():
    whole, small = Attention(heads=4, kv_heads=2, qk=8, v=8), Attention(heads=2, kv_heads=2, qk=8, v=8)
    shape = stack([(whole,), (small,)])
    assert (shape.n_kv_heads, shape.head_dim, shape.kv_elements_per_token) == (2, 8, 64)
    with pytest.raises(ValueError, match=r"s: heads differs from layer to layer \(2, 4\)"):
        _ = shape.n_q_heads
    with pytest.raises(
        ValueError, match=r"not every layer keeps and reads the whole context.*use stored\(n\)"
    ):
        _ = stack([(whole,), (State(recurrent=1),)]).kv_elements_per_token


def test_what_is_said_in_place_of_d_and_r():
    layers = [
        (Attention(heads=4, kv_heads=2, qk=8, v=8),),
        (Attention(heads=4, kv_heads=2, qk=8, v=8, topk=100),),
        (State(recurrent=5_000_000, flops=3),),
    ]
    shape = stack(layers)
    assert shape.n_whole == 1
    # Entries of 32 elements, 2 x 125,000 of them held and 125,100 read, and the state; 2 bytes an element.
    said = shape.told(125_000)
    assert "s has no D and no r: 1 of its 3 layers attend to the whole context" in said
    assert said.endswith("At 125,000 tokens a sequence of it holds 26 MB, and its step reads 18 MB.")
    parts = cost_parts(shape, TopK(10), 200, 1)
    whole = decode_cost(shape, TopK(10), 200, 1)
    rest = mixing(parts)
    assert (rest.flops, rest.bytes) == (whole.flops - parts["parameters"].flops, whole.bytes)
    assert rest.bytes >= 2 * 2 * 5_000_000


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: stack([]), "s: n_layers must be at least 1; got 0"),
        (lambda: Attention(heads=4, kv_heads=3, qk=1, v=1), "heads must be a multiple of kv_heads=3; got 4"),
        (lambda: Attention(heads=4, kv_heads=4, qk=0, v=1), "qk must be at least 1; got 0"),
        (lambda: Experts(count=2, chosen=3, each=1, width=1), "chosen must not exceed count=2; got 3"),
        (lambda: FeedForward(matrices=-1), "FeedForward: matrices must not be negative; got -1"),
        (lambda: stack([(whole_layer(),)]).stored(-1), "the context must be >= 0 and finite"),
    ],
)
def test_impossible_stacks_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def whole_layer():
    return Attention(heads=1, kv_heads=1, qk=1, v=1)


def test_measured_kernels_are_not_summed_for_layers_that_differ():
    assert "its layers differ" in Silicon("h200", "vllm").why_not(MODELS["gemma-3-27b"])
    assert Silicon("h200", "vllm").why_not(MODELS["qwen3-8b"]) == ""
