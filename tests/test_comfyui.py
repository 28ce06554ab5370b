"""The ComfyUI node, against a stand-in for the parts of ComfyUI's model object that it touches."""

from dataclasses import replace

import pytest
import torch

import dit_sparse
from demos.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, OVERRIDE, log
from dit_sparse.arrange.raster import Raster
from tests.comfyui import GRID, SIGMAS, TEXT, Flux, Patcher, Unknown, WanModel

Node = NODE_CLASS_MAPPINGS["DitSparseAttention"]


def patched(network, keep=0.3, method="draft", dense_steps=0.0, dense_layers=0, **fields):
    """Return the plain and the patched model; grids are logged by the method's arrangement."""
    torch.manual_seed(0)
    model = Patcher(network())
    for name, value in fields.items():
        setattr(model.network, name, value)
    (other,) = Node().patch(model, method, keep, dense_steps, dense_layers)
    return model, other, other.model_options["transformer_options"][OVERRIDE]


FORMS = [{}, {"skip_reshape": True}, {"skip_reshape": True, "skip_output_reshape": True}]
MODELS = [(WanModel, {}), (WanModel, {"front": 35}), (Flux, {}), (Unknown, {})]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize(("network", "fields"), MODELS)
def test_keeping_all_is_dense(network, fields, form):
    model, other, sparse = patched(network, 1.0, **fields, form=form)
    sigmas = SIGMAS[-2:] if network is Unknown else SIGMAS
    base = model.sample(sigmas)
    torch.testing.assert_close(other.sample(sigmas), base, rtol=1e-4, atol=1e-4)
    # all self-attention and nothing else: two layers, two branches
    assert dict(sparse.calls) == {"": 2 * 2 * (len(sigmas) - 1)}


@pytest.mark.parametrize(
    ("network", "fields", "grid"),
    [
        (WanModel, {}, dit_sparse.Grid(*GRID)),
        (WanModel, {"front": 35}, dit_sparse.Grid(*GRID, 35, text_first=True)),
        (Flux, {}, dit_sparse.Grid(1, 5, 7, TEXT + 8)),
        (Unknown, {}, None),
    ],
)
def test_grid_layers_and_states(network, fields, grid, monkeypatch):
    seen, arrange = [], Raster.__call__

    def spy(self, x, ctx):
        ctx.state["seen"] = ctx.state.get("seen", 0) + 1
        seen.append((ctx.grid, ctx.layer, ctx.step, ctx.steps, ctx.state["seen"], id(ctx.state)))
        return arrange(self, x, ctx)

    monkeypatch.setattr(Raster, "__call__", spy)
    model, other, sparse = patched(network, **fields)
    sparse.method = replace(sparse.method, arrange=Raster(16))
    sigmas = SIGMAS[-3:]
    told = []
    monkeypatch.setattr(log, "info", told.append)
    out = other.sample(sigmas)
    assert not torch.equal(out, model.sample(sigmas)) and out.isfinite().all()
    assert {entry[0] for entry in seen} == {grid}
    assert {entry[1:4] for entry in seen} == {(n, step, 2) for n in (0, 1) for step in (0, 1)}
    # a state for each layer and branch, which lives for one sampling
    assert len({entry[5] for entry in seen}) == 4 and max(entry[4] for entry in seen) == 2
    assert not sparse.states
    words = "raster blocks" if grid is None else "its grid: 8 of 8"
    assert words in told[0] and type(model.network).__name__ in told[0] and len(told) == 1


def test_dense_first_steps_layers_and_masks():
    model, other, sparse = patched(WanModel, dense_steps=0.5, dense_layers=1)
    base, out = model.sample(), other.sample()
    half = len(base) // 2
    assert torch.equal(out[:half], base[:half]) and not torch.equal(out[half:], base[half:])
    assert dict(sparse.calls) == {"": 4, "schedule": 12}
    model, other, sparse = patched(WanModel, mask=torch.zeros(1, 1, 105, 105))
    assert torch.equal(other.sample(), model.sample())
    assert "16 dense: an attention mask" in sparse.report()


def test_clones_and_other_overrides():
    """The model given stays as it is, a clone of ours works, and an override before us is used."""
    model, other, _ = patched(WanModel)
    assert model.model_options == {} and not model.wrappers
    assert torch.equal(other.clone().sample(), other.sample())
    used = []

    def before(call, *args, **options):
        used.append(args[0].shape)
        return call(*args, **options)

    model.model_options = {"transformer_options": {OVERRIDE: before}}
    for _ in range(2):
        (model,) = Node().patch(model, "draft", 0.3, 0.0, 0)
        used.clear()
        model.sample()
        # cross-attention alone
        assert len(used) == 16 and len(model.wrappers["outer_sample"]["dit_sparse"]) == 1


def test_interface():
    inputs = Node.INPUT_TYPES()["required"]
    assert list(inputs)[:3] == ["model", "method", "keep"] and inputs["model"] == ("MODEL",)
    assert "pisa" in inputs["method"][0] and "dense" not in inputs["method"][0]
    assert Node.RETURN_TYPES == ("MODEL",) and callable(getattr(Node(), Node.FUNCTION))
    assert NODE_DISPLAY_NAME_MAPPINGS.keys() == NODE_CLASS_MAPPINGS.keys()
    for method in inputs["method"][0]:
        Node().patch(
            Patcher(None), method, **{n: inputs[n][1]["default"] for n in list(inputs)[2:]}
        )
    with pytest.raises(dit_sparse.DitSparseError, match="keep"):
        Node().patch(Patcher(None), "pisa", 0.0)
