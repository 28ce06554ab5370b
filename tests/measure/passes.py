"""Check and time the one-pass tools at real sizes: `python tests/measure/passes.py`.

Pooling, covariances, permutation, block choice and lists at 12 heads of 32,768 tokens, d 128, bf16:
first against their torch forms, then the bytes that each must read and write once over its time.
`--tiny` runs the same code at toy sizes (with TRITON_INTERPRET=1 also on a CPU).
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from dit_sparse.bench.machine import Timer, facts
from dit_sparse.kernels.lists import pack_lists, top_blocks
from dit_sparse.kernels.permute import Move, move_tokens, permute_tokens
from dit_sparse.kernels.pool import block_covariances, pool_blocks

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def draw(heads, tokens, dim):
    """Return a tensor [1, H, S, D] in memory order [1, S, H, D], as models have it."""
    return torch.randn(1, tokens, heads, dim, device=DEVICE).bfloat16().transpose(1, 2)


def check(heads, tokens, dim):
    """Raise unless the tools give what their torch forms give."""
    k, v = draw(heads, tokens, dim), draw(heads, tokens, dim)
    order = torch.randperm(tokens, device=DEVICE)[None, None]
    for size in (64, 128):
        found = []
        for dtype, impl in ((torch.float32, "triton"), (torch.float64, "torch")):
            means = (pool_blocks(x, size, dtype=dtype, impl=impl) for x in (k, v))
            pair = (x if impl == "triton" else x.double() for x in (k, v))
            found.append(block_covariances(*pair, *means, size, impl=impl))
        for a, b in zip(*found, strict=True):
            assert (a - b).norm() <= 1e-4 * b.norm()
    moved, mean = move_tokens(Move(k, order, 64, True, k.dtype), impl="triton")[0]
    assert torch.equal(moved, k[:, :, order[0, 0]])
    assert torch.equal(permute_tokens(moved, order, inverse=True, impl="triton"), k)
    torch.testing.assert_close(mean, pool_blocks(moved, 64, impl="torch"), rtol=1e-2, atol=1e-3)
    score = torch.randn(1, heads, 40, 1857, device=DEVICE)
    kept = top_blocks(score, 185, impl="triton")
    assert bool((kept.sum(-1) == 185).all())
    assert torch.equal(score.masked_fill(kept == 0, 9e9).amin(-1), score.topk(185).values[..., -1])
    lists = (pack_lists(kept == 1, 185, impl=impl) for impl in ("triton", "torch"))
    assert all(map(torch.equal, *lists))


def calls(heads, tokens, dim):
    """Return name -> (bytes, call)."""
    x, v = draw(heads, tokens, dim), draw(heads, tokens, dim)
    order = torch.randperm(tokens, device=DEVICE).view(1, 1, -1).int()
    # the order of a video in 8 x 16 patches of a 32 x 64 frame, a real arrangement
    patches = torch.arange(tokens // 2048 * 2048, device=DEVICE).view(-1, 4, 8, 4, 16)
    rest = torch.arange(patches.numel(), tokens, device=DEVICE)
    tiles = torch.cat((patches.transpose(2, 3).reshape(-1), rest)).view(1, 1, -1).int()
    score = torch.randn(1, heads, tokens // 64, tokens // 64, device=DEVICE)
    chosen, kept = score[:, :, ::2, ::2] > 1.3, tokens // 640 + 1
    size, triton = x.numel() * 2, {"impl": "triton"}
    both = Move(x, tiles, 128, True, x.dtype)
    means = [pool_blocks(t, 64, dtype=torch.float32, **triton) for t in (x, v)]
    return {
        "pool 128": (size, lambda: pool_blocks(x, 128, **triton)),
        "pool 64": (size, lambda: pool_blocks(x, 64, **triton)),
        "permute tiles": (2 * size, lambda: permute_tokens(x, tiles, **triton)),
        "permute random": (2 * size, lambda: permute_tokens(x, order, **triton)),
        "move + means": (2 * size, lambda: move_tokens(both, **triton)),
        "restore": (2 * size, lambda: permute_tokens(x, tiles, inverse=True, **triton)),
        "covariances 64": (2 * size, lambda: block_covariances(x, v, *means, 64, **triton)),
        "top blocks": (score.numel() * 5, lambda: top_blocks(score, kept, **triton)),
        "pack lists": (chosen.numel() * 5, lambda: pack_lists(chosen, **triton)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="toy sizes")
    tiny = parser.parse_args().tiny
    torch.manual_seed(0)
    check(*((2, 500, 64) if tiny else (12, 32760, 128)))
    timer = Timer(DEVICE, quick=tiny, replay=True)
    told = facts(DEVICE)
    print(f"{told['device']}, torch {told['torch']}, triton {told['triton']}: all right")
    for name, (size, call) in calls(*((2, 2048, 64) if tiny else (12, 32768, 128))).items():
        ms = timer.ms(call)
        print(f"{name:15} {ms:8.4f} ms {size / ms / 1e6:6.0f} GB/s", flush=True)


if __name__ == "__main__":
    main()
