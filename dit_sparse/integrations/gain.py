"""What sparse attention can gain: the share of self-attention in the arithmetic of a step."""

from __future__ import annotations

from torch import nn


def weights(root: nn.Module) -> int:
    """Return the number of weights in the matrices of a transformer."""
    return sum(p.numel() for p in root.parameters() if p.ndim > 1)


def attention_share(weights: int, layers: int, width: int, tokens: int) -> float:
    """Return the share of self-attention in the products of a transformer call, at least.

    width: heads times head dimension. Each token takes part in 2 layers width tokens products of
    attention, and in as many others as there are weights; those that meet the text or the time
    alone are counted too, so that the true share is rather larger.
    """
    attention = 2 * layers * width * tokens
    return attention / max(1, attention + weights)


def told(share: float) -> str:
    """Say what a share means."""
    return (
        f"attention is about {share:.0%} of the arithmetic of a step: "
        f"at best {1 / max(1e-3, 1 - share):.1f}x faster without any"
    )
