"""The diffusers seam: equal where it must be, sparse where it says, gone when disabled."""

import peft
import pytest
import torch
from diffusers import FirstBlockCacheConfig
from diffusers.models.attention_dispatch import attention_backend

import dit_sparse
from dit_sparse.integrations.diffusers import progress
from dit_sparse.integrations.seam import BACKEND
from tests.probe import DRAFT, LAYERS, LOG, STEPS, probe, quiet, run
from tests.tiny_wan import tiny_wan


@pytest.fixture(scope="module")
def shared():
    torch.manual_seed(0)
    pipe = quiet(tiny_wan())
    return pipe, run(pipe)


@pytest.fixture
def pipe(shared):
    yield shared[0]
    dit_sparse.disable(shared[0])


@pytest.fixture
def base(shared):
    return shared[1]


def attentions(model):
    return {n: m for n, m in model.named_modules() if hasattr(m, "processor")}


EXACT = {"rtol": 0, "atol": 0}
LIMITS = [
    ("dense", {}, EXACT),
    ("draft", {"schedule": dit_sparse.Schedule(dense_layers=LAYERS)}, EXACT),
    ("draft", {**DRAFT, "dense_steps": STEPS}, EXACT),
    ("draft", {**DRAFT, "keep": 1.0}, {"rtol": 1e-4, "atol": 1e-5}),
    ("pisa", {"keep": 1.0, "tile": (1, 3, 2)}, {"rtol": 1e-4, "atol": 1e-5}),
]


@pytest.mark.parametrize(("method", "params", "tolerance"), LIMITS)
def test_dense_limit_and_disable(pipe, base, method, params, tolerance):
    names, config = list(pipe.transformer.state_dict()), dict(pipe.transformer.config)
    assert dit_sparse.enable(pipe, method, **params) is pipe
    torch.testing.assert_close(run(pipe), base, **tolerance)
    assert (names, config) == (list(pipe.transformer.state_dict()), dict(pipe.transformer.config))
    dit_sparse.disable(dit_sparse.disable(pipe))
    assert torch.equal(run(pipe), base)
    assert all(
        m.processor._attention_backend is None for m in attentions(pipe.transformer).values()
    )
    assert "forward" not in vars(pipe.transformer)


@pytest.mark.parametrize(
    ("options", "branches"),
    [
        ({}, 2),
        ({"guidance_scale": 1.0}, 1),
        ({"prompt": ["a red circle", "a blue square"]}, 2),
        ({"height": 80, "width": 112, "num_frames": 1}, 2),
        ({"height": 16, "width": 48, "num_frames": 13, "guidance_scale": 1.0}, 1),
    ],
)
def test_every_self_attention_and_nothing_else(pipe, options, branches):
    dit_sparse.enable(pipe, probe())
    out = run(pipe, **options)
    found = dit_sparse.report(pipe)
    assert out.isfinite().all()
    assert {(c.layer, c.step) for c in found.cells} == {
        (n, s) for n in range(LAYERS) for s in range(STEPS)
    }
    assert all(c.calls == c.sparse == branches for c in found.cells) and 0 < found.density < 0.7
    assert {entry[5].video for entry in LOG} == {out[0, 0].numel()}
    ours = {
        n
        for n, m in attentions(pipe.transformer).items()
        if m.processor._attention_backend is BACKEND
    }
    assert ours == {f"blocks.{n}.attn1" for n in range(LAYERS)}
    # a state per layer and branch, which lives for one generation
    assert len({entry[4] for entry in LOG}) == LAYERS * branches
    assert sorted(e[3] for e in LOG) == sorted(
        (s + 1) for s in range(STEPS) for _ in range(LAYERS * branches)
    )
    run(pipe, **options)
    assert max(entry[3] for entry in LOG) == STEPS


SCHEDULES = [(0.3, 0, 1, ()), (2, 0, 2, ()), (0, 1, 0, (0,)), (1, (1,), 1, (1,))]


