"""The Wan VAE on a whole clip at once: the same numbers as its chunked path, with gradients, and
compilable.

The first frame bypasses the temporal convolutions; the rest goes through them together.
"""

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample, patchify, unpatchify
from torch import Tensor


class Resample(WanResample):
    """Resample all frames of a clip; x: [B, C, T, H, W]."""

    def forward(self, x: Tensor, feat_cache: None = None, feat_idx: None = None) -> Tensor:
        b, c, t, h, w = x.shape
        if self.mode == "upsample3d" and t > 1:
            rest = self.time_conv(x[:, :, 1:]).view(b, 2, c, t - 1, h, w)
            rest = torch.stack((rest[:, 0], rest[:, 1]), 3).reshape(b, c, 2 * (t - 1), h, w)
            x = torch.cat([x[:, :, :1], rest], 2)
        t = x.shape[2]
        x = self.resample(x.transpose(1, 2).reshape(b * t, c, h, w))
        x = x.view(b, t, *x.shape[1:]).transpose(1, 2)
        if self.mode == "downsample3d" and t > 1:
            x = torch.cat([x[:, :, :1], self.time_conv(x)], 2)
        return x


def whole(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """Switch a VAE's resamplers to whole clips; its weights and their names stay."""
    for module in vae.modules():
        if type(module) is WanResample:
            module.__class__ = Resample
    return vae


def channels_last(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """Lay the weights out for the card's convolutions, per weight since the VAE holds 4-D and 5-D
    ones.
    """
    for p in vae.parameters():
        if p.ndim == 5:
            p.data = p.data.contiguous(memory_format=torch.channels_last_3d)
        elif p.ndim == 4:
            p.data = p.data.contiguous(memory_format=torch.channels_last)
    return vae


def moments(vae: AutoencoderKLWan, clip: Tensor) -> Tensor:
    """Encode clip [B, F, 3, H, W] in 0..1 -> mean and log variance [B, 2 * z, T, h, w]."""
    x = patchify(2 * clip.transpose(1, 2) - 1, vae.config.patch_size)
    return vae.quant_conv(vae.encoder(x))


def decode(vae: AutoencoderKLWan, z: Tensor) -> Tensor:
    """Decode z [B, z, T, h, w] -> clip [B, F, 3, H, W] around 0..1, not clamped."""
    x = vae.decoder(vae.post_quant_conv(z), first_chunk=True)
    return (unpatchify(x, vae.config.patch_size).transpose(1, 2) + 1) / 2


def loss(vae: AutoencoderKLWan, clip: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return the training loss and its L1 part; noise has the shape of the latents.

    L1 + 2 MSE + .5 spatial-gradient L1 + .25 temporal-gradient L1 + 1e-4 KL
    """
    mean, spread = moments(vae, clip).float().chunk(2, 1)
    spread = spread.clamp(-30, 20)
    out = decode(vae, mean + (0.5 * spread).exp() * noise).float()
    gap = out - clip
    absolute = gap.abs().mean()
    spatial = gap.diff(dim=-1).abs().mean() + gap.diff(dim=-2).abs().mean()
    temporal = gap.diff(dim=1).abs().mean() if clip.shape[1] > 1 else 0.0
    kl = 0.5 * (mean.square() + spread.exp() - 1 - spread).mean()
    return absolute + 2 * F.mse_loss(
        out, clip
    ) + 0.5 * spatial + 0.25 * temporal + 1e-4 * kl, absolute.detach()
