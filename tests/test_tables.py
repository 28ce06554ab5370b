"""What the attention kernels walk: boxes of keys and query tiles hold each listed token once."""

import pytest
import torch

from dit_sparse.kernels.contract import Cut, block_bounds, per_head
from dit_sparse.kernels.lists import pack_lists
from dit_sparse.kernels.tables import key_boxes, query_table
from tests.kernel_cases import DEVICE, offsets

CUTS = {
    "equal": (Cut(64), 300),
    "whole": (Cut(32), 256),
    "larger than the axis": (Cut(500), 90),
    "unequal": (Cut(90, offsets([70, 31, 90, 16, 45, 0, 48], 2)), 300),
}


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("box", [16, 64])
@pytest.mark.parametrize("name", CUTS)
def test_key_boxes(name, box):
    """The boxes of a row are exactly the keys of its blocks; whole ones come first."""
    cut, tokens = CUTS[name]
    n = cut.count(tokens)
    keep = torch.rand(2, 2, 5, n, device=DEVICE) < 0.6
    keep[0, 0, 0], keep[1, 1, 4] = False, True
    count, index = pack_lists(keep)
    whole, boxes, packed = key_boxes(cut, count, index, tokens, box)
    start, end = (per_head(x, 2, 2) for x in block_bounds(cut, tokens, keep.device))
    for b, h, m in torch.cartesian_prod(*(torch.arange(x) for x in (2, 2, 5))).tolist():
        row = packed[b, h, m, : int(boxes[b, h, m])]
        first, size = row // 256, row % 256
        assert (size > 0).all() and (size[: int(whole[b, h, m])] == box).all()
        assert (size[int(whole[b, h, m]) :] < box).all()
        got = [
            k for f, s in zip(first.tolist(), size.tolist(), strict=True) for k in range(f, f + s)
        ]
        kept = keep[b, h, m].nonzero()[:, 0]
        want = [k for j in kept for k in range(int(start[b, h, j]), int(end[b, h, j]))]
        assert sorted(got) == want


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("equal", [True, False])
def test_causal_boxes(equal):
    """No key that a whole row cannot see is left, none that a query sees is missing, and a whole
    box is seen whole by all."""
    tokens, s_q, box = 300, 250, 16
    rows = Cut(48) if equal else Cut(70, offsets([70, 31, 60, 16, 45, 0, 28], 2))
    keys = Cut(40) if equal else Cut(90, offsets([70, 31, 90, 16, 45, 0, 48], 2))
    m, n = rows.count(s_q), keys.count(tokens)
    count, index = pack_lists(torch.ones(1, 2, m, n, dtype=torch.bool, device=DEVICE))
    whole, boxes, packed = key_boxes(keys, count, index, tokens, box, causal=(rows, s_q))
    start, end = (per_head(x, 1, 2) for x in block_bounds(rows, s_q, count.device))
    for h, r in torch.cartesian_prod(torch.arange(2), torch.arange(m)).tolist():
        first, last = (int(x[0, h, r]) + tokens - s_q for x in (start, end))
        pairs = [divmod(x, 256) for x in packed[0, h, r, : int(boxes[0, h, r])].tolist()]
        got = sorted(k for at, size in pairs for k in range(at, at + size))
        assert got == list(range(last)) or first >= last
        for at, size in pairs[: int(whole[0, h, r])]:
            assert size == box and at + size - 1 <= first


@pytest.mark.parametrize("equal", [True, False])
def test_many_blocks(equal):
    """Beyond 4,096 blocks a head the tiles are the same, in no order."""
    rows, size = 4100, 3
    tokens = rows * size - 1
    count = torch.ones(1, 1, rows, dtype=torch.int32, device=DEVICE)
    edges = torch.arange(rows + 1, dtype=torch.int32, device=DEVICE).mul(size).clamp(max=tokens)
    table = query_table(None if equal else edges[None, None], count, tokens, 2, size)
    row, first = table[:-1].view(-1, 2).unbind(1)
    used = first < edges[1:][row]
    want = torch.stack((edges[:-1], edges[:-1] + 1, edges[:-1] + 2), 1)[:, ::2].flatten()
    assert table[-1] == 0 and torch.equal(first[used].sort().values, want[want < tokens])


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("equal", [True, False])
def test_query_table(equal):
    """Every query stands in one tile of its block, longer lists first; a zero ends the table."""
    tokens, tile = 300, 32
    cut = Cut(64) if equal else Cut(90, offsets([70, 31, 90, 16, 45, 0, 48], 2))
    rows = cut.count(tokens)
    count = torch.randint(0, 9, (2, 2, rows), dtype=torch.int32, device=DEVICE)
    given = None if equal else per_head(cut.offsets, 2, 2).contiguous()
    table = query_table(given, count, tokens, tile, cut.size)
    assert table[-1] == 0
    start, end = (per_head(x, 2, 2) for x in block_bounds(cut, tokens, table.device))
    for tiles, length, first, last in zip(
        table[:-1].view(4, -1, 2), *(x.flatten(0, 1) for x in (count, start, end)), strict=True
    ):
        used = [(r, at) for r, at in tiles.tolist() if at < int(last[r])]
        seen = [q for r, at in used for q in range(at, min(at + tile, int(last[r])))]
        assert sorted(seen) == list(range(tokens))
        assert all(int(first[r]) <= at for r, at in used)
        lengths = [int(length[r]) for r, _ in used]
        assert lengths == sorted(lengths, reverse=True)
