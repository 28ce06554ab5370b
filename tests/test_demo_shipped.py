"""The evaluation that comes with the built-in model: every setting of it can be generated."""

from types import SimpleNamespace

import pytest

from dit_sparse.commands.attention import choose
from dit_sparse.demos import evaluations, front
from dit_sparse.parameters import as_tuples
from tests.test_demo import asked

RESULT = evaluations.saved("shapes")


def test_it_has_all_methods_and_is_drawn():
    names = evaluations.methods(RESULT)
    assert len(names) >= 10 and len(RESULT.sparse) > 20
    drawn = front.picture(RESULT, front.cost_of(RESULT), next(iter(front.GAINS)), names)
    assert drawn.count("<button") == len(RESULT.sparse)


@pytest.mark.parametrize("row", RESULT.sparse, ids=lambda row: row.label)
def test_a_setting_is_what_was_measured(row, tmp_path):
    request = asked(tmp_path, **evaluations.setting(RESULT, row.label))
    choice = choose(request, "shapes")
    for name, value in row.facts.get("params", {}).items():
        assert as_tuples(choice.params[name]) == as_tuples(value) or name == "keep", name
    assert choice.params["keep"] == row.facts["keep"]
    assert choice.value.schedule.dense_steps == row.facts["schedule"]["dense_steps"]
    # and the line for a program of one's own asks for the same
    asks = []
    line = evaluations.enabling(evaluations.setting(RESULT, row.label))
    exec(
        line,
        {"dit_sparse": SimpleNamespace(enable=lambda *a, **k: asks.append((a, k)))},
        {"pipe": 0},
    )
    assert asks == [((0, choice.name), request.params)]
