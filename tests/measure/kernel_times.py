"""The timings of check_kernels.py: attention at performance.md's shapes, tiles, one-pass tools."""

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from dit_sparse.kernels import block_sparse
from dit_sparse.kernels._tune import Config
from dit_sparse.kernels.attention import Columns, Cut
from dit_sparse.kernels.contract import as_cut
from dit_sparse.kernels.lists import pack_lists, top_blocks
from dit_sparse.kernels.permute import permute_tokens
from dit_sparse.kernels.pool import block_moments, pool_blocks

SHAPES = {"A": (12, 32768, 128), "B": (6, 118784, 128), "C": (48, 17664, 64)}
DENSITIES = (0.5, 0.25, 0.1, 0.05)
# what the table leaves open: (shape, block) -> tiles, timed plain and with columns and tail at .1
SWEEP = {
    ("A", 128): [
        Config(128, 64, 4, 2, 32),
        Config(128, 64, 4, 2, 64),
        Config(128, 32, 4, 3, 32),
    ],
    ("A", 64): [
        Config(64, 64, 4, 3, 32),
        Config(64, 64, 4, 2, 32),
        Config(64, 64, 4, 2, 64),
    ],
    ("C", 128): [
        Config(128, 64, 4, 3, 64),
        Config(128, 64, 4, 2, 64),
        Config(64, 64, 4, 2, 64),
    ],
    ("C", 64): [
        Config(64, 64, 4, 3, 64),
        Config(64, 64, 4, 2, 64),
        Config(64, 64, 4, 3, 32),
    ],
}


def random_lists(heads, rows, blocks, keep, device):
    """Return one random ascending list of the same length per (head, query block)."""
    kept = max(1, round(keep * blocks))
    index = (
        torch.rand(1, heads, rows, blocks, device=device)
        .topk(kept, -1)
        .indices.sort(-1)
        .values.int()
    )
    return torch.full((1, heads, rows), kept, device=device, dtype=torch.int32), index


def cluster_cut(tokens, clusters, heads, device):
    """Return clusters of random sizes around the mean, other ones per head, under a loose bound."""
    weight = torch.rand(1, heads, clusters, device=device, dtype=torch.float64) + 0.1
    ends = (weight.cumsum(-1) / weight.sum(-1, keepdim=True) * tokens).round().int()
    return Cut(tokens, F.pad(ends, (1, 0)))


def median_ms(call, tiny, rep=60):
    """Return the median time of call in ms (L2 flushed between launches)."""
    if tiny:
        call()
        return 1.0
    from triton.testing import do_bench

    return do_bench(call, warmup=15, rep=rep, return_mode="median")


def time_dense(shape, backend, tiny, device):
    """Return useful TFLOP/s of dense SDPA with one backend."""
    h, s, d = shape
    q, k, v = (torch.randn(1, h, s, d, device=device, dtype=torch.bfloat16) for _ in range(3))
    with sdpa_kernel([backend]):
        ms = median_ms(lambda: F.scaled_dot_product_attention(q, k, v), tiny, 40)
    return round(4 * h * s * s * d / ms / 1e9, 1)


