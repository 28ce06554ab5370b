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
# one H200, Triton 3.6, performance.md: d 128 tile 128x64 502 TFLOP/s at density .1, d 64 tile
# 64x64 394
_TABLE = {
    (64, True, True): Config(64, 64, 4, 3),
    (128, True, True): Config(128, 64, 4, 3, 32),
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


def choose(
    head_dim: int, q_size: int, kv_size: int, itemsize: int, big_smem: bool, tf32: bool = True
) -> Config:
    """Return the configuration for padded head dim, block sizes, bytes per element and device
    class."""
    row = _TABLE[min(256, max(64, power_of_2(head_dim))), itemsize == 2, big_smem]
    block_n = row.block_n
    # a uniform block should be whole tiles, so that its inner loop needs no mask
    while block_n > 16 and kv_size % block_n and kv_size < 2 * block_n:
        block_n //= 2
    precision = row.precision if tf32 else "ieee"
    return Config(
        min(row.block_m, power_of_2(q_size)),
        max(16, block_n),
        row.num_warps,
        row.num_stages,
        row.block_c,
        precision,
    )
