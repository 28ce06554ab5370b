"""Language models: dense limits of every family, padding, chunks and caches."""

from dataclasses import replace

import pytest
import torch
import transformers as host

from dit_sparse.integrations import transformers as text
from tests.tiny_text import (
    BAND,
    DECODING,
    FAMILIES,
    TOKENS,
    build,
    chunked,
    everywhere,
    generate,
    left,
    sparse,
    whole,
)

pytest_plugins = "tests.text_fixtures"


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def runs(model, ids):
    """Return what a model gives in every way that it is called, at real tokens."""
    mask, pad = torch.ones_like(ids), left(ids)
    return {
        "plain": model(ids).logits,
        "ones": model(ids, attention_mask=mask).logits,
        "left": model(ids, attention_mask=pad).logits[pad.bool()],
        "right": model(ids, attention_mask=pad.flip(1)).logits[pad.flip(1).bool()],
        "chunks": chunked(model, ids, mask),
        "left chunks": chunked(model, ids, pad)[pad.bool()],
        "dynamic": generate(model, ids, pad),
        "static": generate(model, ids, pad, cache_implementation="static"),
        "quiet": generate(model, ids, mask, use_cache=False),
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_the_dense_limit_is_the_dense_model(family, ids):
    model = build(family)
    dense = runs(model, ids)
    text.enable(model, whole())
    for name, out in runs(model, ids).items():
        assert (out - dense[name]).abs().max() < BAND, name
    found = text.report(model)
    assert set(found.reasons) - {DECODING} == FAMILIES[family][1]
    assert (found.sparse_calls > 0) == (family not in ("Mistral sliding", "Gemma2", "GptOss"))
    text.disable(model)
    assert torch.equal(model(ids).logits, dense["plain"])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_dense_limit_of_decoding(family, ids):
    """Greedy, with beams, with drafted tokens that are taken back, and packed."""
    model, pad = build(family), left(ids)
    places = torch.cat((torch.arange(40), torch.arange(TOKENS - 40)))[None].expand(2, -1)

    def called():
        yield generate(model, ids, pad, max_new_tokens=5)
        yield generate(model, ids, pad, max_new_tokens=5, cache_implementation="static")
        yield generate(model, ids, pad, max_new_tokens=4, num_beams=3)
        more = {"max_new_tokens": 6, "prompt_lookup_num_tokens": 3}
        yield generate(model, ids[:1], torch.ones_like(ids[:1]), **more)
        yield model(ids, position_ids=places, use_cache=False).logits

    dense = list(called())
    text.enable(model, everywhere())
    found = []
    for out, want in zip(called(), dense, strict=True):
        assert (out - want).abs().max() < BAND
        found.append(text.report(model))
    # what is packed is told by its mask, in layers that have no other reason
    full = family not in ("Mistral sliding", "Gemma2", "GptOss")
    packed = {"a mask that is not causal with padding"} if full else set()
    assert set(found[-1].reasons) == FAMILIES[family][1] | packed
    for one in found[:-1]:
        assert (one.sparse_calls > 0) == full and set(one.reasons) == FAMILIES[family][1]


def test_sparse_is_sparse(ids):
    model = build()
    dense = model(ids).logits
    text.enable(model, sparse())
    assert (model(ids).logits - dense).abs().max() > 1e3 * BAND
    generate(model, ids, left(ids))
    found = text.report(model)
    assert 0 < min(c.density for c in found.cells if c.sparse) < 0.8
    assert [c.sparse for c in found.cells if c.layer == 0] == [1, 0, 0]
    assert found.reasons == {DECODING: 4} and "prefill" in str(found)
    assert found.implementations and found.layers == {"model": 2}


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_change_a_sample(side, ids):
    """The method sees each sample's own tokens: as alone, whatever stands beside it."""
    model, mask = text.enable(build(), sparse()), left(ids)
    if side == "right":
        mask = mask.flip(1)
    together, real = model(ids, attention_mask=mask).logits, mask[1].bool()
    for sample, tokens in ((0, ids[:1]), (1, ids[1:, real])):
        alone = model(tokens).logits[0]
        assert (together[sample][mask[sample].bool()] - alone).abs().max() < BAND


def test_a_static_cache_changes_nothing(ids):
    model = text.enable(build(), sparse())
    cache = host.StaticCache(config=model.config, max_cache_len=2 * TOKENS)
    out = model(ids, past_key_values=cache).logits
    assert text.report(model).sparse_calls == 2
    assert (out - model(ids).logits).abs().max() < BAND


def test_chunks_see_the_past(ids):
    """Sparse chunks differ from one sparse piece, but not from attention with a query offset."""
    model, seen = text.enable(build(), sparse()), []
    method = text._last[model].session.method

    def watched(x, ctx):
        seen.append((x.q.shape[2], x.k.shape[2], ctx.causal))
        return method.score(x, method.arrange(x, ctx), ctx)

    session = text._last[model].session
    session.method = replace(method, score=lambda x, layout, ctx: watched(x, ctx))
    chunked(model, ids, left(ids))
    # each sample on its own: the second one's first 23 tokens are padding
    assert seen[:4] == [(37, 37, True), (14, 14, True)] * 2
    assert seen[4:] == [(53, 90, True), (53, 67, True)] * 2
