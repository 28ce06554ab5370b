"""`dit-sparse bench lm`: counted work, what is refused, and what is not timed."""

import json

import pytest
import torch

from dit_sparse.bench import lm, plot, table
from dit_sparse.bench.results import Limits, Shape
from dit_sparse.kernels.attention import block_sparse_attention
from dit_sparse.kernels.decode import decode_attention
from dit_sparse.kernels.lists import dense_mask
from tests.test_bench import CPU, TIMER
from tests.test_cli import check, run

SIZE = ("--heads", "4", "--kv-heads", "2", "--head-dim", "16", "--tokens", "256")
LM = ("bench", "lm", "--quick", "--batch", "2", "--block", "32", *SIZE)
PREFILL = Shape("p", 4, 256, 16, None, 2, None, "prefill")
SHORT = Shape("s", 4, 250, 16, None, 2, None, "prefill")
WHOLE = Shape("w", 4, 250, 16, None, 2, None, "whole")
DECODE = Shape("d", 4, 250, 16, None, 2, 2, "decode")


def test_command(tmp_path):
    """Every phase has its rows; the file can be shown again."""
    out = tmp_path / "lm.json"
    shown = run(*LM, "--alone", "--markdown", "--out", out)
    assert shown.exit_code == 0, shown.output
    told = json.loads(out.read_text())
    rows = [row for row in told["rows"] if "ms" in row]
    found = {(row["shape"]["phase"], row["shape"].get("batch")) for row in rows}
    assert found == {("decode", 2), ("prefill", None), ("whole", None)}
    assert all(row["error"] < 1 for row in rows)
    assert table.COLUMNS.keys() == plot.PANELS.keys()
    assert run("bench", "show", out, "--markdown").stdout == shown.stdout


def test_counted_work():
    """Operations and traffic by hand."""
    assert DECODE.flops() == 2 * 4 * 4 * 250 * 16
    assert PREFILL.flops() == 4 * 4 * (256 * 257 // 2) * 16
    # 2 sequences, k and v of 2 heads, q and out of 4, two bytes each
    assert DECODE.bytes(2, 0.5) == 2 * 2 * (2 * 125 + 4) * 16 * 2
    assert Limits(1e3, 1.0, 2).ms(DECODE, 0.5) == pytest.approx(DECODE.bytes(2, 0.5) / 1e6)


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("shape", [PREFILL, SHORT, WHOLE], ids=lambda shape: shape.name)
@pytest.mark.parametrize("keep", [0.4, 1.0])
def test_density_is_that_of_the_mask(shape, single, keep):
    """Also where the last block is short."""
    case, tokens = lm.Case(shape, keep, 32, single), shape.tokens
    row = list(lm.run([case], TIMER, torch.float32, "torch", False))[-1]
    count, index = lm.block_lists(case, CPU)
    past = torch.ones(tokens, tokens, dtype=torch.bool)
    past = past if shape is WHOLE else past.tril()
    seen = dense_mask(count, index, 8).repeat_interleave(32, 2).repeat_interleave(32, 3)
    seen = seen[:, :, :tokens, :tokens] & past
    if single:
        columns = lm.stripes(case, lm.draw(shape, CPU, torch.float32))
        extra = dense_mask(columns.count, columns.index, tokens).repeat_interleave(32, 2)
        extra = extra[:, :, :tokens]
        assert extra.any() and not (extra & (seen | ~past)).any()
        seen = seen | extra
    assert row.density == pytest.approx(seen.sum().item() / 4 / past.sum().item())


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_wrong_kernels_are_not_timed(phase, monkeypatch):
    def short(*args, **options):
        if phase == "decode":
            return decode_attention(*args[:4], args[4][..., 1:], **options)
        return block_sparse_attention(*args[:3], args[3] - 1, args[4], **options)

    name = "decode_attention" if phase == "decode" else "block_sparse_attention"
    monkeypatch.setattr(lm, name, short)
    case = lm.Case(DECODE, 0.4, 16) if phase == "decode" else lm.Case(PREFILL, 0.9, 32)
    rows = list(lm.run([case], TIMER, torch.bfloat16, "torch", False))
    ours = [row for row in rows if row.ours]
    assert ours and all(row.wrong and "wrong output" in row.why for row in ours)
    assert any(row.ms for row in rows if row.what == "flash")


REFUSED = [
    (["--kv-heads", "3"], ["--kv-heads 3", "--heads 4"]),
    (["--batch", "0"], ["--batch 0"]),
    (["--batch", "1.5"], ["--batch 1.5", "whole number"]),
    (["--phase", "train"], ["--phase train", "stripes"]),
    (["--density", "2"], ["--density 2", "at most 1"]),
    (["--page", "0"], ["--page 0"]),
    (["--block", "8"], ["--block 8", "16"]),
    (["--tokens", "few"], ["--tokens few"]),
]


@pytest.mark.parametrize(("options", "words"), REFUSED, ids=lambda x: " ".join(x))
def test_refused(options, words):
    check(run(*LM, *options), 2, words)
