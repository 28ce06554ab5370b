"""Choose the fastest attention kernel of the card by timing it, forward and backward."""

import time

import torch
import torch.nn.functional as F
from ranks import Run


def enable(cudnn: bool, flash: bool, rest: bool) -> None:
    torch.backends.cuda.enable_cudnn_sdp(cudnn)
    torch.backends.cuda.enable_flash_sdp(flash)
    torch.backends.cuda.enable_mem_efficient_sdp(rest)
    torch.backends.cuda.enable_math_sdp(True)


def choose(run: Run, shape: tuple[int, int, int, int]) -> None:
    """Leave only the faster of cuDNN and FlashAttention on, for q, k, v of this shape in bf16."""
    if run.device.type != "cuda":
        return
    times = {}
    for name in ("cudnn", "flash"):
        enable(name == "cudnn", name == "flash", False)
        try:
            q, k, v = (
                torch.randn(shape, device=run.device, dtype=torch.bfloat16, requires_grad=True)
                for _ in range(3)
            )
            for i in range(8):
                if i == 3:
                    run.sync()
                    begun = time.monotonic()
                F.scaled_dot_product_attention(q, k, v).sum().backward()
            run.sync()
            times[name] = (time.monotonic() - begun) / 5
        except RuntimeError as error:
            run.say(f"attention {name}: {error}")
    best = min(times, key=lambda name: times[name]) if times else ""
    cudnn = bool(run.agree(best == "cudnn")[0])
    run.say(
        "attention:",
        {k: f"{1000 * t:.2f} ms" for k, t in times.items()},
        "->",
        "cudnn" if cudnn else "flash",
    )
    enable(cudnn, not cudnn, not times)
