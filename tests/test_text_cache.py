"""What block_topk keeps of a growing cache: the same answers as without, and dropped in time."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import transformers as host

from dit_sparse.integrations import transformers as text
from dit_sparse.integrations.transformers import TRIAL
from dit_sparse.score import pages
from tests.tiny_text import BAND, LEFT, TOKENS, build, generate, left

PAGE, STEPS = 4, 10

pytest_plugins = "tests.text_fixtures"


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def pooled(monkeypatch):
    """Collect how many keys each call of the method pools, but for the trial of `enable`."""
    found, pool = [], pages.pool_blocks

    def watched(x, *args, **options):
        if x.shape[2] != TRIAL:
            found.append(x.shape[2])
        return pool(x, *args, **options)

    monkeypatch.setattr(pages, "pool_blocks", watched)
    return found


def enabled():
    return text.enable(build(), "block_topk", page=PAGE, pages=2)


class Reader:
    """A model with a cache, read token by token behind a prefill."""

    def __init__(self, model, ids, mask=None, static=False):
        self.model, config = model, model.config
        self.mask = torch.ones_like(ids) if mask is None else mask
        self.cache = host.DynamicCache(config=config)
        if static:
            self.cache = host.StaticCache(config=config, max_cache_len=2 * TOKENS)
        self.read(ids, self.mask)

    def read(self, tokens, mask=None):
        """Return the logits behind some tokens."""
        if mask is None:
            self.mask = torch.nn.functional.pad(self.mask, (0, tokens.shape[1]), value=1)
        mask = self.mask
        return self.model(tokens, attention_mask=mask, past_key_values=self.cache).logits

    def steps(self, tokens):
        return [self.read(token[:, None]) for token in tokens.unbind(1)]

    def crop(self, count):
        """Forget the last tokens."""
        self.cache.crop(-count)
        self.mask = self.mask[:, :-count]


def grows(model, ids, **options):
    return Reader(model, ids, **options).steps(ids[:, :STEPS])


def crops(model, ids):
    """The same number of tokens again, others: no length tells that."""
    reader = Reader(model, ids)
    out = reader.steps(ids[:, :STEPS])
    reader.crop(STEPS)
    return out + reader.steps(ids[:, 30 : 30 + STEPS]) + reader.steps(ids[:, :2])


def drafts(model, ids):
    """Three tokens at a time, of which one is taken back."""
    reader, out = Reader(model, ids), []
    for at in range(0, STEPS, 2):
        out.append(reader.read(ids[:, at : at + 3]))
        reader.crop(1)
    return out


def reorders(model, ids):
    reader = Reader(model, ids)
    out = reader.steps(ids[:, :PAGE])
    reader.cache.reorder_cache(torch.tensor([1, 0]))
    return out + reader.steps(ids[:, PAGE:STEPS])


def alternates(model, ids):
    """Two texts of the same length, each with a cache of its own."""
    readers, out = (Reader(model, ids), Reader(model, ids.flip(0))), []
    for at in range(STEPS):
        out += [reader.read(ids[:, at : at + 1]) for reader in readers]
    return out


def copies(model, ids):
    """A copied model and its original take turns."""
    readers, out = (Reader(model, ids), Reader(deepcopy(model), ids.flip(1))), []
    for at in range(STEPS):
        out += [reader.read(ids[:, at : at + 1]) for reader in readers]
    return out


def is_written(model, ids):
    """Somebody writes into a static cache."""
    reader = Reader(model, ids, static=True)
    out = reader.steps(ids[:, :PAGE])
    for layer in reader.cache.layers:
        layer.keys[:, :, 3:20] *= -3
    return out + reader.steps(ids[:, PAGE:STEPS])


def goes_dense_between(model, ids):
    """A long chunk is no decoding; it stands between sparse steps, once behind a crop."""
    reader = Reader(model, ids)
    out = [*reader.steps(ids[:, :4]), reader.read(ids[:, :30]), *reader.steps(ids[:, :4])]
    reader.crop(38)
    return [*out, reader.read(ids[:, 20:60]), *reader.steps(ids[:, 4:8])]


def moves(model, ids):
    """Padding in front is found only later: the sequence begins elsewhere."""
    reader = Reader(model, ids)
    out = reader.steps(ids[:, :PAGE])
    reader.mask[1, :LEFT] = 0
    return out + reader.steps(ids[:, PAGE:STEPS])


WAYS = {
    "dynamic": grows,
    "static": lambda model, ids: grows(model, ids, static=True),
    "left padding": lambda model, ids: grows(model, ids, mask=left(ids)),
    "left padding, static": lambda m, ids: grows(m, ids, mask=left(ids), static=True),
    "crop": crops,
    "drafts": drafts,
    "reorder": reorders,
    "two caches": alternates,
    "copies": copies,
    "written": is_written,
    "a dense chunk": goes_dense_between,
    "padding moves": moves,
}


# in inference mode PyTorch counts no writes
@pytest.mark.parametrize(
    ("way", "inference"),
    [(way, False) for way in WAYS] + [(way, True) for way in ("static", "crop", "reorder")],
)
def test_kept_means_change_nothing(way, inference, ids, monkeypatch):
    """The logits are those of means that are taken from all keys at each step."""
    with torch.inference_mode(inference):
        kept = WAYS[way](enabled(), ids)
        real = pages.kept_means
        monkeypatch.setattr(
            pages, "kept_means", lambda k, page, ctx: real(k, page, replace(ctx, state={}))
        )
        anew = WAYS[way](enabled(), ids)
    assert len(kept) == len(anew) >= STEPS // 2
    for a, b in zip(kept, anew, strict=True):
        assert (a - b)[:, -1].abs().max() < BAND


@pytest.mark.parametrize("way", ["dynamic", "static", "left padding", "left padding, static"])
def test_only_the_last_page_is_pooled_anew(way, ids, pooled):
    """Behind the first step, whose means nobody has kept yet."""
    WAYS[way](enabled(), ids)
    groups = 2 if way.startswith("left") else 1
    first, later = pooled[: 2 * groups], pooled[2 * groups :]
    assert min(first) > TOKENS - LEFT and len(later) >= 2 * groups * (STEPS - 3)
    assert max(later) <= PAGE


@pytest.mark.parametrize("way", ["crop", "reorder", "two caches", "written"])
def test_what_is_kept_is_dropped(way, ids, pooled):
    """Then all keys are pooled once more, in each of the two layers."""
    WAYS[way](enabled(), ids)
    whole = [count for count in pooled if count > TOKENS]
    assert len(whole) == {"crop": 4, "reorder": 4, "written": 4, "two caches": 4 * STEPS}[way]


def test_beams(ids, pooled, monkeypatch):
    """Beam search reorders its cache; its answers are those of means taken anew."""
    settings = {"num_beams": 3, "max_new_tokens": STEPS}
    kept = generate(enabled(), ids, left(ids), **settings)
    assert max(pooled[-4:]) > TOKENS
    monkeypatch.setattr(text.TextSession, "attend", forgetful(text.TextSession.attend))
    assert torch.equal(kept, generate(enabled(), ids, left(ids), **settings))


def forgetful(attend):
    def run(self, x, found, layer, scale):
        self.forget(layer)
        return attend(self, x, found, layer, scale)

    return run


def test_a_compiled_model_keeps_nothing(ids, pooled):
    model = enabled()
    reader, other = (Reader(model, ids, static=True) for _ in range(2))
    eager = reader.steps(ids[:, :3])
    other.model, start = torch.compile(model, backend="eager", fullgraph=True), len(pooled)
    out = other.steps(ids[:, :3])
    assert all((a - b).abs().max() < BAND for a, b in zip(out, eager, strict=True))
    assert min(pooled[start:]) > TOKENS


def test_disabling_takes_the_hooks_away(ids):
    model = build()
    before = [len(m._forward_pre_hooks) for m in model.modules()]
    copy = deepcopy(text.enable(model, "block_topk"))
    for one in (model, copy):
        text.disable(one)
        assert [len(m._forward_pre_hooks) for m in one.modules()] == before
