"""Where the tokens of a call stand: open ends, missing queries, masks, samples of their own."""

import diffusers.models.transformers as hosts
import pytest
import torch
from torch import nn

import dit_sparse
from dit_sparse.integrations.adapters import adapters, find, refused
from dit_sparse.integrations.sequence import REST, Sequence, groups, valid_tokens

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("before", "after", "queries", "places"),
    [
        (2, 3, 11, range(11)),
        (2, 3, 6, range(2, 8)),
        (4, 0, 8, [0, 1, *range(4, 10)]),
        (0, 4, 8, range(8)),
        (4, 0, 6, range(4, 10)),
    ],
)
def test_missing_queries(before, after, queries, places):
    """Those of the box stand at its place, others at extra ones; none is lost or doubled."""
    of = Sequence(1, 2, 3, before, after)
    assert of.why_not(queries, of.tokens) == ""
    q = torch.randn(2, queries, 1, 4)
    spread = of.spread(q)
    assert torch.equal(of.collect(spread, queries), q)
    assert spread.shape[1] == of.tokens
    assert torch.equal(spread.any(3)[0, :, 0].nonzero()[:, 0], torch.tensor(list(places)))


@pytest.mark.parametrize(
    ("of", "queries", "keys", "masked"),
    [
        (Sequence(1, 2, 3, 2, 2), 7, 10, False),
        (Sequence(1, 2, 3, 4), 8, 10, True),
        (Sequence(1, 2, 3, 4), 10, 11, False),
        (Sequence(1, 2, 3, 4), 4, 10, False),
        (Sequence(1, 2, 3, 4, packed=True), 6, 10, False),
        (Sequence(0, 0, 0), 0, 0, False),
    ],
)
def test_other_calls_have_a_reason(of, queries, keys, masked):
    assert of.why_not(queries, keys, masked)


def test_open_ends():
    assert Sequence(1, 2, 3, 1, REST).of(10) == Sequence(1, 2, 3, 1, 3)
    assert Sequence(1, 2, 3, REST, 1).of(10) == Sequence(1, 2, 3, 3, 1, packed=True)
    assert Sequence(1, 2, 3, 4).of(6, ["box"]) == Sequence(1, 2, 3)
    assert Sequence(1, 2, 3, 4).of(12, ["two boxes"]) == Sequence(2, 2, 3)
    assert Sequence(1, 2, 3, 4).of(6, ["two boxes"]) == Sequence(1, 2, 3, 4)
    assert Sequence(1, 2, 3, 4).of(6).why_not(6, 6)


KEYS = torch.tensor([[True, True, False], [True, True, True]])
BOTH = KEYS[:, None, :, None] & KEYS[:, None, None, :]


@pytest.mark.parametrize(
    ("mask", "kind"),
    [
        (KEYS, "keys"),
        (KEYS[:, None, None], "keys"),
        (KEYS[:, None, None].expand(-1, 4, 3, -1), "keys"),
        (torch.where(KEYS, 0.0, -torch.inf)[:, None, None], "keys"),
        (BOTH, "pairs"),
        (BOTH | BOTH.logical_not() & torch.eye(3, dtype=torch.bool), "pairs"),
        (BOTH, "flags"),
        (BOTH.float(), "flags"),
        (torch.where(BOTH, 0.0, -1e4), "flags"),
    ],
)
def test_valid_tokens(mask, kind):
    found = valid_tokens(mask, kind)
    assert found is not None and torch.equal(found, KEYS)


def test_masks_that_say_more():
    for mask, kind in (
        (BOTH, "keys"),
        (BOTH.expand(-1, 4, -1, -1), "pairs"),
        (BOTH.float(), "pairs"),
        (torch.tensor([[0.0, 0.5, -1e4]]), "keys"),
    ):
        assert valid_tokens(mask, kind) is None


def test_packed_samples():
    """[text, box, padding]: the box begins where the text of its sample ends."""
    valid = torch.arange(9) < torch.tensor([9, 7])[:, None]
    of = Sequence(1, 2, 2, 4, 1, packed=True)
    found = groups(of, valid, CPU)
    assert not isinstance(found, str)
    first, second = found
    x = torch.arange(18.0).view(2, 9, 1, 1)
    assert first.take(x).flatten().tolist() == [4, 5, 6, 7, 0, 1, 2, 3, 8]
    assert second.take(x).flatten().tolist() == [11, 12, 13, 14, 9, 10, 15]
    assert (first.grid.text, second.grid.text) == (5, 3)
    out = torch.zeros_like(x)
    for group in (first, second):
        group.put(out, group.take(x))
    assert torch.equal(out, x * valid[..., None, None])
    valid[0, 5] = False
    assert "padding" in str(groups(Sequence(1, 2, 2, 4, 1), valid, CPU))


def test_every_class_of_diffusers_is_known():
    found = {name: getattr(hosts, name) for name in dir(hosts) if name[0].isupper()}
    modules = {n for n, kind in found.items() if isinstance(kind, type)}
    assert modules <= set(adapters()) | set(refused())
    assert not set(adapters()) & set(refused())


@pytest.mark.parametrize("name", sorted(refused()))
def test_refused_with_the_reason(name):
    model = type(name, (nn.Module,), {})()
    with pytest.raises(dit_sparse.UnsupportedModelError, match=rf"{name}: it|{name}: text"):
        find(model, model)
