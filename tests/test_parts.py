"""A call in parts is the call as a whole, in less memory."""

from dataclasses import replace

import pytest
import torch

import dit_sparse
from dit_sparse.core import QKV, Context
from dit_sparse.integrations import parts, transformers_session
from dit_sparse.integrations import transformers as text
from dit_sparse.integrations.parts import in_parts
from tests.test_text_methods import SMALL
from tests.tiny_text import BAND, build

CELLS = 4 * 90 * 3


def x(queries, keys):
    q, k, v = torch.randn(1, 4, queries, 16), *torch.randn(2, 1, 2, keys, 16)
    return QKV(q, k, v)


@pytest.mark.parametrize("past", [0, 24, 10])
@pytest.mark.parametrize("name", ["minference", "minference of blocks", "anchor"])
def test_parts_are_the_whole(name, past, monkeypatch):
    """The last part first, every query once, and the output of one call."""
    name, _, blocks = name.partition(" of ")
    more = {"heads": (("B 2", "B 3", "V 8 20", "B 2"),)} if blocks else {}
    method, given = dit_sparse.get(name, **{**SMALL[name], **more}), x(90, 90 + past)
    ctx = Context(causal=True)
    whole = method(given, ctx)
    assert [rows for rows, *_ in in_parts(method, given, ctx)] == [slice(0, 90)]
    monkeypatch.setattr(parts, "CELLS", CELLS)
    monkeypatch.setattr(parts, "LEAST", 2)
    out, seen = torch.full_like(whole, float("nan")), []
    for rows, part, own in in_parts(method, given, ctx):
        out[:, :, rows] = method.compute(part, method.plan(part, own), own)
        seen.append(rows.stop)
    assert len(seen) >= 2 and seen == sorted(seen, reverse=True) and seen[0] == 90
    assert (out - whole).abs().max() < BAND


def test_plans_of_blocks_stay_whole(monkeypatch):
    """Only plans over single keys grow with the square of the length."""
    monkeypatch.setattr(parts, "CELLS", 1)
    given = x(90, 90)
    for name in ("xattention", "pbs_attn"):
        found = in_parts(dit_sparse.get(name, **SMALL[name]), given, Context(causal=True))
        assert len(list(found)) == 1
    # what sorts keys is asked for sizes alone: `plan` arranges
    method, seen = dit_sparse.get("pbs_attn", **SMALL["pbs_attn"]), []

    def arrange(x, ctx):
        seen.append(x.k.shape[2])
        return method.arrange(x, ctx)

    list(in_parts(replace(method, arrange=arrange), given, Context(causal=True)))
    assert seen == [2]
    # decoding has one query block
    single = dit_sparse.get("minference", **SMALL["minference"])
    assert len(list(in_parts(single, x(1, 90), Context(causal=True)))) == 1


def test_a_model_does_not_notice(monkeypatch):
    """Logits and the density of the report are those of whole plans."""
    ids, model, seen = torch.randint(2, 61, (2, 90)), build(), []

    def spied(*args):
        for found in in_parts(*args):
            seen.append(found[0])
            yield found

    monkeypatch.setattr(transformers_session, "in_parts", spied)
    text.enable(model, "minference", **SMALL["minference"])
    with torch.no_grad():
        whole = model(ids).logits
        density = text.report(model).density
        assert set(map(str, seen)) == {str(slice(0, 90))}
        monkeypatch.setattr(parts, "CELLS", 2 * CELLS)
        monkeypatch.setattr(parts, "LEAST", 2)
        logits = model(ids).logits
    assert seen[-1].start == 0 and seen[-1].stop < 90
    assert (logits - whole).abs().max() < BAND
    assert text.report(model).density == pytest.approx(density, rel=1e-5)
