"""What a generation looks like while it runs: a few small frames of each denoising step."""

from __future__ import annotations

import inspect
from typing import Any

FRAMES = 3  # of a video: its begin, its middle and its end
SIDE = 40  # latents; larger pictures are made smaller before they are decoded


class Preview:
    """Keeps the newest latents of a pipeline call and decodes a few of their frames when asked.

    preview = Preview(pipe)
    pipe(**arguments, **preview.arguments)  # elsewhere, after a step: preview.picture()
    """

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.noise: float | None = None  # how much of the latents is noise, where that is known
        self.latents: Any = None  # [B, C, F, h, w]
        self.clean: Any = None  # the estimate of them without noise

    @property
    def arguments(self) -> dict[str, Any]:
        """What to add to the arguments of the pipeline call; nothing when it has no such place."""
        known = inspect.signature(self.pipe.__call__).parameters
        return {"callback_on_step_end": self.keep} if "callback_on_step_end" in known else {}

    def keep(self, pipe: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """Keep the latents of a step, and their estimate without noise: no copy to the CPU."""
        latents, before, level = tensors.get("latents"), self.latents, self.noise
        sigmas: Any = getattr(pipe.scheduler, "sigmas", None)
        self.noise = None
        if sigmas is not None and len(sigmas) > step + 1 and float(sigmas.max()) <= 1:
            self.noise = float(sigmas[step + 1])
        self.latents = self.clean = latents
        if before is not None and level is not None and self.noise is not None and step:
            # the way from noise to video is nearly straight: go on along it to its end
            change = (latents - before) / (self.noise - level)
            self.clean = latents - self.noise * change
        return {}

    def picture(self) -> Any:
        """Return frames beside each other, uint8 [h, n * w, 3]; None where they cannot be made.

        Each latent frame is decoded by itself, as the first of a video.
        """
        import numpy as np
        import torch
        from torch.nn.functional import interpolate

        vae, latents = getattr(self.pipe, "vae", None), self.clean
        # packed latents, and latents of more than one scale, have no picture of their own
        if vae is None or latents is None or latents.ndim != 5:
            return None
        mean, std = (getattr(vae.config, f"latents_{name}", None) for name in ("mean", "std"))
        if mean is None or std is None or len(mean) != latents.shape[1]:
            return None
        frames = latents.shape[2]
        some = sorted({round(i * (frames - 1) / (FRAMES - 1)) for i in range(FRAMES)})
        # [n, C, 1, h, w]
        chosen = torch.cat([latents[:1, :, i : i + 1] for i in some]).to(vae.device, torch.float32)
        share = SIDE / max(chosen.shape[-2:])
        if share < 1:
            size = [max(1, round(n * share)) for n in chosen.shape[-2:]]
            chosen = interpolate(chosen[:, :, 0], size=size, mode="area")[:, :, None]
        mean, std = (
            torch.tensor(x, device=chosen.device).view(1, -1, 1, 1, 1) for x in (mean, std)
        )
        with torch.no_grad():
            decoded = vae.decode((chosen * std + mean).to(vae.dtype), return_dict=False)[0]
        shown = (decoded[:, :, 0].float() / 2 + 0.5).clamp(0, 1).mul(255).round().byte()
        return np.concatenate(list(shown.permute(0, 2, 3, 1).cpu().numpy()), 1)
