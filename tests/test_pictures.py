"""Pipelines of pictures as diffusers calls them, and what a call must be left dense for."""

import diffusers
import pytest
import torch

import dit_sparse
from tests.probe import DRAFT, LOG, probe, quiet
from tests.tiny import chroma, cogview, flux, hidream, ideogram4, joyimage, z_image

SIZE = {"height": 14, "width": 26, "num_inference_steps": 2, "output_type": "latent"}
TEXT = {"prompt_embeds": torch.ones(1, 7, 16)}
FLUX = {**TEXT, "pooled_prompt_embeds": torch.ones(1, 8)}
MASKED = {
    **TEXT,
    "prompt_attention_mask": torch.tensor([[1.0] * 4 + [0.0] * 3]),
    "guidance_scale": 1.0,
}
PICTURE = torch.linspace(0, 1, 3 * 14 * 26).view(1, 3, 14, 26)
BOX = (1, 7, 13)


def pipeline(name, module, **config):
    """Return a pipeline around the first row of a tiny family; text is given as embeddings."""
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        sample_size=32,
        block_out_channels=(4,),
        latent_channels=1,
        norm_num_groups=1,
        shift_factor=0.0,
    )
    model = module.CASES[0].build(**config)
    names = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    wanted = getattr(diffusers, name).__init__.__annotations__
    absent = {key: None for key in names if key in wanted}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    host = getattr(diffusers, name)
    return quiet(host(scheduler=scheduler, vae=vae, transformer=model, **absent))


@pytest.mark.parametrize(
    ("name", "module", "config", "given", "box", "text"),
    [
        ("FluxImg2ImgPipeline", flux, {}, {**FLUX, "image": PICTURE, "strength": 1.0}, BOX, 7),
        (
            "FluxInpaintPipeline",
            flux,
            {},
            {**FLUX, "image": PICTURE, "mask_image": PICTURE[:, :1], "strength": 1.0},
            BOX,
            7,
        ),
        (
            "FluxKontextPipeline",
            flux,
            {},
            {**FLUX, "image": PICTURE, "_auto_resize": False, "max_area": 14 * 26},
            (2, 7, 13),
            7,
        ),
        (
            "FluxControlPipeline",
            flux,
            {"in_channels": 8, "out_channels": 4},
            {**FLUX, "control_image": PICTURE},
            BOX,
            7,
        ),
        (
            "FluxFillPipeline",
            flux,
            {"in_channels": 12, "out_channels": 4},
            {**FLUX, "image": PICTURE, "mask_image": PICTURE[:, :1], "strength": 1.0},
            BOX,
            7,
        ),
        # its mask of 1 and 0 leaves one token of padding
        ("ChromaPipeline", chroma, {}, MASKED, BOX, 4),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_pipeline(name, module, config, given, box, text):
    pipe = pipeline(name, module, **config)
    host = getattr(dit_sparse.pipelines, f"Sparse{name}")
    assert issubclass(host, type(pipe))

    def draw():
        return pipe(**given, **SIZE, generator=torch.Generator().manual_seed(0)).images

    base = draw()
    dit_sparse.enable(pipe, "draft", **{**DRAFT, "keep": 1.0})
    if text == 7:
        torch.testing.assert_close(draw(), base, rtol=1e-3, atol=1e-4 * float(base.abs().max()))
    dit_sparse.enable(pipe, probe())
    assert not torch.equal(draw(), base)
    assert {(e[5].frames, e[5].height, e[5].width, e[5].text) for e in LOG} == {(*box, text)}
    report = dit_sparse.report(pipe)
    assert report.sparse_calls == report.calls and report.steps == 2
    dit_sparse.disable(pipe)
    assert torch.equal(draw(), base)


def test_two_transformers_of_guidance():
    """Ideogram 4 has a transformer of its own for the branch without text."""

    class Pipeline:
        transformer = ideogram4.CASES[0].build()
        unconditional_transformer = ideogram4.CASES[1].build()

    pipe = dit_sparse.enable(Pipeline(), probe())
    for case, part in zip(
        ideogram4.CASES, (pipe.transformer, pipe.unconditional_transformer), strict=True
    ):
        case.run(part)
    assert {e[5].text for e in LOG} == {6, 3, 0}
    names = {cell.transformer for cell in dit_sparse.report(pipe).cells if cell.sparse}
    assert names == {"transformer", "unconditional_transformer"}
    dit_sparse.disable(pipe)
    assert not hasattr(pipe.unconditional_transformer.layers[0].attention, "_dit_sparse")


def other_sizes(texts):
    given = z_image.inputs(texts)
    return {**given, "x": [z_image.picture(), z_image.picture(4, 6)]}


def masked(texts):
    mask = torch.tensor([[1] * 6, [1] * 3 + [0] * 3])
    return {**cogview.inputs(texts), "attention_mask": mask}


def cut_before(texts):
    given = hidream.inputs(texts)
    hidden, mask, sizes, ids = hidream.CASES[0].build().patchify(given["hidden_states"])
    names = ("hidden_states", "hidden_states_masks", "img_sizes", "img_ids")
    return {**given, **dict(zip(names, (hidden, mask, sizes, ids), strict=True))}


def other_pictures(texts):
    given = joyimage.packed(texts)
    return {**given, "shape_list": [given["shape_list"][0], [(1, 7, 5), (1, 3, 4)]]}


@pytest.mark.parametrize(
    ("case", "inputs", "words"),
    [
        (z_image.CASES[0], other_sizes, "no single box"),
        (cogview.CASES[1], masked, "attention mask"),
        (hidream.CASES[0], cut_before, "no single box"),
        (joyimage.CASES[1], other_pictures, "no single box"),
    ],
    ids=lambda x: str(x) if hasattr(x, "model") else "",
)
def test_dense_with_the_reason(case, inputs, words):
    model = case.build()

    def run():
        torch.manual_seed(1)
        with torch.no_grad():
            return model(**inputs((6, 6)), return_dict=False)[0]

    base = run()
    dit_sparse.enable(model, probe())
    found = run()
    assert all(torch.equal(a, b) for a, b in zip(found, base, strict=True))
    report = dit_sparse.report(model)
    assert not report.sparse_calls and all(words in reason for reason in report.reasons)
