"""Sparse attention together with what else diffusers does to a model, in either order."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from diffusers import (
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)

import dit_sparse
from tests.probe import DRAFT, LAYERS, STEPS, probe, quiet, run
from tests.tiny_wan import tiny_wan

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CPU = torch.device("cpu")
LIMIT = {**DRAFT, "keep": 1.0}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
ALL = {(layer, step) for layer in range(LAYERS) for step in range(STEPS)}


@dataclass(frozen=True)
class Row:
    """Something else to do to a pipeline.

    exact: it changes nothing of the output. cells: the (layer, step) that attend. needs: a library.
    """

    name: str
    apply: Callable[[Any], Any]
    exact: bool = False
    cells: Any = frozenset(ALL)
    options: dict[str, Any] = field(default_factory=dict)
    needs: str = ""

    def __str__(self) -> str:
        return self.name


def cache(config):
    return lambda pipe: pipe.transformer.enable_cache(config(pipe))


def pyramid(pipe):
    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(0, 1000),
        spatial_attention_block_identifiers=("blocks",),
        current_timestep_callback=lambda: float(pipe.current_timestep),
    )


def taylor(pipe):
    return TaylorSeerCacheConfig(
        cache_interval=2,
        disable_cache_before_step=1,
        taylor_factors_dtype=torch.float32,
        cache_identifiers=[r"blocks\.\d+\.attn1"],
    )


def mag(pipe):
    ratios = [1.0] * STEPS
    return MagCacheConfig(
        threshold=9.0, num_inference_steps=STEPS, retention_ratio=0.3, mag_ratios=ratios
    )


def group_offload(kind, **options):
    # copies beside the computation, where there is anything to copy
    streams = kind == "leaf_level" and DEVICE.type == "cuda"
    return lambda pipe: pipe.transformer.enable_group_offload(
        onload_device=DEVICE, offload_device=CPU, offload_type=kind, use_stream=streams, **options
    )


def torchao(pipe):
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(pipe.transformer, Int8WeightOnlyConfig())


def bitsandbytes(kind, **options):
    """Replace the linear layers of the blocks by hand: diffusers' loader asks for a GPU."""

    def apply(pipe):
        make = getattr(importlib.import_module("bitsandbytes").nn, kind)
        for block in pipe.transformer.blocks:
            for path, old in list(block.named_modules()):
                if isinstance(old, torch.nn.Linear):
                    new = make(old.in_features, old.out_features, **options)
                    new.load_state_dict(old.state_dict())
                    owner, _, name = path.rpartition(".")
                    setattr(block.get_submodule(owner), name, new.to(DEVICE))

    return apply


def cast_layers(pipe):
    pipe.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)


def tile(pipe):
    sizes = dict.fromkeys(("tile_sample_min_height", "tile_sample_min_width"), 32)
    strides = dict.fromkeys(("tile_sample_stride_height", "tile_sample_stride_width"), 24)
    pipe.vae.enable_tiling(**sizes, **strides)


ROWS = [
    Row("fuse_qkv_projections", lambda pipe: pipe.transformer.fuse_qkv_projections(), exact=True),
    Row("group offload, blocks", group_offload("block_level", num_blocks_per_group=1), exact=True),
    Row("group offload, leaves", group_offload("leaf_level"), exact=True),
    Row("model offload", lambda pipe: pipe.enable_model_cpu_offload(device=DEVICE), exact=True),
    Row("sequential offload", lambda pipe: cpu_offload(pipe.transformer, DEVICE, True), exact=True),
    Row("layerwise casting", cast_layers),
    Row("VAE tiling", tile, options={"output_type": "np", "num_frames": 1}),
    Row(
        "FirstBlockCache",
        cache(lambda pipe: FirstBlockCacheConfig(threshold=1e9)),
        cells={*((0, step) for step in range(STEPS)), (1, 0)},
    ),
    Row("PyramidAttentionBroadcast", cache(pyramid)),
    Row("TaylorSeer", cache(taylor), cells={cell for cell in ALL if cell[1] != 1}),
    Row("MagCache", cache(mag), cells={cell for cell in ALL if cell[1] == 0}),
    Row("torchao int8 weights", torchao, needs="torchao"),
    Row(
        "bitsandbytes 8-bit weights",
        bitsandbytes("Linear8bitLt", has_fp16_weights=False),
        needs="bitsandbytes",
    ),
    Row(
        "bitsandbytes 4-bit weights",
        bitsandbytes("Linear4bit", compute_dtype=torch.float32),
        needs="bitsandbytes",
    ),
]


def pipeline(*steps):
    """Return the same tiny pipeline every time, after some steps."""
    torch.manual_seed(0)
    pipe = quiet(tiny_wan()).to(DEVICE)
    for step in steps:
        step(pipe)
    return pipe


def frames(pipe, row):
    return torch.as_tensor(run(pipe, **row.options)).cpu()


@pytest.mark.filterwarnings("ignore:.*(script_method|Enum subclass).*")
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_together(row):
    if row.needs:
        pytest.importorskip(row.needs, reason=f"{row.needs} is not installed: {row.name} not run")
    base = frames(pipeline(row.apply), row)
    for method, params in (("draft", LIMIT), (probe(), {})):
        enable = partial(dit_sparse.enable, method=method, **params)
        pipes = pipeline(row.apply, enable), pipeline(enable, row.apply)
        out, same = (frames(pipe, row) for pipe in pipes)
        assert torch.equal(out, same)
        for pipe in pipes:
            report = dit_sparse.report(pipe)
            assert {(c.layer, c.step) for c in report.cells} == set(row.cells)
            assert report.sparse_calls == report.calls and not report.notes
        if params:
            torch.testing.assert_close(out, base, **CLOSE)
    assert not torch.equal(out, base) and out.isfinite().all()
    assert torch.equal(out, frames(pipeline(enable), row)) == row.exact
    # the second generation does not see the first, and all can be undone
    assert torch.equal(out, frames(pipes[1], row))
    dit_sparse.disable(pipes[1])
    assert torch.equal(frames(pipes[1], row), base)
