"""Wrong arguments: one line, the right exit code, no traceback, nothing written, no work done."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dit_sparse.cli import app
from tests.tiny_wan import WORDS, save

GENERATE = ("generate", "a red circle moves right")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders and files that the rows below name in braces."""
    root = tmp_path_factory.mktemp("places")
    for name in ("empty", "broken", "other"):
        (root / name).mkdir()
    (root / "broken" / "model_index.json").write_text("{")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
    }
    (root / "other" / "model_index.json").write_text(json.dumps(index))
    (root / "file").write_text("")
    (root / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    (root / "text.toml").write_text("not toml")
    (root / "keep.toml").write_text(
        '[profile]\nmodel = "shapes"\nmethod = "pisa"\n[params]\nkeep = 4\n'
    )
    (root / "pisa.toml").write_text('[profile]\nmodel = "shapes"\nmethod = "pisa"\n')
    names = {path.name.partition(".toml")[0]: path for path in root.iterdir()}
    trained, free = save(root / "trained"), save(root / "free", None)
    return {**names, "model": trained, "free": free, "none": root / "none"}


def run(*args, **options):
    return CliRunner().invoke(app, [str(a) for a in args], **options)


def check(result, code, words):
    lines = result.stderr.strip().splitlines()
    assert result.exit_code == code, result.output
    assert lines and lines[-1].startswith("error: "), result.output
    assert all(word in lines[-1] for word in words), lines[-1]
    assert "Traceback" not in result.output and not result.stdout.strip(), result.output


# arguments after `generate PROMPT`, words that the line must hold; no row needs a model
BEFORE_LOADING = [
    (["--method", "piza"], ["piza", "nearest", "pisa"]),
    (["--method", "zzz"], ["zzz", "known", "pisa", "dense"]),
    (["--keep", "0"], ["--keep 0", "above 0"]),
    (["--keep", "1.5"], ["--keep 1.5", "at most 1"]),
    (["--keep", "nan"], ["--keep nan"]),
    (["--keep", "much"], ["--keep", "number"]),
    (["--method", "dense", "--keep", "0.5"], ["dense", "no keep"]),
    (["--method", "dense", "--compare"], ["--compare", "dense"]),
    (["--method", "pisa", "--set", "keep"], ["KEY=VALUE", "keep"]),
    (["--method", "pisa", "--set", "=3"], ["KEY=VALUE"]),
    (["--method", "pisa", "--set", "keep="], ["KEY=VALUE"]),
    (["--method", "pisa", "--set", "keep=[1,"], ["keep=[1,", "TOML"]),
    (["--method", "pisa", "--set", "kep=0.2"], ["kep", "keep=0.125"]),
    (["--method", "pisa", "--set", "keep=much"], ["keep=much", "like 0.125"]),
    (["--method", "pisa", "--set", "keep=true"], ["keep=true", "like 0.125"]),
    (["--method", "pisa", "--set", "error_bias=3"], ["error_bias=3", "like true"]),
    (["--method", "pisa", "--set", "order=7"], ["order=7", "0 or 1"]),
    (["--method", "pisa", "--set", "tile=4"], ["tile=4", "[4, 4, 4]"]),
    (["--method", "pisa", "--set", 'tile=["a"]'], ["tile"]),
    (["--method", "draft", "--set", "rule=column"], ["rule", "column", "row"]),
    (["--keep", "0.5", "--set", "keep=0.2", "--method", "pisa"], ["--keep", "--set keep"]),
    (["--set", "order=1"], ["--set", "--method"]),
    (["--method", "pisa", "--profile", "{pisa}"], ["--method", "--profile"]),
    (["--profile", "{none}"], ["--profile", "none", "no such file"]),
    (["--profile", "{empty}"], ["--profile", "empty"]),
    (["--profile", "{bytes}"], ["--profile", "bytes.toml"]),
    (["--profile", "{text}"], ["text.toml", "TOML"]),
    (["--profile", "{keep}"], ["keep.toml", "keep=4"]),
    (["--steps", "0"], ["--steps 0"]),
    (["--frames", "0"], ["--frames 0"]),
    (["--height", "-64"], ["--height -64"]),
    (["--guidance", "-1"], ["--guidance -1"]),
    (["--guidance", "nan"], ["--guidance nan"]),
    (["--guidance", "inf"], ["--guidance inf"]),
    (["--fps", "0"], ["--fps 0"]),
    (["--seed", "-1"], ["--seed -1"]),
    (["--seed", str(2**64)], ["--seed"]),
    (["--dtype", "int8"], ["int8", "bfloat16"]),
    (["--device", "tpu"], ["tpu", "cuda"]),
    (["--model", "needle"], ["--model needle", "texts", "eval --task needle"]),
    (["--model", "shape"], ["shape", "shapes", "hub id"]),
    (["--model", "./none"], ["./none", "no such folder"]),
    (["--model", "{none}"], ["none", "no such folder"]),
    (["--model", "{empty}"], ["empty", "no diffusers pipeline"]),
    (["--model", "{file}"], ["is a file"]),
    (["--model", "{model}", "--frames", "7"], ["--frames 7", "nearest: 5", "9"]),
    (["--model", "{model}", "--height", "60"], ["60 x 64", "nearest: 64 x 64", "64 x 96"]),
    (["--out", "a.avi"], [".avi", ".mp4"]),
    (["--out", "a"], ["extension", ".mp4", "folder that is there"]),
    (["--out", "{none}/a.mp4"], ["none", "does not exist"]),
    (["--out", "{none}/"], ["none"]),
    (["--out", "{file}/a.mp4"], ["file", "does not exist"]),
    (["--out", "/proc/a.mp4"], ["/proc", "cannot write"]),
    (["--nonsense"], ["--nonsense"]),
    (["and", "more"], ["and"]),
]

# rows that are known only once diffusers, or the model, is there
LOADING = [
    (["--model", "{broken}"], ["broken", "model"]),
    (["--model", "{other}"], ["StableDiffusionPipeline", "nearest: ", "dit-sparse models"]),
    (["--model", "nobody/nothing-of-this-name"], ["nobody/nothing-of-this-name"]),
    (["--model", "{free}", "--frames", "7"], ["--frames 7", "4 * k + 1", "nearest:"]),
    (["--model", "{free}", "--height", "100"], ["--height 100", "multiple of 16", "nearest: 96"]),
    (["--model", "{model}", "--out", "a.png"], ["a.png", "one frame", ".mp4"]),
    (
        ["--model", "{model}", "--method", "sparse_vdit", "--set", 'table=["DM"]'],
        ["table has 1 layers"],
    ),
    (
        ["--model", "{model}", "--method", "svg2", "--set", "q_clusters=193"],
        ["error: q_clusters=193", "192 video tokens"],
    ),
]


@pytest.mark.parametrize(("args", "words"), BEFORE_LOADING + LOADING, ids=str)
def test_wrong_arguments(args, words, places, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if (args, words) in BEFORE_LOADING:
        monkeypatch.setattr("dit_sparse.commands.job.load", None)
    check(run(*GENERATE, *(a.format(**places) for a in args)), 2, words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_empty_prompt(prompt):
    check(run("generate", prompt), 2, ["prompt is empty"])


def test_no_gpu(places, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("dit_sparse.commands.job.load", None)
    result = run(*GENERATE, "--model", places["model"], "--device", "cuda")
    check(result, 2, ["--device cuda", "no GPU"])


def test_refused_at_once():
    """The failures that a typo makes come before the heavy imports: seconds of waiting for one."""
    code = (
        "import sys; from dit_sparse.cli import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit as e: assert e.code == 2, e.code\n"
        "assert not {'diffusers', 'transformers'} & set(sys.modules)"
    )
    start = time.perf_counter()
    out = subprocess.run(
        [sys.executable, "-c", code, "generate", "a", "--method", "piza"], cwd=ROOT,
        capture_output=True, text=True,
    )  # fmt: skip
    assert out.returncode == 0 and "nearest: pisa" in out.stderr, out.stderr
    assert time.perf_counter() - start < 30


def test_debug_shows_the_traceback():
    assert "Traceback" in run(*GENERATE, "--keep", "3", "--debug").stderr


def test_unknown_words():
    from dit_sparse.commands.model import Trained

    told = Trained(words=frozenset(WORDS)).unknown_words("A red circel, on a CAT.")
    assert told == {"circel": "circle", "cat": ""}
