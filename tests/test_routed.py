"""Attention routed query by query, key block by key block, against the float64 oracle."""

import pytest
import torch

from dit_sparse.kernels import _tune, reference, routed
from dit_sparse.kernels.contract import Cut
from tests.kernel_cases import case, close, offsets, wide

pytestmark = pytest.mark.usefixtures("poison")
RAGGED = Cut(40, offsets([7, 0, 29, 4], 2))
LOOSE = Cut(80, offsets([0, 13, 0, 20, 0], 2))
SMALL = _tune.Config(16, 16, precision="tf32x3")
# fmt: off
ROWS = {
    "several tiles, short last block": {"s_q": 50, "s_kv": 50, "config": SMALL},
    "several tiles for a program": {"s_q": 150, "s_kv": 40, "config": SMALL, "kv_blocks": 20},
    "bf16 d128": {"dtype": torch.bfloat16, "d": 128, "s_kv": 100, "s_q": 140, "kv_blocks": 70},
    "fp16 whole tiles": {"dtype": torch.float16, "kv_blocks": 64, "s_kv": 128},
    "d40 strided": {"d": 40, "strided": True},
    "d72 dv24, no descriptors": {"d": 72, "dv": 24, "tma": False},
    "one mask of all heads, grouped": {"per_query": 1, "heads": 4, "kv_heads": 2, "kv_blocks": 20},
    "offsets with empty blocks": {"kv_blocks": RAGGED, "heads": 2, "config": SMALL},
    "tokens outside every block, strided": {"kv_blocks": LOOSE, "heads": 2, "strided": True},
    "one block": {"kv_blocks": 128},
    "causal": {"causal": True, "s_kv": 60, "config": SMALL, "kv_blocks": 25},
    "causal short keys": {"causal": True, "s_kv": 30, "dtype": torch.bfloat16},
    "causal offsets": {"causal": True, "kv_blocks": RAGGED, "heads": 2},
    "large logits": {"gain": 30.0},
}
# fmt: on


def build(config=None, tma=None, **row):
    """Return q, k, v, the mask, its cut, all lists, and the options shared with the oracle."""
    tensors, _, options = case(
        **{"per_query": row.get("heads", 1), "heads": 1, "s_q": 40, "kv_blocks": 16} | row
    )
    mask, cut = options["row_mask"], options["kv_blocks"]
    # besides the query of the case that sees nothing, a block that nobody sees
    mask[:, :, :, 1:2] = False
    every = torch.ones(2, tensors[0].shape[1], 1, mask.shape[3], dtype=torch.bool)
    lists = reference.pack_lists(every.to(mask.device))
    return tensors, mask, cut, lists, {"causal": options["causal"]}, {"config": config, "tma": tma}


def expected(tensors, mask, cut, lists, size, options):
    """Return (out, lse) of the oracle in float64 and in the tensors' own arithmetic."""
    both = []
    for x, more in ((map(wide, tensors), {}), (tensors, {"math_dtype": tensors[0].dtype})):
        both.append(
            reference.block_sparse_attention(
                *x, *lists, q_blocks=size, kv_blocks=cut, row_mask=mask, **options, **more
            )
        )
    return both


def agrees(got, both, dtype):
    exact, eager = both
    assert got[0].dtype == dtype and got[1].dtype == torch.float32
    close(got[0], eager[0], exact[0], dtype)
    close(got[1], eager[1], exact[1], dtype)


@pytest.mark.parametrize("name", ROWS)
def test_routed(name):
    """out and lse agree with the float64 oracle; queries that see nothing give 0 and -inf."""
    tensors, mask, cut, lists, options, own = build(**ROWS[name])
    got = routed.routed_attention(*tensors, mask, cut, **options, **own)
    agrees(got, expected(tensors, mask, cut, lists, 500, options), tensors[0].dtype)
    assert not got[0][:, :, 1].any() and (got[1][:, :, 1] == float("-inf")).all()


@pytest.mark.parametrize(
    "heads, states, most, groups",
    [(1, 1, 9, (1, 1)), (2, 160, 9, (4, 1)), (5, 1 << 20, 4, (4, 4))],
)
def test_groups_and_lanes(heads, states, most, groups, monkeypatch):
    """Any number of lanes and of heads at once gives the result, and twice the same bits."""
    tensors, mask, cut, lists, options, own = build(heads=heads, s_kv=64)
    monkeypatch.setattr(routed, "STATES", states)
    monkeypatch.setattr(routed, "LIST_BYTES", most * 4 * 40 * 4)
    assert routed.head_groups(2 * heads, 40, 4) == groups
    got = routed.routed_attention(*tensors, mask, cut, **options, **own)
    agrees(got, expected(tensors, mask, cut, lists, 500, options), tensors[0].dtype)
    again = routed.routed_attention(*tensors, mask, cut, **options, **own)
    assert torch.equal(got[0], again[0]) and torch.equal(got[1], again[1])


def test_lists():
    """A query sees a block only if its query block lists it, too; entries past the count are not
    read."""
    tensors, mask, cut, _, options, _ = build(s_kv=60)
    chosen = torch.rand(2, 1, 3, 4, device=mask.device) < 0.5
    count, index = reference.pack_lists(chosen)
    both = expected(tensors, mask, cut, (count, index), 16, options)
    past = torch.arange(4, device=mask.device) >= count[..., None]
    lists = count, index.masked_fill(past, 1 << 20), 16
    got = routed.routed_attention(*tensors, mask, cut, lists=lists, **options)
    agrees(got, both, tensors[0].dtype)


def test_memory_is_bounded():
    """Lists and states of the groups stay within their bounds at long videos, and lanes fill the
    device."""
    for heads, tokens, blocks in ((12, 32760, 72), (40, 118800, 72), (80, 32760, 512), (2, 64, 1)):
        some, lanes = routed.head_groups(heads, tokens, blocks)
        assert some == 1 or 4 * some * tokens * blocks <= routed.LIST_BYTES
        assert some == 1 or some * lanes * tokens <= 2 * routed.STATES
        assert 1 <= lanes <= min(8, blocks)
    assert routed.head_groups(12, 32760, 72) == (12, 3)
    assert routed.head_groups(6, 118800, 72) == (6, 2)


BAD = {
    "kv_blocks": lambda q, mask: (q, mask[..., :1].expand(2, 1, 600, 600), 1),
    "row_mask": lambda q, mask: (q, mask[:, :, 1:], 16),
    "q": lambda q, mask: (q.double(), mask, 16),
}


@pytest.mark.parametrize("word", BAD)
def test_bad_arguments(word):
    """A call beyond a limit gives one line that names the argument."""
    tokens = 600 if word == "kv_blocks" else 40
    (q, *_), mask, *_ = build(s_q=tokens)
    q, mask, blocks = BAD[word](q, mask)
    with pytest.raises(ValueError, match=f"^{word}") as error:
        routed.routed_attention(q, q, q, mask, blocks)
    assert "\n" not in str(error.value)