def time_sparse(shape, size, keep, tiny, device, config=None, extras="", short=0):
    """Return useful TFLOP/s (kept blocks only) of the Triton kernel."""
    h, s, d = shape
    s -= short
    cut = size
    if extras == "unequal":
        # boxes of a grid that the tile does not divide: blocks of 3/4 size to nearly full size
        n = round(s / (0.875 * size))
        edges = torch.linspace(0, s, n + 1, device=device).round()
        edges[1:-1] += torch.randint(-size // 20, size // 20 + 1, (n - 1,), device=device)
        cut = Cut(size, edges.int()[None, None])
    q, k, v = (torch.randn(1, h, s, d, device=device, dtype=torch.bfloat16) for _ in range(3))
    n = as_cut(cut).count(s)
    lists = random_lists(h, n, n, keep, device)
    options = {}
    if extras in ("columns", "tail"):
        c = (torch.randn(1, h, n, d, device=device, dtype=torch.bfloat16) for _ in range(2))
        mask = torch.ones(1, h, n, n, device=device, dtype=torch.bool).scatter(
            -1, lists[1].long(), False
        )
        options["columns"] = Columns(*c, torch.full((1, h, n), 4.0, device=device), mask)
        if extras == "tail":
            options["tail"] = torch.randn(1, h, d, d, device=device, dtype=torch.bfloat16)
    run = block_sparse.block_sparse_attention
    ms = median_ms(
        lambda: run(q, k, v, *lists, q_blocks=cut, kv_blocks=cut, config=config, **options), tiny
    )
    kept = int(lists[0][0, 0, 0]) / n
    return round(4 * h * s * s * d * kept / ms / 1e9, 1)


def time_listed(shape, size, keep, shown, tiny, device, config=None):
    """Return useful TFLOP/s of exact blocks plus listed columns: three pooled levels, groups of
    16."""
    h, s, d = shape
    q, k, v = (torch.randn(1, h, s, d, device=device, dtype=torch.bfloat16) for _ in range(3))
    n, c = as_cut(size).count(s), s // 2 + s // 4 + s // 8
    lists, groups = random_lists(h, n, n, keep, device), random_lists(h, n, c // 16, shown, device)
    ck, cv = (torch.randn(1, h, c, d, device=device, dtype=torch.bfloat16) for _ in range(2))
    columns = Columns(ck, cv, torch.ones(1, h, c, device=device), None, *groups, 16)
    run = block_sparse.block_sparse_attention
    ms = median_ms(
        lambda: run(q, k, v, *lists, q_blocks=size, kv_blocks=size, columns=columns, config=config),
        tiny,
    )
    keys = int(lists[0][0, 0, 0]) * size + int(groups[0][0, 0, 0]) * 16
    return round(4 * h * s * keys * d / ms / 1e9, 1)


def time_choice(shape, blocks, listed, tiny, device, config=None):
    """Return useful TFLOP/s of tiles of 128 queries over the blocks any of them chose; each query
    chose half of its tile's."""
    h, s, d = shape
    q, k, v = (torch.randn(1, h, s, d, device=device, dtype=torch.bfloat16) for _ in range(3))
    lists = random_lists(h, -(-s // 128), blocks, listed / blocks, device)
    mask = torch.rand(1, h, s, blocks, device=device) < 0.5
    size = -(-s // blocks)
    run = block_sparse.block_sparse_attention
    ms = median_ms(
        lambda: run(q, k, v, *lists, q_blocks=128, kv_blocks=size, row_mask=mask, config=config),
        tiny,
    )
    return round(4 * h * s * int(lists[0][0, 0, 0]) * size * d / ms / 1e9, 1)


def time_clusters(shape, rows, blocks, keep, tiny, device, config=None):
    """Return useful TFLOP/s (kept pairs of tokens only) of clusters of random sizes."""
    h, s, d = shape
    q, k, v = (torch.randn(1, h, s, d, device=device, dtype=torch.bfloat16) for _ in range(3))
    q_cut, kv_cut = (cluster_cut(s, n, h, device) for n in (rows, blocks))
    lists = random_lists(h, rows, blocks, keep, device)
    run = block_sparse.block_sparse_attention
    ms = median_ms(
        lambda: run(q, k, v, *lists, q_blocks=q_cut, kv_blocks=kv_cut, config=config), tiny
    )
    q_size, kv_size = (x.offsets.diff(dim=-1).double() for x in (q_cut, kv_cut))
    keys = kv_size[..., None, :].expand(1, h, rows, blocks).gather(3, lists[1].long()).sum(-1)
    return round(4 * float((q_size * keys).sum()) * d / ms / 1e9, 1)


def time_passes(shape, tiny, device):
    """Return GB/s (bytes read and written once) and ms of the one-pass tools."""
    h, s, d = shape
    x, v = (torch.randn(1, h, s, d, device=device, dtype=torch.bfloat16) for _ in range(2))
    order = torch.randperm(s, device=device).view(1, 1, s).int()
    # the order of a video in 8 x 16 patches of a 32 x 64 frame, a real arrangement
    tiles = (
        torch.arange(s // 2048 * 2048, device=device)
        .view(-1, 4, 8, 4, 16)
        .transpose(2, 3)
        .reshape(-1)
    )
    tiles = torch.cat((tiles, torch.arange(len(tiles), s, device=device))).view(1, 1, s).int()
    chosen = torch.rand(1, h, s // 128, s // 128, device=device) < 0.1
    score = torch.randn(1, h, s // 64, s // 64, device=device)
    size = x.numel() * 2
    calls = {
        "pool 128": (size, lambda: pool_blocks(x, 128, impl="triton")),
        "pool 64": (size, lambda: pool_blocks(x, 64, impl="triton")),
        "permute tiles": (2 * size, lambda: permute_tokens(x, tiles, impl="triton")),
        "permute random": (2 * size, lambda: permute_tokens(x, order, impl="triton")),
        "permute + means": (2 * size, lambda: permute_tokens(x, tiles, blocks=128, impl="triton")),
        "restore": (2 * size, lambda: permute_tokens(x, tiles, inverse=True, impl="triton")),
        "moments 64": (2 * size, lambda: block_moments(x, v, 64, impl="triton")),
        "top blocks": (score.numel() * 5, lambda: top_blocks(score, s // 640 + 1, impl="triton")),
        "pack lists": (chosen.numel() * 5, lambda: pack_lists(chosen, impl="triton")),
    }
    times = {name: median_ms(call, tiny, 20) for name, (_, call) in calls.items()}
    return {
        n: t if isinstance(t, str) else (round(calls[n][0] / t / 1e6), round(t, 4))
        for n, t in times.items()
    }


def list_jobs(shapes, tiny, device):
    """Return (part, label, call): listed columns, blocks chosen by each query, clusters."""
    few = 8 if tiny else 1
    jobs = [
        (
            "lists",
            f"{s} listed 16, block {b}, exact {keep}",
            lambda s=s, b=b, k=keep: time_listed(shapes[s], b, k, 0.1, tiny, device),
        )
        for s, b, keep in (("A", 128, 0.05), ("A", 64, 0.05), ("C", 128, 0.05))
    ]
    jobs += [
        (
            "lists",
            f"{s} choice, 72 blocks, 8 a tile",
            lambda s=s: time_choice(shapes[s], 72 // few, 8, tiny, device),
        )
        for s in ("A", "C")
    ]
    # the tile table's answer first, then what it might have answered
    tiles = (None, Config(64, 64, 4, 3, 32), Config(128, 32, 4, 3, 32), Config(64, 32, 4, 4, 32))
    for s, rows, blocks in (("A", 100, 500), ("B", 300, 1000)):
        for c in tiles:
            tile = "" if c is None else f" tile {c.block_m}x{c.block_n} s{c.num_stages}"
            jobs.append(
                (
                    "lists",
                    f"{s} clusters {rows}/{blocks} keep 0.1{tile}",
                    lambda s=s, r=rows, n=blocks, c=c: time_clusters(
                        shapes[s], r // few, n // few, 0.1, tiny, device, c
                    ),
                )
            )
    return jobs


def timing_jobs(shapes, parts, tiny, device):
    """Return (part, label, call) of all timings; the main figures come first."""
    jobs = []
    if "time" in parts:
        backends = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
        for s in shapes:
            jobs += [
                (
                    "sparse",
                    f"{s} block {b} keep {p}",
                    lambda s=s, b=b, p=p: time_sparse(shapes[s], b, p, tiny, device),
                )
                for b in (128, 64)
                for p in DENSITIES
            ]
            jobs += [
                ("dense", f"{s} {n}", lambda s=s, b=b: time_dense(shapes[s], b, tiny, device))
                for n, b in backends.items()
            ]
        for s in ("A", "C"):
            kinds = (("columns", "columns"), ("columns+tail", "tail"), ("unequal", "unequal"))
            for label, kind in kinds:
                jobs += [
                    (
                        "sparse",
                        f"{s} block {b} keep 0.1 {label}",
                        lambda s=s, b=b, k=kind: time_sparse(
                            shapes[s], b, 0.1, tiny, device, extras=k
                        ),
                    )
                    for b in (128, 64)
                ]
            jobs.append(
                (
                    "sparse",
                    f"{s} block 128 keep 0.1 ragged",
                    lambda s=s: time_sparse(shapes[s], 128, 0.1, tiny, device, short=60),
                )
            )
    if "lists" in parts:
        jobs += list_jobs(shapes, tiny, device)
    if "passes" in parts:
        jobs += [("passes", s, lambda s=s: time_passes(shapes[s], tiny, device)) for s in ("A",)]
    if "sweep" in parts:
        for (s, block), configs in SWEEP.items():
            for c in configs:
                tile = f"{c.block_m}x{c.block_n} w{c.num_warps} s{c.num_stages} c{c.block_c}"
                jobs.append(
                    (
                        "sweep",
                        f"{s} block {block} tile {tile}",
                        lambda s=s, b=block, c=c: [
                            time_sparse(shapes[s], b, 0.1, tiny, device, c, extras=e)
                            for e in ("", "tail")
                        ],
                    )
                )
    return jobs
