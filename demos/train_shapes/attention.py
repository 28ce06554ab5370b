"""Choose the fastest attention kernel of the card that is right at every shape of a stage."""

import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from ranks import Run
from torch import Tensor


def enable(cudnn: bool, flash: bool, rest: bool) -> None:
    torch.backends.cuda.enable_cudnn_sdp(cudnn)
    torch.backends.cuda.enable_flash_sdp(flash)
    torch.backends.cuda.enable_mem_efficient_sdp(rest)
    torch.backends.cuda.enable_math_sdp(True)


def gradients(joined: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of joined q, k, v [B, S, 3, H, D], laid out as the blocks do it."""
    q, k, v = joined.transpose(1, 3).unbind(2)
    out = F.scaled_dot_product_attention(q.transpose(1, 2).contiguous().transpose(1, 2), k, v)
    return torch.autograd.grad((out.transpose(1, 2) * weight).sum(), joined)[0]


def choose(run: Run, shapes: Sequence[tuple[int, int, int, int]]) -> None:
    """Leave only the faster of cuDNN and FlashAttention on, for q, k, v [B, H, S, D] in bf16.

    cuDNN must agree with FlashAttention at every shape, also where free memory is full of NaN:
    lengths that its tiles do not divide are where kernels read past their end.
    """
    if run.device.type != "cuda":
        return
    times = {"cudnn": 0.0, "flash": 0.0}
    worst = 0.0
    for batch, heads, tokens, dim in shapes:
        size, kind = (batch, tokens, 3, heads, dim), {"device": run.device, "dtype": torch.bfloat16}
        joined, weight = torch.randn(size, **kind), torch.randn(batch, tokens, heads, dim, **kind)
        joined.requires_grad_()
        results = {}
        for name in times:
            enable(name == "cudnn", name == "flash", False)
            poison = torch.full((1 << 29,), float("nan"), **kind)
            del poison
            try:
                results[name] = gradients(joined, weight)
                run.sync()
                begun = time.monotonic()
                for _ in range(3):
                    gradients(joined, weight)
                run.sync()
                times[name] += (time.monotonic() - begun) / 3
            except RuntimeError as error:
                run.say(f"attention {name}: {str(error).splitlines()[0]}")
                times[name] = float("inf")
        if len(results) == 2:
            gap = (results["cudnn"] - results["flash"]).float().norm() / results[
                "flash"
            ].float().norm()
            worst = max(worst, gap.nan_to_num(float("inf")).item())
        del joined, weight, results
    sound = worst < 0.02
    cudnn = bool(run.agree(sound and times["cudnn"] < times["flash"])[0])
    run.say(
        f"attention over {len(shapes)} shapes: cudnn {1000 * times['cudnn']:.2f} ms, flash "
        f"{1000 * times['flash']:.2f} ms, gradients apart by {worst:.1e} ->",
        "cudnn" if cudnn else "flash",
    )
    enable(cudnn, not cudnn, False)
