"""SeerAttention (2410.13276): the gate, the map it learns, and what is kept."""

from dataclasses import replace

import pytest
import torch
import transformers as host
from safetensors.torch import save_file
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

import dit_sparse
from dit_sparse.arrange.raster import Raster
from dit_sparse.core import QKV, Heads
from dit_sparse.errors import ArgumentError
from dit_sparse.score.seer import SeerGate, block_max_map, rotate
from dit_sparse.testing import relative_error
from tests.text_oracle import attend, problem, tokens, visible, weights

BLOCK, GATE = 16, 6
# float64 sums of at most 300 terms; and the rotation's float32 frequencies, the same on both sides
BAND = 1e-10
LENGTHS = [(96, 96), (101, 101), (48, 112)]
FREQ = 10.0 ** -torch.arange(3).double()


def seer(**params):
    return dit_sparse.get("seer", block=BLOCK, **params)


def gate_weights(heads=4, groups=2, dim=8):
    g = torch.Generator().manual_seed(1)
    shapes = {"gate_q.weight": (heads, dim, GATE), "gate_k.weight": (groups, 3 * dim, GATE)}
    found = {n: torch.randn(s, generator=g, dtype=torch.float64) for n, s in shapes.items()}
    return {**found, "inv_freq": FREQ}


def turned(queries, keys):
    """Return tensors before their rotation, and a problem that has them after it."""
    given = problem(queries, keys, heads=4)
    q, k, v = given.x.q, given.x.k[:, ::2], given.x.v[:, ::2]
    at = torch.arange(keys)
    x = QKV(rotate(q, at[keys - queries :], FREQ), rotate(k, at, FREQ), v)
    return q, k, replace(given, x=x)


