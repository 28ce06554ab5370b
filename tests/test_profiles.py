"""Profiles are data: they survive TOML, and a bad one says why."""

import pytest

from dit_sparse import Profile, Schedule
from dit_sparse.errors import ArgumentError
from dit_sparse.integrations.build import build
from dit_sparse.profile import shipped
from dit_sparse.registry import entry

GOOD = (
    '[profile]\nmodel = "m"\nmethod = "pisa"\n[params]\nkeep = 0.2\n[schedule]\ndense_steps = 2\n'
)


def test_round_trip(tmp_path):
    path = tmp_path / "p.toml"
    path.write_text(GOOD)
    profile = Profile.load(path)
    assert Profile.from_toml(profile.to_toml()) == profile and profile.is_draft
    assert profile.build().schedule == Schedule(2) and profile.build(keep=0.5).select.keep == 0.5
    # a schedule is among the parameters
    assert profile.build(dense_steps=0.5, dense_layers=3).schedule == Schedule(0.5, 3)
    assert profile.build(dense_layers=3).schedule == Schedule(2, 3)
    _, _, kept = build(profile, None, "none", {"dense_steps": 5})
    assert kept.build().schedule == Schedule(5)


@pytest.mark.parametrize(
    "text,word",
    [
        ("[profile", "not TOML"),
        (GOOD + "[extra]\n", "extra"),
        (GOOD.replace("pisa", "pissa"), "pissa"),
        (GOOD.replace("keep = 0.2", "keep = 2.0"), "keep=2.0"),
        (GOOD.replace("keep", "kep"), "kep"),
        (GOOD.replace("dense_steps = 2", "dense_steps = -2"), "dense_steps=-2"),
        (GOOD.replace("dense_steps", "warmup"), "warmup"),
        (GOOD.replace("dense_steps = 2", 'dense_steps = "two"'), "dense_steps"),
        ('profile = "x"\n', "profile"),
        ('[profile]\nmodel = "m"\n', "method"),
        ("x" * (1 << 21), "characters"),
    ],
)
def test_bad_profiles(tmp_path, text, word):
    path = tmp_path / "p.toml"
    path.write_text(text)
    with pytest.raises(ArgumentError, match=r"p\.toml") as caught:
        Profile.load(path)
    assert word in str(caught.value) and "\n" not in str(caught.value)


VALUES = [
    "1e999",
    "nan",
    "-1",
    "true",
    '"a"',
    "[]",
    "{}",
    "[[1]]",
    "1979-05-27",
    "9" * 400,
    '"\\u0000"',
]


@pytest.mark.parametrize("method", ["pisa", "sparse_vdit", "draft", "mixed"])
def test_hostile_profiles(tmp_path, method):
    """Whatever stands where a value should be: it works, or one line says what is wrong."""
    path, params = tmp_path / "p.toml", entry(method).parameters
    head = f'[profile]\nmodel = "m"\nmethod = "{method}"\n'
    texts = [f"{head}[params]\n{name} = {value}\n" for name in params for value in VALUES]
    texts += [f"{head}[schedule]\ndense_steps = {value}\n" for value in VALUES]
    texts += [f"{head}[params]\n{next(iter(params))} = {'[' * n}{']' * n}" for n in (50, 300, 5000)]
    texts += [f"profile = {value}" for value in VALUES]
    data = [text.encode() for text in texts] + [b"\xff\xfe", b"\x80" * (1 << 21)]
    for bad in data:
        path.write_bytes(bad)
        try:
            Profile.load(path)
        except ArgumentError as error:
            assert str(path) in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("written", ["2", "0", "true", '"1"', "1.0", "[]", "9" * 300])
def test_other_formats_are_refused(tmp_path, written):
    path = tmp_path / "p.toml"
    path.write_text(GOOD.replace("[profile]", f"[profile]\nformat = {written}"))
    with pytest.raises(ArgumentError, match=r"p\.toml: format = .* update dit-sparse") as caught:
        Profile.load(path)
    assert len(str(caught.value)) < 200 + len(str(path))


def test_older_files_and_this_format_are_the_same():
    older = Profile.from_toml(GOOD)
    assert "format = 1" in older.to_toml() and Profile.from_toml(older.to_toml()) == older


@pytest.mark.parametrize(
    ("measured", "device", "noted"),
    [
        ({"device": "NVIDIA H200"}, "NVIDIA H200", False),
        ({"device": "NVIDIA H200"}, "NVIDIA H100 80GB HBM3", True),
        ({"device": "CPU, 2 cores, float32"}, "CPU", False),
        ({"device": "CPU, 2 cores, float32"}, "NVIDIA H200", True),
        ({"device": 3}, "CPU", True),
        ({}, "CPU", False),
    ],
)
def test_another_device_is_noted(measured, device, noted):
    note = Profile("m", "pisa", measured=measured).elsewhere(device)
    assert bool(note) == noted and (not noted or (device in note and "m--pisa" in note))


def test_a_shipped_name_is_a_profile():
    """The name that the command line takes works in Python, too."""
    found = Profile.load("wan2.1-14b--pisa")
    assert (found.model, found.method) == ("wan2.1-14b", "pisa")
    value, _, profile = build("wan2.1-14b--pisa", None, "none", {"keep": 0.5})
    assert value == found.build(keep=0.5) and profile is not None and profile.model == found.model


def test_missing_profile(tmp_path):
    with pytest.raises(ArgumentError, match="is no file"):
        Profile.load(tmp_path / "none.toml")


@pytest.mark.parametrize("name", shipped())
def test_shipped_profiles_load(name):
    from dit_sparse.profile import find

    profile = find(*name.split("--"))
    assert profile is not None and profile.build() and name == f"{profile.model}--{profile.method}"
