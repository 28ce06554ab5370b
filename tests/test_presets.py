"""The model in use chooses the settings that papers give for it."""

import pytest
from torch import nn

import dit_sparse
from dit_sparse.integrations import published
from dit_sparse.profile import find, shipped
from tests.tiny_wan import tiny_wan


def stand_in(row):
    """A module of the class name and configuration of a published model, without weights."""
    return type(row.transformer, (nn.Module,), {"config": dict(row.config)})()


@pytest.mark.parametrize("row", published.MODELS, ids=lambda row: row.name)
def test_a_published_model_is_told_from_its_configuration(row):
    parts = {f"transformer_{i}": stand_in(row) for i in range(row.experts)}
    assert published.published(parts) == row.name


def test_another_model_has_no_name():
    assert published.published({"transformer": stand_in(published.Published("x", "Other"))}) is None
    small = published.Published("x", published.WAN, {"num_layers": 2})
    assert published.published({"transformer": stand_in(small)}) is None


@pytest.mark.parametrize("name", shipped())
def test_every_profile_is_for_a_known_model(name):
    assert name.split("--")[0] in {row.name for row in published.MODELS}


@pytest.fixture
def pipe(monkeypatch):
    """A tiny Wan pipeline that passes for the built-in model."""
    row = published.Published("shapes", published.WAN, {"num_layers": 2})
    monkeypatch.setattr(published, "MODELS", (row,))
    return tiny_wan()


def test_a_name_takes_the_settings_of_the_model(pipe):
    shipped_one = find("shapes", "pisa")
    dit_sparse.enable(pipe, "pisa")
    assert dit_sparse.integrations.diffusers.profile_of(pipe) == shipped_one
    assert any("shapes--pisa" in note for note in dit_sparse.report(pipe).notes)


def test_what_the_user_says_goes_first(pipe):
    dit_sparse.enable(pipe, "pisa", keep=0.5)
    profile = dit_sparse.integrations.diffusers.profile_of(pipe)
    assert profile.params == {**find("shapes", "pisa").params, "keep": 0.5} and profile.is_draft
    assert any("nobody has measured" in note for note in dit_sparse.report(pipe).notes)


def test_a_method_value_is_taken_as_it_is(pipe):
    dit_sparse.enable(pipe, dit_sparse.get("pisa"))
    assert not dit_sparse.report(pipe).notes
