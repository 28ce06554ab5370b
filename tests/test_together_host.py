"""Sparse attention under guiders and adapters, and backends that the user changes afterwards."""

import pytest
import torch
from diffusers import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    SkipLayerGuidance,
    SmoothedEnergyGuidance,
)
from diffusers.hooks import HookRegistry, LayerSkipConfig, apply_layer_skip
from diffusers.models.attention_dispatch import attention_backend
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from diffusers.modular_pipelines import WanBlocks

import dit_sparse
from tests.probe import DRAFT, LAYERS, LOG, STEPS, probe, quiet, run
from tests.tiny.case import cases
from tests.tiny_wan import tiny_wan

LIMIT = {**DRAFT, "keep": 1.0}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture
def pipe():
    return quiet(tiny_wan())


def modular(guider):
    """Return a modular pipeline from prompt embeddings to latents, and a run of it."""
    parts, blocks = tiny_wan().components, WanBlocks()
    for name in ("text_encoder", "decode"):
        blocks.sub_blocks.pop(name)
    pipe = blocks.init_pipeline()
    names = ("transformer", "scheduler")
    pipe.update_components(guider=guider, **{name: parts[name] for name in names})
    pipe.set_progress_bar_config(disable=True)
    text, noise = torch.randn(2, 1, 12, 16), torch.randn(1, 4, 3, 6, 10)

    def draw():
        texts = {"prompt_embeds": text[0], "negative_prompt_embeds": text[1]}
        return pipe(**texts, latents=noise, num_inference_steps=STEPS, output="latents")

    return pipe, draw


SKIP = LayerSkipConfig([1])
# guider, calls per step: the conditional one, the unconditional one, that of a weakened model
GUIDERS = [
    (ClassifierFreeGuidance(guidance_scale=3.0), 2),
    (ClassifierFreeGuidance(guidance_scale=1.0), 1),
    (AdaptiveProjectedGuidance(guidance_scale=3.0), 2),
    (SkipLayerGuidance(3.0, 2.8, 0.0, 1.0, skip_layer_config=SKIP), 3),
    (SmoothedEnergyGuidance(3.0, 2.8, seg_guidance_layers=[1]), 3),
]


@pytest.mark.parametrize(("guider", "calls"), GUIDERS, ids=lambda value: type(value).__name__)
def test_modular_pipeline_and_guiders(guider, calls):
    pipe, draw = modular(guider)
    base = draw()
    dit_sparse.enable(pipe, "draft", **LIMIT)
    torch.testing.assert_close(draw(), base, **CLOSE)
    dit_sparse.enable(pipe, probe())
    sparse = draw()
    report = dit_sparse.report(pipe)
    assert not torch.equal(sparse, base) and report.steps == STEPS and not report.notes
    assert {cell.step for cell in report.cells} == set(range(STEPS))
    assert max(cell.calls for cell in report.cells) == calls
    assert all(cell.sparse == cell.calls for cell in report.cells)
    assert torch.equal(draw(), sparse)
    dit_sparse.disable(pipe)
    assert torch.equal(draw(), base)


# one class of each kind for which diffusers knows how to skip attention scores
@pytest.mark.parametrize("name", ["QwenImageTransformer2DModel", "CogView4Transformer2DModel"])
def test_perturbed_attention(name):
    """A layer whose scores are replaced by the identity stays so while sparse."""
    case = next((case for case in cases() if case.model == name), None)
    if case is None:
        pytest.skip(f"no tiny {name} yet")
    model = case.build()
    config = LayerSkipConfig([0], skip_attention=False, skip_attention_scores=True, skip_ff=False)

    def perturbed():
        apply_layer_skip(model, config)
        try:
            return case.run(model)[0]
        finally:
            HookRegistry.check_if_exists_or_initialize(model).remove_hook("layer_skip_hook")

    plain, base = case.run(model)[0], perturbed()
    assert not torch.equal(plain, base)
    dit_sparse.enable(model, "draft", **LIMIT)
    torch.testing.assert_close(perturbed(), base, **CLOSE)
    assert {cell.layer for cell in dit_sparse.report(model).cells} == set(range(1, case.layers))
    torch.testing.assert_close(case.run(model)[0], plain, **CLOSE)


