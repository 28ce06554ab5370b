"""What the matrix of models does not ask of the video families."""

import inspect
from collections import Counter
from unittest import mock

import diffusers
import pytest
import torch
from torch import nn

import dit_sparse
from dit_sparse.integrations.adapters import families, refused
from dit_sparse.integrations.session import Session
from tests.probe import DRAFT, LOG, STEPS, probe, quiet
from tests.tiny import hunyuan_video15, kandinsky, ltx, mochi, skyreels_v2
from tests.tiny.case import Case


def test_pipelines_are_those_of_diffusers():
    for module in families():
        for name, host in getattr(module, "PIPELINES", {}).items():
            assert name == f"Sparse{host}" and hasattr(diffusers, host)


@pytest.mark.parametrize("name", sorted(refused()))
def test_refused_with_the_reason(name):
    model = type(name, (nn.Module,), {})()
    with pytest.raises(dit_sparse.UnsupportedModelError, match=name) as caught:
        dit_sparse.enable(model, "pisa")
    assert refused()[name] in str(caught.value)


@pytest.mark.parametrize("case", hunyuan_video15.CASES, ids=str)
def test_key_mask_is_as_good_as_one_of_pairs(case):
    """The video is that of the mask of pairs, to the rounding of another memory order."""
    model = case.build()
    base = case.run(model)
    before = [type(block.attn.processor) for block in model.transformer_blocks]
    dit_sparse.enable(model, "dense")
    with mock.patch.object(Session, "attend", autospec=True, side_effect=Session.attend) as seen:
        for a, b in zip(case.run(model), base, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 * float(b.abs().max()))
    # what it replaces holds a number for every pair of tokens
    masks = [call.args[7].shape for call in seen.call_args_list]
    assert len(masks) == case.layers and {tuple(mask[:-1]) for mask in masks} == {(2, 1, 1)}
    dit_sparse.disable(model)
    assert [type(block.attn.processor) for block in model.transformer_blocks] == before


def masked(texts):
    """A mask of half strength between video and reference."""
    given = ltx.behind(texts, (1, 3, 4, 16))
    length = given["hidden_states"].shape[1]
    strength = torch.ones(len(texts), length, length)
    strength[:, :-12, -12:] = 0.5
    return {**given, "video_self_attention_mask": strength}


CAUSAL = {**skyreels_v2.CONFIG, "num_frame_per_block": 3}
SPECIAL = [
    Case(ltx.MODEL_2, ltx.CONFIG_2, masked, layers=2),
    Case(skyreels_v2.MODEL, CAUSAL, skyreels_v2.inputs, layers=2),
]


@pytest.mark.parametrize("case", SPECIAL, ids=str)
def test_special_masks_stay_dense(case):
    model = case.build()
    base = case.run(model)
    dit_sparse.enable(model, "draft", **DRAFT)
    for out, expected in zip(case.run(model), base, strict=True):
        torch.testing.assert_close(out, expected)
    assert all("mask" in reason for reason in dit_sparse.report(model).reasons)


def test_in_the_place_of_nabla():
    """A checkpoint with sparse attention of its own gives what it gives without."""
    case = kandinsky.CASES[0]
    model = case.build()
    dit_sparse.enable(model, "draft", **DRAFT)
    base = case.run(model)[0]
    torch.manual_seed(1)
    given = {**case.inputs(case.texts), "scale_factor": (1.0, 1.0, 1.0)}
    given["sparse_params"] = {"to_fractal": True, "sta_mask": None, "P": 0.5}
    names = list(inspect.signature(type(model).forward).parameters)[1:-1]
    with torch.no_grad():
        by_name = model(**given, return_dict=False)
        by_place = model(*(given[name] for name in names), return_dict=False)
    assert torch.equal(by_name, base) and torch.equal(by_place, base)


KINDS = ("", "negative_")


def texts(masks, **sizes):
    """Embeddings of a prompt and of a negative one, and how many of their tokens are valid."""
    given = {
        f"{kind}{name}": torch.randn(1, *size) for name, size in sizes.items() for kind in KINDS
    }
    if masks:
        given |= {"prompt_attention_mask": torch.arange(6)[None] < 6}
        given |= {"negative_prompt_attention_mask": torch.arange(6)[None] < 2}
    return given


QWEN = {f"{kind}prompt_cu_seqlens": torch.tensor([0, 6]) for kind in KINDS}
SIZES = {"prompt_embeds_qwen": (6, 16), "prompt_embeds_clip": (8,)}
# pipeline, transformer, pixels of a token, frames, texts, calls of a layer at one step: branches in
# one call of the transformer, in one but a sample at a time, in two
PIPES = [
    ("LTXPipeline", ltx, 32, 17, texts(True, prompt_embeds=(6, 16)), 1),
    ("MochiPipeline", mochi, 16, 13, texts(True, prompt_embeds=(6, 16)), 2),
    ("Kandinsky5T2VPipeline", kandinsky, 16, 9, {**texts(False, **SIZES), **QWEN}, 2),
]


@pytest.mark.parametrize(("name", "family", "pixels", "frames", "given", "calls"), PIPES)
@pytest.mark.filterwarnings("ignore:In CPU autocast")
def test_steps_and_branches_of_pipelines(name, family, pixels, frames, given, calls):
    host = getattr(diffusers, name)
    parts = dict.fromkeys(list(inspect.signature(host.__init__).parameters)[1:])
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    model = family.CASES[0].build()
    parts |= {"transformer": model, "scheduler": scheduler}
    parts = {part: value for part, value in parts.items() if part != "force_zeros_for_empty_prompt"}
    pipe = quiet(host(**parts))
    dit_sparse.enable(pipe, probe())
    size = {"height": 5 * pixels, "width": 7 * pixels, "num_frames": frames}
    pipe(**given, **size, guidance_scale=3.0, num_inference_steps=STEPS, output_type="latent")
    assert {entry[1:3] for entry in LOG} == {(step, STEPS) for step in range(STEPS)}
    # every branch of every layer has a state of its own, seen once in a step
    assert len({entry[4] for entry in LOG}) == calls * 2
    assert Counter(entry[3] for entry in LOG) == dict.fromkeys(range(1, STEPS + 1), calls * 2)
    report = dit_sparse.report(pipe)
    assert report.sparse_calls == report.calls and not report.notes
