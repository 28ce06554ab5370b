"""Muon for hidden matrices, moving averages, and rates that follow the share of a stage's time."""

import math

import torch
from torch import Tensor, nn


def orthogonalise(update: Tensor) -> Tensor:
    """Bring the singular values of [N, rows, cols] near 1 by five Newton-Schulz steps (Jordan et
    al., 2024).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = update.shape[1] > update.shape[2]
    x = (update.mT if tall else update).to(torch.bfloat16 if update.is_cuda else torch.float32)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(update.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum steps with equal singular values, for matrices; scaled to the size of an AdamW step.

    Same-shape matrices go through one batched product.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        lr: float = 1e-3,
        momentum: float = 0.95,
        decay: float = 0.01,
    ):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(p.shape, []).append(p)
            for shape, parameters in shapes.items():
                gradients = [p.grad for p in parameters]
                for p in parameters:
                    if "momentum" not in self.state[p]:
                        self.state[p]["momentum"] = torch.zeros_like(p)
                buffers = [self.state[p]["momentum"] for p in parameters]
                torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
                ahead = torch._foreach_lerp(gradients, buffers, group["momentum"])  # Nesterov
                steps = orthogonalise(torch.stack(ahead)).unbind()
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(
                    parameters, steps, alpha=-group["lr"] * 0.2 * math.sqrt(max(shape))
                )


def optimisers(
    model: nn.Module, kind: str, lr: float, *, fused: bool
) -> list[torch.optim.Optimizer]:
    """Give the blocks' matrices to Muon and everything else to AdamW, or everything to AdamW."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    hidden = [
        p for name, p in named if kind == "muon" and name.startswith("blocks.") and p.ndim == 2
    ]
    chosen = {id(p) for p in hidden}
    rest = [p for _, p in named if id(p) not in chosen]
    adam = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.01, fused=fused)
    return [adam, Muon(hidden, lr=lr)] if hidden else [adam]


def rate(
    fraction: float, start: float, end: float, *, warm: float = 0.03, flat: float = 0.5
) -> float:
    """Return the learning rate: a short warm-up, a flat part, then a straight line to the end
    value.
    """
    if fraction < warm:
        return start * max(fraction / warm, 0.02)
    return start + (end - start) * max(0.0, (min(fraction, 1.0) - flat) / (1 - flat))


class Average:
    """Keep a moving average of a model's parameters in fp32."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.steps = decay, 0
        self.source = list(model.parameters())
        self.names = [name for name, _ in model.named_parameters()]
        self.values = [p.detach().clone() for p in self.source]

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.values, [p.detach() for p in self.source], 1 - decay)

    @torch.no_grad()
    def apply(self) -> None:
        """Put the averages into the model."""
        torch._foreach_copy_([p.detach() for p in self.source], self.values)

    def state(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.values, strict=True))

    def load(self, state: dict[str, Tensor], steps: int) -> None:
        self.steps = steps
        for value, name in zip(self.values, self.names, strict=True):
            value.copy_(state[name])
