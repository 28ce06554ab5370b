"""A stand-in for what the ComfyUI node touches: the attention, three networks, the MODEL object."""

import copy
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from demos.comfyui import OVERRIDE, TOKENS

HEADS, DIM, GRID, TEXT = 2, 16, (3, 5, 7), 6
SIGMAS = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0])


def attention(q, k, v, heads, mask=None, skip_reshape=False, skip_output_reshape=False, **options):
    """ComfyUI's attention: asks the override once, then is dense."""
    if "_inside_attn_wrapper" not in options:
        options["_inside_attn_wrapper"] = True
        override = options["transformer_options"].get(OVERRIDE)
        shape = {"skip_reshape": skip_reshape, "skip_output_reshape": skip_output_reshape}
        if override is not None:
            return override(attention, q, k, v, heads, mask=mask, **shape, **options)
    if not skip_reshape:
        q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, mask)
    return out if skip_output_reshape else out.transpose(1, 2).flatten(2)


class WanModel(nn.Module):
    """Two blocks of self- and cross-attention over latents [B, C, T, H, W] in patches of (1, 2, 2).

    front: tokens of a reference picture, before the others.
    """

    patch_size, front, form, mask = (1, 2, 2), 0, {}, None

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(HEADS * DIM, 3 * HEADS * DIM) for _ in range(2))

    def forward(self, x, timestep, context, transformer_options):
        tokens = self.tokens(x, context)
        for kind, number, block in self.layers():
            transformer_options.update(block_type=kind, block_index=number)
            attend = partial(attention, heads=HEADS, transformer_options=transformer_options)
            q, k, v = block(tokens).chunk(3, -1)
            if self.form:
                q, k, v = (t.unflatten(2, (HEADS, -1)).transpose(1, 2) for t in (q, k, v))
            out = attend(q, k, v, mask=self.mask, **self.form)
            if self.form.get("skip_output_reshape"):
                out = out.transpose(1, 2).flatten(2)
            tokens = tokens + out
            tokens = tokens + attend(tokens, context, context)
        return tokens

    def layers(self):
        return [("double", number, block) for number, block in enumerate(self.blocks)]

    def tokens(self, x, context):
        count = self.front + torch.Size(GRID).numel()
        return torch.randn(len(x), count, HEADS * DIM, generator=torch.Generator().manual_seed(7))


class Flux(WanModel):
    """Text first, then the picture, then a reference picture of eight tokens."""

    patch_size = 2

    def __init__(self):
        super().__init__()
        self.double_blocks, self.single_blocks = self.blocks[:1], self.blocks[1:]
        del self.blocks

    def layers(self):
        return [("double", 0, self.double_blocks[0]), ("single", 0, self.single_blocks[0])]

    def tokens(self, x, context):
        noise = torch.randn(len(x), 35 + 8, HEADS * DIM, generator=torch.Generator().manual_seed(7))
        return torch.cat([context, noise], 1)


class Unknown(WanModel):
    patch_size = None

    def tokens(self, x, context):
        noise = torch.Generator().manual_seed(7)
        return torch.randn(1, TOKENS, HEADS * DIM, generator=noise)


class Patcher:
    """ComfyUI's MODEL: a network, options that a clone copies, and wrappers that it shares."""

    def __init__(self, network):
        self.network, self.model_options, self.wrappers = network, {}, {}

    def clone(self):
        other = Patcher(self.network)
        other.model_options = copy.deepcopy(self.model_options)
        other.wrappers = {kind: dict(keys) for kind, keys in self.wrappers.items()}
        return other

    def add_wrapper_with_key(self, kind, key, wrapper):
        self.wrappers.setdefault(kind, {}).setdefault(key, []).append(wrapper)

    def remove_wrappers_with_key(self, kind, key):
        self.wrappers.get(kind, {}).pop(key, None)

    def wrapped(self, kind, call):
        for wrapper in (w for ws in self.wrappers.get(kind, {}).values() for w in ws):
            call = Executor(partial(wrapper, Executor(call, self.network)), self.network)
        return call

    def sample(self, sigmas=SIGMAS):
        """Return the output of every call of a sampling, two branches per step."""
        options = dict(self.model_options.get("transformer_options", {}))
        latents = torch.zeros(1, 4, GRID[0], 10, 14)
        latents = latents[:, :, 0] if isinstance(self.network, Flux) else latents

        def steps():
            outs = []
            for sigma in sigmas[:-1]:
                for branch in (0, 1):
                    told = {"sample_sigmas": sigmas, "sigmas": sigma[None]}
                    told = {**options, **told, "cond_or_uncond": [branch]}
                    text = torch.full((1, TEXT, HEADS * DIM), 1.0 + branch)
                    network = self.wrapped("diffusion_model", self.network)
                    outs.append(network(latents, sigma[None], text, transformer_options=told))
            return torch.stack(outs)

        with torch.no_grad():
            return self.wrapped("outer_sample", steps)()


class Executor:
    """What ComfyUI hands to a wrapper: the next call, and whose it is."""

    def __init__(self, call, owner):
        self.call, self.class_obj = call, owner

    def __call__(self, *args, **options):
        return self.call(*args, **options)
