"""The second family, the drop-in classes, `load`, and what is refused."""

import json
import math
from concurrent.futures import ThreadPoolExecutor

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline, FluxTransformer2DModel, UNet2DModel

import dit_sparse
from dit_sparse.integrations import seam
from dit_sparse.integrations.diffusers import profile_of
from dit_sparse.integrations.seam import hook_of
from dit_sparse.pipelines import SparseWanPipeline, load
from tests.probe import DRAFT, LOG, probe, quiet, run
from tests.tiny.case import cases
from tests.tiny_wan import save, tiny_wan


def flux():
    torch.manual_seed(0)
    sizes = {
        "num_layers": 1,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
    }
    model = FluxTransformer2DModel(
        in_channels=4,
        joint_attention_dim=16,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 4, 8),
        **sizes,
    ).eval()
    vae = diffusers.AutoencoderKL(
        sample_size=32,
        block_out_channels=(4,),
        latent_channels=1,
        norm_num_groups=1,
        shift_factor=0.0,
    )
    names = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipe = diffusers.FluxPipeline(scheduler, vae, **dict.fromkeys(names), transformer=model)
    return quiet(pipe)


@pytest.mark.parametrize(("height", "width"), [(16, 24), (14, 26)])
def test_flux(height, width):
    pipe = flux()
    text = {"prompt_embeds": torch.ones(1, 7, 16), "pooled_prompt_embeds": torch.ones(1, 8)}
    size = {"height": height, "width": width, "num_inference_steps": 3, "output_type": "latent"}

    def draw():
        return pipe(**text, **size, generator=torch.Generator().manual_seed(0)).images

    base = draw()
    dit_sparse.enable(pipe, "draft", **{**DRAFT, "keep": 1.0})
    torch.testing.assert_close(draw(), base, rtol=1e-4, atol=1e-5)
    dit_sparse.enable(pipe, probe())
    assert not torch.equal(draw(), base)
    grid = dit_sparse.Grid(1, height // 2, width // 2, text=7, text_first=True)
    assert {(e[0], e[1], e[2]) for e in LOG} == {(n, s, 3) for n in range(3) for s in range(3)}
    assert {entry[5] for entry in LOG} == {grid}
    assert all(cell.sparse for cell in dit_sparse.report(pipe).cells)
    dit_sparse.disable(pipe)
    assert torch.equal(draw(), base)


def test_dense_calls_go_without_their_mask(monkeypatch):
    """Of padded text: what a mask hides is cut out, so that a backend without masks serves."""
    case, seen = next(c for c in cases() if c.model == "HunyuanVideoTransformer3DModel"), []
    model, dispatch = case.build(), seam.dispatch_attention_fn
    base = case.run(model)

    def spy(q, k, v, mask=None, *rest, backend, **options):
        seen.append((k.shape[1], mask, backend.value))
        return dispatch(q, k, v, mask, *rest, backend=backend, **options)

    monkeypatch.setattr(seam, "dispatch_attention_fn", spy)
    model.set_attention_backend("_native_flash")
    dit_sparse.enable(model, "pisa", dense_layers=case.layers)
    for a, b in zip(case.run(model), base, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    model.set_attention_backend("native")
    keys = [math.prod(case.grid) + text for text in case.texts]
    assert seen == [(n, None, "_native_flash") for n in keys] * case.layers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    return save(tmp_path_factory.mktemp("model") / "wan")


def test_drop_in_round_trip(folder, tmp_path):
    schedule = dit_sparse.Schedule(dense_layers=(1,))
    pipe = quiet(SparseWanPipeline.from_pretrained(folder, "draft", schedule=schedule, keep=0.5))
    assert isinstance(pipe, diffusers.WanPipeline) and profile_of(pipe).params == {"keep": 0.5}
    sparse = run(pipe)
    pipe.save_pretrained(tmp_path / "again")
    again = quiet(load(tmp_path / "again"))
    assert type(again) is SparseWanPipeline and profile_of(again) == profile_of(pipe)
    torch.testing.assert_close(run(again), sparse)
    assert {c.layer for c in dit_sparse.report(again).cells if c.sparse} == {0}
    other = load(tmp_path / "again", "pisa", tile=[2, 2, 2])
    assert profile_of(other).method == "pisa"
    profile = SparseWanPipeline.from_pretrained(
        folder, profile=str(tmp_path / "again/dit_sparse.toml")
    )
    assert profile_of(profile) == profile_of(pipe)
    plain = DiffusionPipeline.from_pretrained(tmp_path / "again")
    assert type(plain) is diffusers.WanPipeline
    dtypes = {
        p.dtype
        for name in ("text_encoder", "transformer", "vae")
        for p in getattr(again, name).parameters()
    }
    assert dtypes == {torch.float32}


def test_load_refuses(folder, tmp_path, monkeypatch):
    cases = {
        "/no/such": "no such folder",
        "nothing": "no such folder",
        str(tmp_path): "model_index",
        "a/b": "a/b",
    }
    for path, words in cases.items():
        with pytest.raises(dit_sparse.DitSparseError, match=words):
            load(path)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "AudioPipeline"}))
    with pytest.raises(dit_sparse.UnsupportedModelError, match=r"Audio.*nearest: \w+Pipe"):
        load(tmp_path)
    with pytest.raises(dit_sparse.DitSparseError, match="did you mean 'keep'"):
        load(folder, "pisa", kep=0.5)
    # what diffusers knows is its own, also where a method has a parameter of that name or nearly
    host = {"revision": "main", "variant": None}
    pipe = load(folder, "sla", params={"variant": "global"}, **host)
    assert profile_of(pipe).params == {"variant": "global"} and load(folder, "pisa", **host)
    with pytest.raises(AttributeError, match="SparseNothing"):
        dit_sparse.pipelines.SparseNothing  # noqa: B018
    assert {"load", "SparseFluxPipeline", "SparseWanPipeline"} <= set(dir(dit_sparse.pipelines))


