"""Where text shares a block with the last tokens of the video, as it does on large grids."""

import pytest
import torch

from dit_sparse import testing, tokens
from dit_sparse.core import Blocks, Grid
from dit_sparse.select.floor import neighbour_table
from dit_sparse.testing import of_phase

# grids of no other test, for layouts are kept by their grid
GRIDS = {
    "text last": Grid(3, 7, 17, text=19),
    "text first": Grid(2, 9, 19, text=6, text_first=True),
}
GRIDS |= dict.fromkeys(("even", "odd"), GRIDS["text last"])


@pytest.fixture
def shared(monkeypatch):
    """Any number of blocks counts as many."""
    monkeypatch.setattr(tokens, "MANY", 1)
    monkeypatch.setattr(testing, "GRIDS", GRIDS)


@pytest.mark.parametrize(
    "prop",
    [
        "plan_is_valid", "lists_lose_nothing", "dense_limit", "kernel_equals_reference",
        "grouped_heads", "state_is_clean", "density_is_counted",
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", of_phase(""))
def test_methods_hold_what_they_hold(shared, name, prop):
    testing.check_property(name, prop)


def test_large_grids_have_equal_blocks():
    """One block of the video is exact with the text; small grids keep them apart."""
    many, few = (Blocks.with_text(Grid(1, 8, n, text=50), 8) for n in (257, 255))
    for blocks in (many, few):
        assert blocks.offsets is None and blocks.text_tokens == 50
    many, few = (Blocks.with_text(Grid(1, 1, 8 * n + 3, text=50), 8) for n in (256, 255))
    assert many.offsets is None and (many.video, many.text_blocks, many.text_tokens) == (256, 7, 53)
    assert many.video_tokens == 8 * 256
    assert few.offsets is not None and (few.video, few.text_blocks, few.text_tokens) == (256, 7, 50)
    # without text the last block is short, which no kernel minds
    assert Blocks.with_text(Grid(1, 1, 2051), 8).video == 257


def test_neighbours_of_the_last_tokens(shared):
    """Their voxels go with the last video block."""
    grid = Grid(1, 5, 11, text=4)
    blocks = Blocks.with_text(grid, 8)
    table = neighbour_table(blocks, blocks, grid)
    assert table.shape[-2:] == (6, 6)
    # voxels 48 to 54 are the end of row 4; the rows above hold blocks 4 and 5
    own = torch.arange(6)
    assert (table[0, 0, own, own] == 2).all() and table[0, 0, 5, 4] == 1 and table[0, 0, 5, 0] == 0
