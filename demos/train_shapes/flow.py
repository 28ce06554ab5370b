"""Flow matching with the Wan transformer: a lean training forward, cached latents, the image and
the video stage.
"""

import time
from dataclasses import dataclass

import captions
import models
import sequence
import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from engine import Stage
from optim import Average, optimisers, rate
from ranks import Run
from torch import Tensor

from dit_sparse.world import render, sample_ids


class Block(WanTransformerBlock):
    """The same block with one product for q, k and v, and a text attention that counts padding
    instead of storing it.
    """

    def forward(
        self, x: Tensor, text: Tensor, bias: Tensor, temb: Tensor, cos: Tensor, sin: Tensor
    ) -> Tensor:
        """x [B, S, C], text [B, L, C], bias [B, L] added to the logits, temb [B, 6, C], cos, sin
        [1, S, 1, D/2].
        """
        shift, scale, gate, shift_f, scale_f, gate_f = (
            self.scale_shift_table + temb.float()
        ).chunk(6, 1)
        y = (self.norm1(x.float()) * (1 + scale) + shift).type_as(x)
        x = (x.float() + self.look(y, cos, sin) * gate).type_as(x)
        x = x + self.read(self.norm2(x.float()).type_as(x), text, bias)
        y = (self.norm3(x.float()) * (1 + scale_f) + shift_f).type_as(x)
        return (x.float() + self.ffn(y) * gate_f).type_as(x)

    def look(self, y: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        a = self.attn1
        weight = torch.cat([a.to_q.weight, a.to_k.weight, a.to_v.weight])
        q, k, v = F.linear(y, weight, torch.cat([a.to_q.bias, a.to_k.bias, a.to_v.bias])).chunk(
            3, -1
        )

        def turn(z: Tensor, gain: Tensor) -> Tensor:
            one, two = rms(z, gain).unflatten(-1, (a.heads, -1, 2)).unbind(-1)  # [B, S, H, D/2]
            return (
                torch.stack((one * cos - two * sin, one * sin + two * cos), -1)
                .flatten(-2)
                .type_as(v)
                .transpose(1, 2)
            )

        v = v.unflatten(-1, (a.heads, -1)).transpose(1, 2)
        out = F.scaled_dot_product_attention(turn(q, a.norm_q.weight), turn(k, a.norm_k.weight), v)
        return a.to_out[0](out.transpose(1, 2).flatten(2))

    def read(self, y: Tensor, text: Tensor, bias: Tensor) -> Tensor:
        a = self.attn2
        q, k, v = a.to_q(y), a.to_k(text), a.to_v(text)
        q, k = rms(q, a.norm_q.weight).type_as(v), rms(k, a.norm_k.weight).type_as(v)
        q, k, v = (z.unflatten(-1, (a.heads, -1)).transpose(1, 2) for z in (q, k, v))
        logits = (q @ k.mT).float() * q.shape[-1] ** -0.5 + bias[:, None, None]
        return a.to_out[0]((logits.softmax(-1).type_as(v) @ v).transpose(1, 2).flatten(2))


def rms(x: Tensor, gain: Tensor, eps: float = 1e-6) -> Tensor:
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * gain


def lean(model: WanTransformer3DModel, *, compiled: bool) -> WanTransformer3DModel:
    """Switch the blocks to the training forward; weights and their names stay."""
    for block in model.blocks:
        block.__class__ = Block
        if compiled:
            block.compile(dynamic=False)
    return model


def padded(text: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Add one zero row that stands for all the padding up to each caption's text length.

    text [B, L, C], length [B] > L -> text [B, L + 1, C], bias [B, L + 1]: log of how often a row
    counts
    """
    bias = text.new_zeros(text.shape[:2])
    return F.pad(text, (0, 0, 0, 1)), torch.cat(
        [bias, (length - text.shape[1]).float().log()[:, None]], 1
    )


def velocity(
    model: WanTransformer3DModel, x: Tensor, t: Tensor, text: Tensor, bias: Tensor
) -> Tensor:
    """Do what the model's own forward does, through `Block`; x [B, C, T, h, w], t [B] in
    0..1000.
    """
    cos, sin = (table[..., i::2].float() for i, table in enumerate(model.rope(x)))
    h = model.patch_embedding(x).flatten(2).transpose(1, 2).contiguous()
    temb, steps, text, _ = model.condition_embedder(t, text, None)
    steps = steps.unflatten(1, (6, -1))
    for block in model.blocks:
        h = block(h, text, bias, steps, cos, sin)
    shift, scale = (model.scale_shift_table + temb.unsqueeze(1)).chunk(2, 1)
    h = model.proj_out((model.norm_out(h.float()) * (1 + scale) + shift).type_as(h))
    return h.transpose(1, 2).unflatten(2, x.shape[2:])


@dataclass
class Cache:
    """Latents of one clip size in device memory: z [N, C, T, h, w] normalised, ids [N, 6]."""

    z: Tensor
    ids: Tensor


class Encoder:
    """Render and encode with the finished VAE, normalised by its latents' mean and std."""

    def __init__(self, run: Run):
        done = run.load("vae_done")
        assert done is not None, "the vae stage comes first"
        self.run, self.vae = run, sequence.whole(models.vae()).to(run.device)
        self.vae.load_state_dict(done["model"])
        sequence.channels_last(self.vae).eval().requires_grad_(False)
        self.mean, self.std = (
            done[key].view(1, -1, 1, 1, 1).to(run.device) for key in ("mean", "std")
        )
        self.fast = (
            torch.compile(sequence.moments, dynamic=False) if run.compiled else sequence.moments
        )

    @torch.no_grad()
    def fill(
        self, n: int, batch: int, frames: int, size: tuple[int, int], salt: int, limit: float
    ) -> Cache:
        """Make up to n clips, fewer when they take longer than `limit` seconds after the first
        batch.
        """
        run, generator = self.run, self.run.generator(salt)
        # compiled, other sizes than squares gave clips that are not finite and then an illegal
        # memory access (torch 2.11, H200); the few of them are encoded eagerly
        compute = self.fast if frames > 1 and size[0] == size[1] else sequence.moments
        z, all_ids, begun = [], [], time.monotonic()
        start = begun
        for i in range(max(1, n // batch)):
            ids = sample_ids(batch, generator)
            # a lone frame is one moment of the clip
            times = (
                torch.rand(batch, 1, generator=generator, device=run.device) * 4
                if frames == 1
                else None
            )
            clip = render(ids, frames, *size, generator=generator, times=times)
            with run.autocast():
                mean = compute(self.vae, clip).chunk(2, 1)[0]
            z.append(((mean.float() - self.mean) / self.std).to(torch.bfloat16))
            all_ids.append(ids)
            if i == 0:
                run.sync()
                start = time.monotonic()
            elif i % 8 == 0:
                run.sync()
                if time.monotonic() - start > limit or run.left() < 30:
                    break
        # checked in pieces: a copy of the whole cache in float32 would not fit beside it
        sound = torch.cat([part.flatten(1).isfinite().all(1) for part in z])
        made = Cache(torch.cat(z), torch.cat(all_ids))
        if not sound.all():
            run.say(f"cache: {int((~sound).sum())} clips are not finite and left out")
            made = Cache(made.z[sound], made.ids[sound])
        took = time.monotonic() - start
        run.say(
            f"cache {frames}x{size[0]}x{size[1]}: {len(made.z)} clips per rank, "
            f"first batch {start - begun:.1f} s, "
            f"then {took:.1f} s, {max(len(made.z) - batch, 0) / max(took, 1e-3):.0f} clips/s"
        )
        return made


class Trainer:
    """One flow-matching stage over a rota of (cache, latent frames, batch)."""

    def __init__(
        self, run: Run, stage: Stage, rota: list[tuple[Cache, int, int]], shift: float, salt: int
    ):
        self.run, self.stage, self.rota, self.shift = run, stage, rota, shift
        self.generator = run.generator(salt)
        state = run.load("text_encoder")
        assert state is not None, "the text stage comes first"
        self.text = models.text_encoder().to(run.device).eval().requires_grad_(False)
        self.text.load_state_dict(state)
        # the shipped encoder is bf16: train on what it will say
        for p in self.text.parameters():
            p.data = p.data.to(torch.bfloat16).float()
        nothing = torch.zeros(1, captions.LENGTH, dtype=torch.long, device=run.device)
        nothing[:, 0] = captions.END
        with torch.no_grad():
            self.empty = models.embed(self.text, nothing)
        self.said = {
            id(cache): self.word(cache.ids) for cache in {id(c): c for c, _, _ in rota}.values()
        }

    def draw(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self.run.device)

    @torch.no_grad()
    def word(self, ids: Tensor) -> Tensor:
        """Word every scene once and encode it: [N, L, C] bf16. Encoding in the loop would wait for
        the device.
        """
        rows = []
        for some in ids.split(4096):
            words, _, _ = captions.tokens(some, self.generator)
            rows.append(models.embed(self.text, words).to(torch.bfloat16))
        return torch.cat(rows)

    @torch.no_grad()
    def condition(self, said: Tensor) -> tuple[Tensor, Tensor]:
        """Drop 9 % of the captions; the text length is 20..64 mostly and 512 for a fifth."""
        chance = self.draw(len(said), 3)
        said = torch.where(chance[:, :1, None] < 0.09, self.empty, said.float())
        length = torch.where(chance[:, 1] < 0.7, 64.0, 20 + 44 * chance[:, 2])
        return padded(said, torch.where(chance[:, 1] < 0.2, 512.0, length).round())

    def loss(self, step: int) -> tuple[Tensor, int]:
        cache, frames, batch = self.rota[step % len(self.rota)]
        pick = (self.draw(batch) * len(cache.z)).long()
        x = cache.z[pick, :, :frames].float()
        text, bias = self.condition(self.said[id(cache)][pick])
        noise = torch.randn(x.shape, generator=self.generator, device=x.device)
        normal = torch.randn(batch, generator=self.generator, device=x.device)
        chance = self.draw(batch, 2)
        sigma = torch.where(chance[:, 0] < 0.15, chance[:, 1], normal.sigmoid())
        sigma = self.shift * sigma / (1 + (self.shift - 1) * sigma)
        s = sigma.view(-1, 1, 1, 1, 1)
        with self.run.autocast():
            out = velocity(self.stage.model, (1 - s) * x + s * noise, 1000 * sigma, text, bias)
        return F.mse_loss(out.float(), noise - x), batch

    def fit(self) -> None:
        self.stage.fit(self.loss, warm=len({(id(c), f) for c, f, _ in self.rota}))


@dataclass(frozen=True)
class Recipe:
    """The figures of one flow stage."""

    name: str
    budget: float
    start: float
    end: float
    flat: float
    decay: float
    kind: str = "muon"


def stage_for(run: Run, recipe: Recipe, parent: str | None) -> Stage:
    """Make the transformer and its optimisers, from the parent stage's average unless this stage
    has begun.
    """
    torch.manual_seed(2)
    model = models.transformer()
    state = run.load(parent) if parent else None
    if state:
        model.load_state_dict(state["average"])
    model = lean(model.to(run.device), compiled=run.compiled)
    steppers = optimisers(model, recipe.kind, recipe.start, fused=run.device.type == "cuda")
    return Stage(
        run,
        recipe.name,
        model,
        steppers,
        Average(model, recipe.decay),
        recipe.budget,
        lambda f: rate(f, recipe.start, recipe.end, flat=recipe.flat),
    ).resume()
