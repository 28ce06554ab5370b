"""What causal attention over chosen keys is, token by token, in float64."""

import torch

from dit_sparse.testing import Problem


def visible(queries, keys):
    """Return which key each query may see, bool [Sq, Skv]; the last query stands at the last."""
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)


def attend(x, mask):
    """Return softmax attention over the pairs of a mask [B, H, Sq, Skv]."""
    q, (k, v) = x.q, (t.repeat_interleave(x.q.shape[1] // x.k.shape[1], 1) for t in x[1:])
    logits = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~mask, float("-inf"))
    return logits.softmax(-1) @ v


def weights(x):
    """Return the dense causal attention map [B, H, Sq, Skv]."""
    k = x.k.repeat_interleave(x.q.shape[1] // x.k.shape[1], 1)
    logits = x.q @ k.mT * x.q.shape[-1] ** -0.5
    return logits.masked_fill(~visible(*logits.shape[-2:]), float("-inf")).softmax(-1)


def tokens(plan, mask=None):
    """Return the pairs that a plan keeps in the arranged order, bool [B, H, Sq, Skv]."""
    level = (plan.level == 1) if mask is None else mask
    rows, cols = (blocks.sizes()[0, 0].long() for blocks in plan.layout)
    pairs = level.repeat_interleave(rows, 2).repeat_interleave(cols, 3)
    return pairs & visible(*pairs.shape[-2:])


def problem(queries=200, keys=None, batch=1, heads=2, dim=8, seed=0):
    """Return random tensors of causal attention."""
    return Problem.make((queries, keys or queries), batch, heads, dim, seed)
