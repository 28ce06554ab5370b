"""Methods for language models as a whole: graphs, NaN, state, and in a model."""

from dataclasses import replace

import pytest
import torch

import dit_sparse
from dit_sparse.core import QKV
from dit_sparse.integrations import transformers as text
from dit_sparse.registry import entry
from dit_sparse.testing import Problem, of_phase, relative_error, rounding_band
from tests.tiny_text import BAND, DECODING, build, chunked, generate, left

PREFILL, DECODE = of_phase("prefill", "both"), of_phase("decode", "both")
SHAPES = (("A 4 8", "V 4 50", "A 2 20", "B 2"),) * 4
# sizes that leave something out of 90 tokens
SMALL = {
    "anchor": {"block": 8, "step": 2, "theta": 0.0},
    "blasst": {"block": (16, 16), "factor": 240.0, "decode_factor": 240.0},
    "block_topk": {"page": 8, "pages": 2},
    "delta": {"deltas": (0,), "first": 0, "pages": 3, "recent": 1, "page": 8},
    "hylra": {"tokens": 16, "block": 8, "policy": "FR"},
    "minference": {"heads": SHAPES, "block": 8, "last": 8, "sink": 2, "local": 4},
    "moba": {"topk": 2, "block": 8},
    "pbs_attn": {"block": 8, "segment": 16, "top_p": 0.4},
    "seer": {"block": 8, "ratio": 0.4},
    "xattention": {"block": 16, "tau": 0.3, "stride": 4},
}


@pytest.fixture
def ids():
    return torch.randint(2, 61, (2, 90))


@pytest.mark.parametrize("name", PREFILL)
def test_nan_in_gives_nan_out(name):
    q, k, v = torch.randn(3, 1, 4, 256, 16)
    q[0, 0, 5, 0] = float("nan")
    for params in ({}, SMALL[name]):
        out = dit_sparse.attention(q, k, v, name, causal=True, **params)
        assert out[0, 0, 5].isnan().all() and out[0, 1:].isfinite().all()


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
@pytest.mark.parametrize("name", of_phase("prefill", "decode", "both"))
def test_a_whole_method_is_one_graph(name):
    graphs, method = [], dit_sparse.get(name, **SMALL[name])
    q, k, v = torch.randn(3, 1, 4, 90, 16)
    q = q[:, :, -1:] if name not in PREFILL else q

    def call(q, k, v):
        return dit_sparse.attention(q, k, v, method, causal=True)

    def backend(graph, _):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    out = torch.compile(call, fullgraph=True, backend=backend)(q, k, v)
    assert len(graphs) == 1 and relative_error(out, call(q, k, v)) < 1e-6


@pytest.mark.parametrize("name", of_phase("prefill", "decode", "both"))
def test_triton_gives_the_same(name):
    """In Triton's interpreter, or on a GPU: grouped heads, and a past before the queries."""
    queries = 23 if name in PREFILL else 1
    exact = Problem.make((queries, 61), batch=1, heads=4)
    exact = replace(exact, x=QKV(exact.x.q, *(t[:, ::2] for t in exact.x[1:])))
    single, method = exact.to(torch.float32), dit_sparse.get(name, **SMALL[name])
    plan = method.plan(exact.x, exact.context())
    truth = method.compute(exact.x, plan, exact.context())
    eager, out = (
        method.compute(single.x, plan, single.context(impl)) for impl in ("reference", "triton")
    )
    bound = 2 * relative_error(eager, truth) + 4 * rounding_band(torch.float32)
    assert relative_error(out, truth) < bound


@pytest.mark.parametrize("name", PREFILL)
def test_a_prefill_is_sparse_and_padding_changes_nothing(name):
    """In one piece and in chunks, where the queries' positions begin behind the first keys."""
    # so many rows agree to skip a block only where many others came before it
    ids = torch.randint(2, 61, (2, 240 if name == "blasst" else 90))
    model, mask = build(), left(ids)
    with torch.no_grad():
        dense = model(ids).logits
        text.enable(model, name, **SMALL[name])
        out, chunks = model(ids, attention_mask=mask).logits, chunked(model, ids, mask)
        assert 0 < text.report(model).density < 0.97
        assert (out[0] - dense[0]).abs().max() > 1e3 * BAND
        for together, run in ((out, model), (chunks, None)):
            for sample, real in enumerate(mask.bool()):
                own, ones = ids[sample : sample + 1, real], torch.ones(1, int(real.sum()))
                cut = 37 - int((~real).sum())
                alone = run(own).logits if run else chunked(model, own, ones.long(), cut)
                assert (together[sample][real] - alone[0]).abs().max() < BAND
        generate(model, ids, mask)
        reasons = set(text.report(model).reasons)
        assert reasons == (set() if name in DECODE else {DECODING})


@pytest.mark.parametrize("name", ["blasst"])
def test_what_a_kernel_leaves_out_on_its_way_is_reported(name):
    """The same logits and density as where the choice stands before the kernel."""
    ids, found = torch.randint(2, 61, (2, 240)), []
    for impl in ("reference", "torch"):
        model = text.enable(build(), name, impl=impl, **SMALL[name])
        with torch.no_grad():
            found.append((model(ids, attention_mask=left(ids)).logits, text.report(model)))
    (before, plans), (inside, counts) = found
    real = left(ids).bool()
    assert (before[real] - inside[real]).abs().max() < BAND
    assert counts.density == pytest.approx(plans.density, abs=1e-5) and counts.density < 0.97
    assert "on its way" in counts.implementations["torch"]


@pytest.mark.parametrize("name", DECODE)
@pytest.mark.parametrize("cache", [None, "static"])
def test_decoding_is_sparse(name, cache, ids):
    """Padding changes nothing, nor does the kind of the cache; drafts are decoding, too."""
    model, mask = text.enable(build(), name, **SMALL[name]), left(ids)
    both = generate(model, ids, mask, max_new_tokens=6, cache_implementation=cache)
    found = text.report(model)
    assert [c.sparse for c in found.cells if c.layer == 1][1:] == [1] * 5
    assert all(c.density < 0.9 for c in found.cells if c.step and c.layer)
    one = generate(model, ids[1:, 23:], mask[1:, 23:], max_new_tokens=6)
    assert torch.equal(both[1, -6:], one[0, -6:])
    with torch.no_grad():
        chunked(model, ids, mask, cut=84)
    assert text.report(model).sparse_calls >= 2


def test_every_method_has_small_settings():
    assert set(of_phase("prefill", "decode", "both")) <= set(SMALL)
    assert entry("block_topk").xfail
