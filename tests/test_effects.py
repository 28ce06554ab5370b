"""Effects: what the search asks of a model is what its output does when one layer is sparse."""

import pytest
import torch

import dit_sparse
from dit_sparse import get
from dit_sparse.integrations.diffusers import layers_of
from dit_sparse.search.candidates import candidates
from dit_sparse.search.effects import Effects
from dit_sparse.search.measure import observing
from tests.tiny_wan import tiny_wan

TEXTS = ("D dense", "d draft keep=0.5 patch=[4, 4]", "t sparse_vdit table=D block=16")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return tiny_wan().transformer


@torch.no_grad()
def call(model, step, branch=0):
    """Call a transformer as in step 0, 1 or 2 of a generation."""
    x = torch.randn(1, 4, 2, 8, 8, generator=torch.Generator().manual_seed(step))
    text = torch.full((1, 4, 16), 0.5 - branch)
    return model(x, torch.tensor([1000 - 300 * step]), text, return_dict=False)[0]


def asked(model, steps, **options):
    """Return what was told by step in a generation of three steps with two branches."""
    told, seen = {}, []
    effects = Effects(candidates(TEXTS), frozenset(steps), told.__setitem__,
                      lambda: seen.append(1), **options)  # fmt: skip
    dit_sparse.enable(model, observing(effects))
    with effects.asking(model):
        outs = [call(model, step, branch) for step in range(3) for branch in range(2)]
    dit_sparse.disable(model)
    return told, outs, len(seen)


def test_effects_are_those_of_tables_of_one_layer(model):
    """Against the model under a table in which that layer alone has the candidate."""
    plain = [call(model, step, branch) for step in range(3) for branch in range(2)]
    told, outs, layers = asked(model, (0, 2))
    # the generation itself stays dense
    assert all(torch.equal(a, b) for a, b in zip(outs, plain, strict=True))
    assert sorted(told) == [0, 2] and layers == 2 * layers_of(model)
    for step, rows in told.items():
        for layer, row in enumerate(rows):
            assert row[0] == 0
            for candidate, effect in zip(candidates(TEXTS)[1:], row[1:], strict=True):
                table = ["DD"] * layers_of(model)
                table[layer] = candidate.letter * 2
                letters = (TEXTS[0], candidate.text)
                dit_sparse.enable(model, get("mixed", letters=letters, table=table))
                lost = call(model, step) - plain[2 * step]
                dit_sparse.disable(model)
                want = float(lost.square().sum() / plain[2 * step].square().sum())
                assert effect == pytest.approx(want, rel=2e-3) and effect > 0


def test_model_is_left_alone_afterwards(model):
    """Also when a call fails on the way: no hook stays, and nothing goes on asking."""
    hooks = len(model._forward_hooks)

    def stop():
        raise KeyboardInterrupt

    effects = Effects(candidates(TEXTS), frozenset([1]), lambda *told: None, stop)
    dit_sparse.enable(model, observing(effects))
    with pytest.raises(KeyboardInterrupt), effects.asking(model):
        for step in range(3):
            call(model, step)
    dit_sparse.disable(model)
    assert len(model._forward_hooks) == hooks and effects._cell is None