@pytest.mark.parametrize(("steps", "layers", "first", "dense"), SCHEDULES)
def test_schedule_and_report(pipe, steps, layers, first, dense):
    dit_sparse.enable(
        pipe, "draft", schedule=dit_sparse.Schedule(steps, layers), keep=0.3, patch=(3, 2)
    )
    run(pipe)
    found = dit_sparse.report(pipe)
    for cell in found.cells:
        sparse = cell.step >= first and cell.layer not in dense
        assert cell.sparse == (cell.calls if sparse else 0) and (cell.density < 0.5) == sparse
    assert sum(found.reasons.values()) == found.calls - found.sparse_calls
    text = str(found)
    assert "schedule: a dense" in text and max(map(len, text.splitlines())) <= 80
    assert found.to_dict()["cells"][0]["calls"] == 2 and found.progress == progress(pipe)
    assert "torch" in found.implementations


def test_lora_cache_callback_and_abort():
    pipe = quiet(tiny_wan())
    dit_sparse.enable(pipe, probe())
    sparse = run(pipe)
    pipe.transformer.add_adapter(
        peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    )
    tuned = run(pipe)
    assert (
        not torch.equal(tuned, sparse)
        and dit_sparse.report(pipe).sparse_calls == 2 * LAYERS * STEPS
    )
    pipe.fuse_lora(components=["transformer"])
    torch.testing.assert_close(run(pipe), tuned, rtol=1e-3, atol=1e-4)
    pipe.unfuse_lora(components=["transformer"])
    pipe.transformer.delete_adapters("default")
    polled = []

    def poll(pipe, step, timestep, kwargs):
        polled.append(progress(pipe))
        if stop == step:
            raise KeyboardInterrupt
        return kwargs

    for stop in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            run(pipe, callback_on_step_end=poll)
        LOG.clear()
        polled.clear()
        stop = None
        torch.testing.assert_close(run(pipe, callback_on_step_end=poll), sparse)
        assert [p.step for p in polled] == list(range(STEPS)) and all(
            p.density < 0.7 for p in polled
        )
        assert max(entry[3] for entry in LOG) == STEPS
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    run(pipe)
    cells = dit_sparse.report(pipe).cells
    assert {c.step for c in cells if c.layer == 0} == set(range(STEPS)) and all(
        c.sparse for c in cells
    )
    assert {c.step for c in cells if c.layer == 1} == {0}


def test_host_backend_changes_are_noticed(pipe, base):
    dit_sparse.enable(pipe, "draft", **DRAFT)
    with attention_backend("_native_math"):
        run(pipe)
    assert dit_sparse.report(pipe).notes == ()
    pipe.transformer.set_attention_backend("native")
    with pytest.warns(UserWarning, match="set_attention_backend"):
        assert torch.equal(run(pipe), base)
    notes = dit_sparse.report(pipe).notes
    assert "2 of 2 layers lost" in notes[0] and "0 sparse calls" in notes[1]
    pipe.transformer.reset_attention_backend()


def test_masks_offload_and_training(pipe):
    layer = pipe.transformer.blocks[0].attn1
    x, mask = torch.randn(1, 90, 32), torch.rand(1, 1, 90, 90) > 0.3
    with torch.no_grad():
        plain = layer(x, attention_mask=mask)
    dit_sparse.enable(pipe, "draft", **DRAFT)
    run(pipe)
    with torch.no_grad():
        assert torch.equal(layer(x, attention_mask=mask), plain)
    assert any("mask" in reason for reason in dit_sparse.report(pipe).reasons)
    with pytest.raises(dit_sparse.DitSparseError, match="training"):
        layer(x).sum().backward()
    # accelerate wraps `forward` for CPU offload: disabling keeps its wrapper
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    add_hook_to_module(pipe.transformer, ModelHook())
    wrapper = pipe.transformer.forward
    dit_sparse.disable(pipe)
    assert pipe.transformer.forward is wrapper
    run(pipe)
    remove_hook_from_module(pipe.transformer)