def gate(q, k, found, shift):
    """Compute the gate from unrotated tensors, block by block."""
    rows, cols = [], []
    for start in range(0, q.shape[2], BLOCK):
        mean = q[:, :, start : start + BLOCK].mean(2)
        row = torch.einsum("bhd,hdg->bhg", mean, found["gate_q.weight"])
        rows.append(rotate(row[:, :, None], torch.tensor([start + shift]), FREQ))
    for start in range(0, k.shape[2], BLOCK):
        t = k[:, :, start : start + BLOCK]
        pooled = torch.cat((t.amax(2), t.amin(2), t.mean(2)), -1)
        col = torch.einsum("bhd,hdg->bhg", pooled, found["gate_k.weight"])
        cols.append(rotate(col[:, :, None], torch.tensor([start]), FREQ))
    logits = torch.cat(rows, 2) @ torch.cat(cols, 2).repeat_interleave(2, 1).mT / GATE**0.5
    for i in range(len(rows)):
        logits[:, :, i, -(-((i + 1) * BLOCK + shift) // BLOCK) :] = float("-inf")
    return logits.softmax(-1)


@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
def test_the_gate_sees_vectors_before_their_rotation(queries, keys):
    q, k, given = turned(queries, keys)
    found = gate_weights()
    ctx = given.context(weights=found)
    score = SeerGate()(given.x, Raster(BLOCK)(given.x, ctx), ctx)
    assert relative_error(score, gate(q, k, found, keys - queries)) < BAND


def test_a_chunk_has_the_rows_of_the_whole():
    """Also the gate's rotation by block: queries behind others keep their positions."""
    _, _, given = turned(96, 96)
    x, found = given.x, gate_weights()
    part = QKV(x.q[:, :, 48:80], x.k[:, :, :80], x.v[:, :, :80])
    whole, chunk = (
        SeerGate()(t, Raster(BLOCK)(t, given.context()), given.context(weights=found))
        for t in (x, part)
    )
    assert relative_error(chunk, whole[:, :, 3:5, :5]) < BAND


def test_a_process_takes_the_maps_of_its_own_heads():
    _, _, given = turned(96, 96)
    x, found = given.x, gate_weights()
    part = QKV(x.q[:, 2:], x.k[:, 1:], x.v[:, 1:])
    whole, own = (
        SeerGate()(t, Raster(BLOCK)(t, given.context()), given.context(weights=found, heads=heads))
        for t, heads in ((x, None), (part, Heads(2, 4)))
    )
    assert relative_error(own, whole[:, 2:]) < BAND


def test_the_rotation_is_that_of_llama():
    config = host.LlamaConfig(hidden_size=32, num_attention_heads=2)
    rope, x = LlamaRotaryEmbedding(config), torch.randn(1, 2, 40, 16)
    at = torch.arange(40)
    cos, sin = rope(x, at[None])
    there, _ = apply_rotary_pos_emb(x, x, cos, sin)
    assert torch.allclose(rotate(x, at, rope.inv_freq), there, atol=1e-6)
    assert torch.allclose(rotate(there, at, -rope.inv_freq), x, atol=1e-6)


@pytest.mark.parametrize("threshold", [0.02, 0.2])
@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
def test_blocks_above_the_threshold_are_kept(queries, keys, threshold):
    q, k, given = turned(queries, keys)
    found = gate_weights()
    plan = seer(threshold=threshold).plan(given.x, given.context(weights=found))
    kept = (gate(q, k, found, keys - queries) >= threshold) | plan.layout.own()
    assert torch.equal(tokens(plan), tokens(plan, kept))
    out = seer(threshold=threshold)(given.x, given.context(weights=found))
    assert relative_error(out, attend(given.x, tokens(plan))) < BAND


@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
@pytest.mark.parametrize("params", [{"threshold": 0.0}, {"ratio": 1.0}])
def test_everything_is_dense(queries, keys, params):
    _, _, given = turned(queries, keys)
    out = seer(**params)(given.x, given.context(weights=gate_weights()))
    assert relative_error(out, attend(given.x, visible(queries, keys).expand(1, 4, -1, -1))) < BAND


@pytest.mark.parametrize("ratio", [0.2, 0.5])
def test_the_ratio_is_that_of_the_triangle(ratio):
    """Of N blocks a row, (1 - sqrt(1 - ratio)) N: the triangle's share is ratio, less rounding."""
    given = problem(800, dim=2)
    count, n = int((1 - (1 - ratio) ** 0.5) * 100), 100
    plan = dit_sparse.get("seer", block=8, ratio=ratio).plan(given.x, given.context())
    chosen = plan.level.sum(-1)
    # the own block may come on top
    assert (chosen <= count + 1).all() and (chosen >= (torch.arange(n) + 1).clamp(max=count)).all()
    assert abs(chosen.sum().item() / (n * (n + 1)) - ratio) < 1.5 / count


@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
def test_the_learned_map(queries, keys):
    """Rows sum to 1, nothing in the future, and it is the pooled dense map."""
    given = problem(queries, keys, heads=4)
    x = QKV(given.x.q, given.x.k[:, ::2], given.x.v[:, ::2])
    found, p = block_max_map(x, BLOCK), weights(x)
    p = torch.nn.functional.pad(p, (0, -keys % BLOCK, 0, -queries % BLOCK))
    peak = p.unflatten(3, (-1, BLOCK)).amax(4).unflatten(2, (-1, BLOCK)).amax(3)
    assert relative_error(found, peak / peak.sum(-1, keepdim=True)) < BAND
    assert (found >= 0).all() and ((found.sum(-1) - 1).abs() < BAND).all()
    future = Raster(BLOCK)(x, given.context())
    first = torch.arange(future.kv.count) * BLOCK
    last = (torch.arange(future.q.count) + 1) * BLOCK + keys - queries
    assert (found[..., first >= last[:, None]] == 0).all()


def test_weights_come_from_a_file(tmp_path):
    found = {f"layers.{n}.{k}": v.float() for n in (0, 1) for k, v in gate_weights().items()}
    save_file(found, tmp_path / "gate.safetensors")
    _, _, given = turned(96, 96)
    method = seer(threshold=0.1, weights=str(tmp_path / "gate.safetensors"))
    q, k, v = (t.float() for t in given.x)
    out = dit_sparse.attention(q, k, v, method, causal=True)
    # no grid and no batch of its own: layer 0
    again = method(QKV(q, k, v), given.context("auto", weights=gate_weights()))
    assert relative_error(out, again) < 1e-5
    plain = dit_sparse.attention(q, k, v, seer(threshold=0.1), causal=True)
    assert relative_error(out, plain) > 1e-3


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"gate_q.weight": torch.ones(3, 8, GATE)}, "gate_q"),
        ({"gate_k.weight": torch.ones(2, 8, GATE)}, "gate_k"),
        ({"inv_freq": torch.ones(9)}, "inv_freq"),
    ],
)
def test_weights_that_do_not_fit(found, words):
    _, _, given = turned(48, 48)
    with pytest.raises(ArgumentError, match=words):
        seer().plan(given.x, given.context(weights={**gate_weights(), **found}))


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"ratio": 2.0}, "ratio=2.0"),
        ({"threshold": -1.0}, "threshold"),
        ({"weights": 1}, "weights"),
    ],
)
def test_refusals(params, words):
    with pytest.raises(ArgumentError, match=words):
        seer(**params)
