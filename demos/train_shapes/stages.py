"""The two stages before the transformer: the text encoder learns who has which colour, the VAE
learns the pixels.
"""

import captions
import models
import sequence
import torch
import torch.nn.functional as F
from engine import Stage, gate
from optim import Average, rate
from ranks import Run
from torch import Tensor, nn

from dit_sparse.world import COLOURS, Scene, render, sample_ids


class Tagger(nn.Module):
    """Predict at every word its role and all six attributes of the caption, from one linear
    layer.
    """

    def __init__(self):
        super().__init__()
        self.encoder = models.text_encoder()
        self.counts = [len(captions.ROLES), *(n + 1 for n in captions.attributes())]
        self.head = nn.Linear(models.TEXT["d_model"], sum(self.counts))

    def forward(self, ids: Tensor) -> list[Tensor]:
        """ids: [B, L] -> logits [B, L, n] of the role and of each attribute, whose last class
        means "not said".
        """
        return list(self.head(models.embed(self.encoder, ids)).split(self.counts, -1))

    def targets(self, ids: Tensor, role: Tensor, spoken: Tensor) -> list[Tensor]:
        absent = torch.tensor(captions.attributes(), device=ids.device)
        said = torch.where(spoken, ids, absent)
        return [
            role,
            *(said[:, i, None].expand_as(role).masked_fill(role < 0, -1) for i in range(6)),
        ]


def text(run: Run, budget: float, batch: int) -> None:
    """Pre-train the text encoder on captions alone; it stays frozen afterwards."""
    torch.manual_seed(0)
    tagger = Tagger().to(run.device)
    optimiser = torch.optim.AdamW(
        tagger.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01
    )
    stage = Stage(
        run,
        "text",
        tagger,
        [optimiser],
        Average(tagger, 0.98),
        budget,
        lambda f: rate(f, 1.5e-3, 1e-5, flat=0.3),
    )
    stage.resume()
    generator = run.generator(100 + stage.step)

    def loss(step: int) -> tuple[Tensor, int]:
        ids = sample_ids(batch, generator)
        words, role, spoken = captions.tokens(ids, generator)
        logits = tagger(words)
        parts = [
            F.cross_entropy(line.flatten(0, 1), goal.flatten(), ignore_index=-1)
            for line, goal in zip(logits, tagger.targets(ids, role, spoken), strict=True)
        ]
        return torch.stack(parts).sum(), batch

    stage.fit(loss)
    stage.average.apply()
    figures = check_text(tagger, run)
    run.save("text_encoder", tagger.encoder.state_dict())
    passed = figures["cosine"] < 0.5 and figures["role"] > 0.97 and figures["attributes"] > 0.97
    gate(run, "text", passed, **figures)


@torch.no_grad()
def check_text(tagger: Tagger, run: Run) -> dict[str, float]:
    """Measure on held-out captions; cosine: one colour as the object's against as the
    background's.
    """
    generator = torch.Generator(run.device).manual_seed(1)
    ids = sample_ids(1000, generator, unseen=True)
    words, role, spoken = captions.tokens(ids, generator, noise=False)
    logits, goals = tagger(words), tagger.targets(ids, role, spoken)
    seen = role >= 0
    right = [
        (line.argmax(-1) == goal)[seen].float().mean().item()
        for line, goal in zip(logits, goals, strict=True)
    ]
    cosines = []
    names = list(COLOURS)
    for one, other in zip(names, names[1:] + names[:1], strict=True):
        pair = [
            Scene("", a, "square", "moves right", "plain", b).ids()
            for a, b in ((one, other), (other, one))
        ]
        words, role, _ = captions.tokens(
            torch.tensor(pair, device=run.device), generator, noise=False
        )
        rows = models.embed(tagger.encoder, words)
        cosines.append(F.cosine_similarity(rows[0][role[0] == 2], rows[1][role[1] == 6]).item())
    return {
        "cosine": round(sum(cosines) / len(cosines), 4),
        "cosine_max": round(max(cosines), 4),
        "role": round(right[0], 4),
        "attributes": round(min(right[1:]), 4),
    }


def vae(run: Run, budget: float, batch: int, size: int, frames: int) -> None:
    """Train the VAE on fresh renders, then measure its latents' mean and deviation."""
    torch.manual_seed(1)
    model = sequence.channels_last(sequence.whole(models.vae()).to(run.device))
    parameters = list(model.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=1.5e-3, betas=(0.9, 0.98), weight_decay=1e-4)
    # flat for 30 %, then down to nearly nothing
    schedule = lambda f: rate(f, 1.5e-3, 1e-5, flat=0.3)  # noqa: E731
    stage = Stage(run, "vae", model, [optimiser], Average(model, 0.998), budget, schedule).resume()
    sequence.channels_last(model)
    generator = run.generator(200 + stage.step)
    compute = torch.compile(sequence.loss, dynamic=False) if run.compiled else sequence.loss
    # drawing scenes waits for the device: draw them once
    pool = sample_ids(100 * batch if run.device.type == "cpu" else 100_000, generator)
    grid = size // models.VAE["scale_factor_spatial"]
    latents = (batch, models.VAE["z_dim"], (frames - 1) // 4 + 1, grid, grid)

    def loss(step: int) -> tuple[Tensor, int]:
        pick = (torch.rand(batch, generator=generator, device=run.device) * len(pool)).long()
        clip = render(pool[pick], frames, size, size, generator=generator)
        noise = torch.randn(latents, generator=generator, device=run.device)
        with run.autocast():
            return compute(model, clip, noise)[0], batch

    stage.fit(loss)
    stage.average.apply()
    figures, mean, std = check_vae(model, run, size)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    run.save("vae_done", {"model": state, "mean": torch.tensor(mean), "std": torch.tensor(std)})
    gate(run, "vae", figures["psnr"] > 29, **figures)


@torch.no_grad()
def check_vae(
    model: nn.Module, run: Run, size: int
) -> tuple[dict[str, float], list[float], list[float]]:
    """Return the PSNR over full-length clips of held-out scenes, and the latents' mean and std per
    channel.
    """
    generator = torch.Generator(run.device).manual_seed(2)
    values, latents = [], []
    clips = 128 if run.device.type == "cuda" else 4
    for _ in range(0, clips, 4):
        clip = render(sample_ids(4, generator, unseen=True), 33, size, size, generator=generator)
        with run.autocast():
            z = sequence.moments(model, clip).chunk(2, 1)[0]
            out = sequence.decode(model, z).float().clamp(0, 1)
        values.append(models.psnr(out, clip))
        latents.append(z.float())
    z, values = torch.cat(latents), torch.cat(values)
    mean, std = z.mean((0, 2, 3, 4)), z.std((0, 2, 3, 4))
    first = ((z[:, :, :1] - mean.view(1, -1, 1, 1, 1)) / std.view(1, -1, 1, 1, 1)).std().item()
    figures = {
        "psnr": round(values.mean().item(), 2),
        "psnr_p10": round(values.quantile(0.1).item(), 2),
        "clips": clips,
        "first_frame_std": round(first, 3),
    }
    return figures, mean.tolist(), std.tolist()