def lora(pipe, scale):
    """Return LoRA weights of two projections of every self-attention."""
    names = [f"blocks.{n}.attn1.{x}" for n in range(LAYERS) for x in ("to_q", "to_v")]
    weights = {}
    for name in names:
        rows, columns = pipe.transformer.get_submodule(name).weight.shape
        weights[f"transformer.{name}.lora_A.weight"] = torch.randn(2, columns)
        weights[f"transformer.{name}.lora_B.weight"] = scale * torch.randn(rows, 2)
    return weights


def test_lora(pipe):
    """Loaded before or after, scaled, fused, unloaded."""
    weights = lora(pipe, 0.5)
    dit_sparse.enable(pipe, probe())
    plain = run(pipe)
    pipe.load_lora_weights(dict(weights), "one")
    tuned = run(pipe)
    assert not torch.equal(tuned, plain)
    dit_sparse.enable(dit_sparse.disable(pipe), probe())
    assert torch.equal(run(pipe), tuned)
    pipe.set_adapters("one", 0.0)
    torch.testing.assert_close(run(pipe), plain, **CLOSE)
    pipe.set_adapters("one", 1.0)
    pipe.fuse_lora()
    torch.testing.assert_close(run(pipe), tuned, rtol=1e-3, atol=1e-4)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    torch.testing.assert_close(run(pipe), plain, **CLOSE)
    assert dit_sparse.report(pipe).sparse_calls == 2 * LAYERS * STEPS


def test_compiled_lora_is_not_compiled_again(pipe):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    pipe.load_lora_weights(lora(pipe, 0.5), "one")
    dit_sparse.enable(pipe, probe())
    pipe.transformer.compile(backend=backend, fullgraph=True)
    tuned = run(pipe)
    with torch.no_grad():
        for name, weight in pipe.transformer.named_parameters():
            if "lora_B" in name:
                weight.mul_(2)
    assert not torch.equal(run(pipe), tuned) and len(graphs) == 1


def test_backend_of_the_user(pipe):
    """Set before, it serves the dense calls; a context does so too, and neither ends sparseness."""
    base = run(pipe)
    for before in (False, True):
        if before:
            pipe.transformer.set_attention_backend("_native_math")
        dit_sparse.enable(pipe, "draft", **{**LIMIT, "dense_steps": 1})
        with attention_backend("_native_math"):
            torch.testing.assert_close(run(pipe), base, **CLOSE)
        report = dit_sparse.report(pipe)
        assert report.notes == () and report.sparse_calls == 2 * LAYERS * (STEPS - 1)
        dit_sparse.disable(pipe)
    assert pipe.transformer.blocks[0].attn1.processor._attention_backend == "_native_math"
    # the last choice is that of the whole process
    pipe.transformer.set_attention_backend("native")
    pipe.transformer.reset_attention_backend()


@pytest.mark.parametrize("some", [True, False])
def test_set_attn_processor_is_noticed(pipe, some):
    base = run(pipe)
    dit_sparse.enable(pipe, "draft", **DRAFT)
    if some:
        pipe.transformer.blocks[1].attn1.set_processor(WanAttnProcessor())
    else:
        pipe.transformer.set_attn_processor(WanAttnProcessor())
    with pytest.warns(UserWarning, match=r"[12] of 2 .*set_attn_processor.*enable again"):
        out = run(pipe)
    assert torch.equal(out, base) != some
    assert f"{1 if some else 2} of 2 layers lost" in dit_sparse.report(pipe).notes[0]
    dit_sparse.enable(pipe, probe())
    run(pipe)
    assert {entry[0] for entry in LOG} == set(range(LAYERS)) and not dit_sparse.report(pipe).notes
    dit_sparse.disable(pipe)
    assert torch.equal(run(pipe), base)
