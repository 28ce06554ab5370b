"""A method that logs its calls, and the run of a tiny pipeline, for the tests of the seam."""

from dataclasses import dataclass, replace

import torch

import dit_sparse
from dit_sparse.arrange.raster import Raster

STEPS, LAYERS = 3, 2
DRAFT = {"keep": 0.3, "patch": (3, 2), "dense_steps": 0, "dense_layers": 0}
LOG = []


@dataclass(frozen=True)
class Probe(Raster):
    """Logs where each call is, and how often its state was seen."""

    def __call__(self, x, ctx):
        ctx.state["calls"] = ctx.state.get("calls", 0) + 1
        LOG.append((ctx.layer, ctx.step, ctx.steps, ctx.state["calls"], id(ctx.state), ctx.grid))
        return super().__call__(x, ctx)


def probe():
    LOG.clear()
    return replace(dit_sparse.get("draft", **DRAFT), arrange=Probe(block=16))


def run(pipe, prompt="a red circle", **options):
    given = {
        "height": 48,
        "width": 80,
        "num_frames": 9,
        "guidance_scale": 3.0,
        "output_type": "latent",
    }
    given |= {"num_inference_steps": STEPS, "max_sequence_length": 12, **options}
    return pipe(prompt, generator=torch.Generator().manual_seed(1), **given).frames


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe
