"""Time impl "torch" against dense attention on a CPU: `python tests/measure/cpu_times.py`.

Float32, head dim 64, keep .25, 2 threads; the minimum of runs taken by turns. About a minute.
"""

import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dit_sparse.kernels.attention import block_sparse_attention
from dit_sparse.kernels.lists import pack_lists


def cpu_times(tiny):
    """Print milliseconds of both, and how many times faster impl "torch" is."""
    torch.set_num_threads(2)
    for heads in (4, 12):
        for tokens in (256,) if tiny else (2304, 3072, 4080):
            for block in (64, 128):
                q, k, v = (torch.randn(1, heads, tokens, 64) for _ in range(3))
                n = -(-tokens // block)
                chosen = torch.rand(1, heads, n, n).argsort(-1) < round(0.25 * n)
                lists = pack_lists(chosen)
                cuts = {"q_blocks": block, "kv_blocks": block, "impl": "torch"}
                calls = (
                    lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v),
                    lambda q=q, k=k, v=v, a=lists, c=cuts: block_sparse_attention(q, k, v, *a, **c),
                )
                # by turns, so that what else the machine does hits both; the minimum of each
                times = [[], []]
                for _ in range(2 if tiny else 15):
                    for call, taken in zip(calls, times, strict=True):
                        begin = time.perf_counter()
                        call()
                        taken.append((time.perf_counter() - begin) * 1e3)
                dense, sparse = (min(x) for x in times)
                label = f"H {heads:2} N {tokens} block {block:3}"
                print(
                    f"{label}: dense {dense:.1f} ms, torch {sparse:.1f} ms, {dense / sparse:.2f}x"
                )


if __name__ == "__main__":
    with torch.no_grad():
        cpu_times("--tiny" in sys.argv)
