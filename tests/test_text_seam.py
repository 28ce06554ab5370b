"""The seam to transformers: what stays dense, compilation, enabling and its refusals."""

from copy import deepcopy

import pytest
import torch
import transformers as host

import dit_sparse
from dit_sparse.integrations import transformers as text
from tests.tiny_text import BAND, SIZES, TOKENS, build, generate, left, sparse, whole

pytest_plugins = "tests.text_fixtures"


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def odd_masks(ids):
    tree = torch.ones(2, 1, TOKENS, TOKENS, dtype=torch.bool).tril()
    tree[..., 5] = False
    hole = torch.ones_like(ids)
    hole[:, 30:40] = 0
    places = torch.cat((torch.arange(40), torch.arange(TOKENS - 40)))[None].expand(2, -1)
    return {
        "a mask that is not causal with padding": {"attention_mask": tree},
        "padding between the tokens of a sequence": {"attention_mask": hole},
        "packed": {"position_ids": places, "use_cache": False},
    }


@pytest.mark.parametrize("name", ["a mask", "padding", "packed"])
def test_other_masks_stay_dense(name, ids):
    model = build()
    given, reason = next((v, k) for k, v in odd_masks(ids).items() if k.startswith(name))
    dense = model(ids, **given).logits
    text.enable(model, sparse())
    assert torch.equal(model(ids, **given).logits, dense)
    reasons = text.report(model).reasons
    assert reasons == {reason if name != "packed" else "a mask that is not causal with padding": 2}


def test_what_asks_for_gradients_stays_dense(ids):
    model = text.enable(build(), sparse())
    with torch.enable_grad():
        model(ids, labels=ids).loss.backward()
    assert text.report(model).reasons == {"gradients are wanted": 2}
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("method", [whole, sparse])
@pytest.mark.parametrize("padded", [False, True])
def test_a_compiled_model_is_one_graph(method, padded, ids):
    model, mask = text.enable(build(), method()), left(ids) if padded else None
    eager = model(ids, attention_mask=mask, use_cache=False).logits
    text.enable(model, method())
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    out = compiled(ids, attention_mask=mask, use_cache=False).logits
    real = slice(None) if mask is None else mask.bool()
    assert (out[real] - eager[real]).abs().max() < BAND
    assert text.report(compiled).sparse_calls == 2


@pytest.mark.parametrize("family", ["Gemma3", "GptOss"])
def test_layers_that_stay_dense_do_so_when_compiled(family, ids):
    model, mask = build(family), left(ids)
    dense = model(ids, attention_mask=mask, use_cache=False).logits[mask.bool()]
    text.enable(model, whole())
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    out = compiled(ids, attention_mask=mask, use_cache=False).logits[mask.bool()]
    assert (out - dense).abs().max() < BAND
    assert text.report(compiled).sparse_calls == (1 if family == "Gemma3" else 0)


def test_a_compiled_decoding_step_is_plain_attention(ids):
    """And equals the dense model's, with a static cache."""
    model, nodes = build(), []
    dense = generate(model, ids, left(ids), cache_implementation="static")
    text.enable(model, whole())

    def backend(graph, _):
        nodes.extend(str(n.target) for n in graph.graph.nodes)
        return graph

    model.forward = torch.compile(model.forward, backend=backend, fullgraph=True)
    with torch._dynamo.config.patch(recompile_limit=32):
        out = generate(model, ids, left(ids), cache_implementation="static")
    assert torch.equal(out, dense)
    assert sum("scaled_dot_product" in n for n in nodes) == 2
    assert sum("attend_text" in n for n in nodes) == 2


def test_enabling_again_replaces_and_copies_keep_it(ids):
    model = text.enable(text.enable(build(), whole()), sparse(), impl="reference")
    copy = deepcopy(model)
    assert torch.equal(copy(ids).logits, model(ids).logits)
    assert text.report(model).implementations.keys() == {"reference"}
    model.set_attn_implementation("sdpa")
    assert "call enable again" in str(text.report(model))
    text.disable(model)
    assert not text.report(model).enabled
    assert text.disable(build()) is not None


def test_dense_layers_of_a_schedule(ids):
    model = text.enable(build(), sparse(), schedule=dit_sparse.Schedule(dense_layers=1))
    model(ids)
    assert text.report(model).reasons == {"dense layer of the schedule": 1}


def refusals():
    bert = host.BertModel(host.BertConfig(**{**SIZES, "num_hidden_layers": 1}))
    yield lambda: text.enable(torch.nn.Linear(2, 2), "sla"), ["Linear", "no model of transformers"]
    yield lambda: text.enable(bert, "sla"), ["BertModel", "no causal self-attention"]
    yield lambda: text.enable(build(), "svg"), ["method='svg'", "token-major"]
    yield lambda: text.enable(build(), "draft"), ["draft", "rule='row'"]
    yield lambda: text.enable(build(), "sla", impl="fast"), ["impl='fast'", "auto"]
    yield lambda: text.enable(build(), whole(), keep=1.0), ["'keep'", "Method value"]
    yield lambda: text.enable(build(), "sla", weights="no/file"), ["no/file"]
    yield lambda: text.enable(build(), 3), ["method=3"]
    late = {"dense_steps": 3, "block": 16}
    yield lambda: text.enable(build(), "xattention", **late), ["dense_steps=3", "dense_layers"]
    yield lambda: text.report(build()), ["never enabled"]


@pytest.mark.parametrize("case", range(10))
def test_refusals_name_what_would_work(case):
    call, words = list(refusals())[case]
    with pytest.raises(dit_sparse.DitSparseError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message
