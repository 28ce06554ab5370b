"""The one-pass tools at real sizes; a part of check_kernels.py."""

import torch

from dit_sparse.kernels.lists import pack_lists, top_blocks
from dit_sparse.kernels.permute import permute_tokens
from dit_sparse.kernels.pool import block_moments, pool_blocks


def check_passes(tiny, device):
    """Return the worst relative error as a share of 1e-4; infinity if a copy or a list differs."""
    h, s, d = (2, 500, 64) if tiny else (12, 32760, 128)
    k, v = (torch.randn(1, s, h, d, device=device).bfloat16().transpose(1, 2) for _ in range(2))
    order = torch.randperm(s, device=device)[None, None]
    worst = 0.0
    for size in (64, 128):
        got = block_moments(k, v, size, impl="triton")
        want = block_moments(k.double(), v.double(), size, impl="torch")
        for a, b in zip(got, want, strict=True):
            worst = max(worst, float((a - b).norm() / b.norm()) / 1e-4)
    moved, mean = permute_tokens(k, order, blocks=64, impl="triton")
    same = torch.equal(moved, k[:, :, order[0, 0]])
    same &= torch.equal(permute_tokens(moved, order, inverse=True, impl="triton"), k)
    torch.testing.assert_close(mean, pool_blocks(moved, 64, impl="torch"), rtol=1e-2, atol=1e-3)
    score = torch.randn(1, h, 40, 1857, device=device)
    kept = top_blocks(score, 185, impl="triton")
    best = score.topk(185).values
    same &= bool((kept.sum(-1) == 185).all())
    same &= torch.equal(score.masked_fill(kept == 0, 9e9).amin(-1), best[..., -1])
    a, b = (pack_lists(kept == 1, 185, impl=i) for i in ("triton", "torch"))
    same &= torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    return round(worst, 3) if same else float("inf")
