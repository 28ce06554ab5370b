"""Tile table of the Triton attention kernel: chosen by head dim, block sizes, dtype and device,
never by length.

Each row says where it was measured. `choose` prunes nothing at run time: it is a table look-up, so
a first call compiles exactly one kernel.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """One launch configuration; block_c is the tile of extra columns, precision that of float32
    products."""

    block_m: int
    block_n: int
    num_warps: int = 4
    num_stages: int = 3
    block_c: int = 64
    precision: str = "tf32"


# (padded head dim, 2-byte dtype, shared memory of Hopper class) -> largest tile
# measured on one H200, Triton 3.6, density .1. Head dim 128 (12 heads, 32,768 tokens): 128x64 with
# 2 stages 530 TFLOP/s, with 3 stages 439 (one program per multiprocessor instead of two), 64x64
# with 3 stages 473-492; column tiles of 32, for 64 more shared memory halves the programs again.
# Head dim 64 (48 heads, 17,664 tokens): blocks of 128 in 128x64 390, in 64x64 380, blocks of 64 404
_TABLE = {
    (64, True, True): Config(128, 64, 4, 3),
    (128, True, True): Config(128, 64, 4, 2, 32),
    (256, True, True): Config(64, 64, 4, 2),
    # not measured yet: smaller devices, float32
    (64, True, False): Config(64, 64, 4, 2),
    (128, True, False): Config(64, 64, 4, 2),
    (256, True, False): Config(64, 32, 4, 2, 32),
    (64, False, True): Config(64, 32, 4, 2, 32, "tf32x3"),
    (128, False, True): Config(64, 32, 8, 2, 32, "tf32x3"),
    (256, False, True): Config(32, 32, 8, 1, 32, "tf32x3"),
    (64, False, False): Config(64, 32, 4, 2, 32, "tf32x3"),
    (128, False, False): Config(32, 32, 4, 1, 32, "tf32x3"),
    (256, False, False): Config(16, 16, 4, 1, 16, "tf32x3"),
}


def power_of_2(n: int) -> int:
    """Return the least power of two that is at least n and 16."""
    return max(16, 1 << (n - 1).bit_length())


def _power_below(n: int) -> int:
    """Return the largest power of two up to n, at least 16."""
    return max(16, 1 << (n.bit_length() - 1))


def query_size(size: int, mean: int) -> int:
    """Return the size of query blocks to choose a tile for; `size` may be a loose bound.

    A cluster of n tokens pads half a tile on average, so that the tile is at most half the mean;
    but 64 queries, one step of the tensor cores, cost no more than 32.
    """
    return size if size <= 2 * mean else max(_power_below(mean // 2), min(64, power_of_2(mean)))


def key_size(size: int, mean: int) -> int:
    """Return the size of key blocks to choose a tile for: at most the mean of loose ones."""
    return size if size <= 2 * mean else _power_below(mean)


def choose(
    head_dim: int,
    q_size: int,
    kv_size: int,
    itemsize: int,
    big_smem: bool,
    tf32: bool = True,
    uniform: bool = True,
) -> Config:
    """Return the configuration for padded head dim, block sizes, bytes per element and device
    class."""
    row = _TABLE[min(256, max(64, power_of_2(head_dim))), itemsize == 2, big_smem]
    block_n = min(row.block_n, power_of_2(kv_size))
    # a uniform block of whole tiles needs no mask in the inner loop, down to tiles of 32
    if uniform and block_n >= 64 and kv_size % block_n and kv_size % (block_n // 2) == 0:
        block_n //= 2
    block_m = min(row.block_m, power_of_2(q_size))
    # a query tile of 64 leaves room for a third stage, and for columns by 64, to the last byte (d
    # 128: two programs per multiprocessor)
    third = big_smem and itemsize == 2 and head_dim <= 128 and block_m <= 64
    return Config(
        block_m,
        block_n,
        row.num_warps,
        3 if third else row.num_stages,
        64 if third else row.block_c,
        row.precision if tf32 else "ieee",
    )
