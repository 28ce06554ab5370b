"""Settings per head where a process holds some heads of the model: each takes its own entries."""

from functools import partial

import pytest
import torch

import dit_sparse
from dit_sparse import Grid
from dit_sparse.core import QKV, Context, Heads, layer_row
from dit_sparse.errors import ArgumentError
from dit_sparse.testing import Problem

HEADS, VIDEO, TEXT = 4, Grid(4, 6, 10, text=3), (96, 96)
LINES = {"block": 8, "sink": 2, "local": 4}
SHAPES = ("V 5 50", "A 4 12", "B 2", "V 20 2")
SHARES = (0.1, 0.4, 0.7, 1.0)
LETTERS = ("a draft keep=0.4", "b dense")
TABLES = {
    "a string": ("sparse_vdit", VIDEO, {"table": "DSMVF", "block": 16}),
    "letters": ("sparse_vdit", VIDEO, {"table": ("DMVF", "FVMS"), "block": 16}),
    "methods": ("mixed", VIDEO, {"letters": LETTERS, "table": ("abba", "baab")}),
    "shares": ("xattention", TEXT, {"heads": (SHARES, SHARES[::-1]), "block": 8}),
    "shares of a video": ("xattention", VIDEO, {"heads": (SHARES, SHARES[::-1]), "block": 8}),
    "shapes": ("minference", TEXT, {"heads": (SHAPES, SHAPES[::-1]), **LINES}),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLES)
@pytest.mark.parametrize("parts", [(2, 2), (1, 3)])
def test_a_part_of_the_heads_takes_its_entries(case, parts):
    name, of, params = TABLES[case]
    method, problem = dit_sparse.get(name, **params), Problem.make(of, heads=HEADS)
    whole, first = problem.run(method, layer=1), 0
    for held in parts:
        mine = slice(first, first + held)
        x = QKV(*(t[:, mine] for t in problem.x))
        alone = method(x, problem.context(layer=1, heads=Heads(first, HEADS)))
        torch.testing.assert_close(alone, whole[:, mine], rtol=0, atol=1e-12)
        first += held


def test_the_heads_of_a_call():
    assert Context().held(3) == (3, slice(0, 3))
    assert Context(heads=Heads(2, 7)).held(3) == (7, slice(2, 5))


def test_rows_of_layers():
    for rows in (("ab", "ba"), ((0.1, 0.2), (0.3, 0.4))):
        assert layer_row(rows, 1, 2, "heads", "share") == rows[1]
        assert layer_row(rows, 1, None, "heads", "share") == rows[1]
    assert layer_row("abc", 9, 4, "table", "letter")[:4] == "abca"
    assert layer_row("abc", 9, None, "table", "letter") == "abc"


@pytest.mark.parametrize("case", [case for case in TABLES if case != "a string"])
def test_a_table_that_does_not_fit_is_refused_before_and_in_the_call(case):
    name, of, params = TABLES[case]
    method, problem = dit_sparse.get(name, **params), Problem.make(of, heads=2)
    each = {"xattention": "share", "minference": "shape"}.get(name, "letter")
    table = "heads" if "heads" in params else "table"
    for layers, total, words in (
        (3, HEADS, f"{table} has 2 layers; layer 2 is beyond its last, 1 (counted from 0)"),
        (1, 6, f"{table}: layer 0 has 4 {each}s, the model 6 heads; write one {each} per head"),
    ):
        ctx = problem.context(layer=layers - 1, heads=Heads(0, total))
        for call in (partial(method.check, layers, total), partial(method.plan, problem.x, ctx)):
            with pytest.raises(ArgumentError) as caught:
                call()
            assert str(caught.value) == words
