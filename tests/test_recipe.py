"""The command line and the Python lines that a page shows make the same file again."""

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dit_sparse.cli import app
from dit_sparse.commands import generate, job, recipe
from dit_sparse.commands.request import Request
from dit_sparse.commands.screen import Screen
from dit_sparse.media import write
from dit_sparse.profile import Profile
from tests.tiny_wan import save

PROMPT = "a red circle moves right"
REQUESTS = [
    Request(PROMPT),
    Request("-a prompt 'like an option' --seed 3", seed=4),
    Request('$(touch here) `ls` "quoted" ; é', method="pisa", keep=0.25, compare=True),
    Request(PROMPT, set=("block=[64, 64]", "order=0"), method="psa", steps=7, frames=9),
    Request(PROMPT, height=64, width=96, guidance=1.5, negative="blue", fps=12.0, guard=0.05),
    Request(PROMPT, profile="shapes--pisa", quant="fp8", json=True, quiet=True, debug=True),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save(tmp_path_factory.mktemp("model")))


@pytest.mark.parametrize("request_", REQUESTS, ids=range(len(REQUESTS)))
def test_the_line_asks_for_the_request(request_, monkeypatch):
    """A shell that reads the line gives the command exactly what was asked for."""
    asked = []
    monkeypatch.setattr(job, "run", asked.append)
    words = shlex.split(recipe.command(request_))
    assert words[:2] == ["dit-sparse", "generate"]
    result = CliRunner().invoke(app, words[1:])
    assert result.exit_code == 0, result.output
    assert asked == [request_]


def test_every_option_can_be_in_the_line():
    """A field of `Request` is the option of its name: none can be lost."""
    import inspect
    from dataclasses import fields

    assert {field.name for field in fields(Request)} == set(
        inspect.signature(generate.generate).parameters
    )


CHOICES = [{"method": "pisa", "keep": 0.4}, {"method": "svg2", "keep": 0.4},
           {"profile": "shapes--pisa", "keep": 0.4}, {"profile": "mine.toml"}]  # fmt: skip


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_both_make_the_same_file(choice, model, tmp_path, monkeypatch):
    """The bytes of the line's file and of the lines' file are those of a run in this process."""
    from dit_sparse.commands.results import single

    monkeypatch.chdir(tmp_path)
    files = [tmp_path / f"{name}.mp4" for name in ("here", "line", "lines")]
    Path("mine.toml").write_text(Profile("tiny", "draft", {"keep": 0.3}).to_toml())
    request = Request(PROMPT, model, **choice, steps=2, seed=5, out=files[0])
    made = job.prepare(request, Screen(quiet=True))
    script = recipe.python(made, files[2])
    single(made)
    line = recipe.command(request).replace("here.mp4", "line.mp4")
    result = CliRunner().invoke(app, shlex.split(line)[1:])
    assert result.exit_code == 0, result.output
    exec(compile(script, "lines", "exec"), {})
    here, *others = (file.read_bytes() for file in files)
    assert [here] * 2 == others
    # and another method's file is another one
    dense = job.prepare(Request(PROMPT, model, method="dense", steps=2, seed=5), Screen(quiet=True))
    from dit_sparse.commands.sampling import sample

    write(tmp_path / "dense.mp4", sample(dense.pipe, dense.arguments, 5).frames, dense.fps)
    assert here != (tmp_path / "dense.mp4").read_bytes()