REFUSED = [
    ({"method": "pisaa"}, "nearest: pisa"),
    ({"method": "pisa", "kepp": 1}, "no parameter 'kepp'"),
    ({"method": "pisa", "keep": 0.0}, "keep"),
    ({"method": 3}, "must be a name"),
    ({"method": "none.toml"}, "is no file"),
    ({"method": "pisa", "schedule": 3}, "schedule=3"),
    ({"method": "pisa", "impl": "cuda"}, "impl='cuda'"),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSED)
def test_refused_arguments_touch_nothing(arguments, words):
    model = tiny_wan().transformer
    with pytest.raises(dit_sparse.DitSparseError, match=words):
        dit_sparse.enable(model, **arguments)
    assert not hasattr(model, "_diffusers_hook")
    with pytest.raises(dit_sparse.DitSparseError, match="never enabled"):
        dit_sparse.report(model)


def test_number_format_stays_with_a_value():
    """A value or a profile that brings fp8 keeps it where `enable` is not asked for another."""
    model = tiny_wan().transformer
    value = dit_sparse.get("draft", **DRAFT).with_quant("fp8")
    for given in (value, dit_sparse.Profile("", "draft", dict(DRAFT), quant="fp8")):
        dit_sparse.enable(model, given)
        assert hook_of(model).session.method.compute.quant == "fp8"
    dit_sparse.enable(model, value.with_quant("none"))
    assert hook_of(model).session.method.compute.quant == "none"


@pytest.mark.parametrize("schedule", [None, dit_sparse.Schedule(dense_steps=1)])
def test_methods_for_text_are_refused(schedule):
    """A schedule without a phase does not make a method for text one for videos."""
    with pytest.raises(dit_sparse.DitSparseError, match="language models"):
        dit_sparse.enable(tiny_wan().transformer, "blasst", schedule=schedule)


def test_refused_models():
    unet = UNet2DModel(
        8, block_out_channels=(32,), down_block_types=["DownBlock2D"], up_block_types=["UpBlock2D"]
    )
    pipe = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler())
    for model, name in ((unet, "UNet2DModel"), (pipe, "DDPMPipeline"), (3, "int")):
        with pytest.raises(
            dit_sparse.UnsupportedModelError, match=rf"{name}.*nearest of \d+ .*dit-sparse models"
        ):
            dit_sparse.enable(model, "pisa")


def test_two_threads():
    """Two enabled models in two threads do not see each other's layers."""
    models = [quiet(tiny_wan()), flux()]
    for model in models:
        dit_sparse.enable(model, "draft", **DRAFT)
    with ThreadPoolExecutor(2) as pool:
        wan = pool.submit(run, models[0])
        text = {"prompt_embeds": torch.ones(1, 7, 16), "pooled_prompt_embeds": torch.ones(1, 8)}
        other = pool.submit(models[1], **text, height=16, width=24, output_type="latent")
        assert wan.result().isfinite().all() and other.result().images.isfinite().all()
    assert all(dit_sparse.report(model).reasons == {} for model in models)
