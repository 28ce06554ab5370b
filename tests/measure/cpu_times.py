"""Time sparse against dense attention on a CPU: one call, or whole generations.

    python tests/measure/cpu_times.py               # one call: impl "torch" on random lists
    python tests/measure/cpu_times.py --generate    # the built-in model, several methods

Float32, keep .25, 2 threads. Dense and sparse run by turns, so that what else the machine does hits
both. One call: head dim 64, the minimum of each; about a minute. --generate: 12 steps at guidance
2, the first quarter dense; medians of the steps of whole denoisings, from which the denoising is
added up, and PSNR against dense. Steps beside which other processes took more than `BESIDE` of the
cores do not count. `--rounds 2` and `--sizes 33x160x160,49x128x128` (frames x height x width) are
the defaults; about 12 minutes. --tiny: seconds, to see that it runs.
"""

import argparse
import math
import os
import sys
import time
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dit_sparse.kernels.attention import block_sparse_attention
from dit_sparse.kernels.lists import pack_lists

THREADS = 2
BESIDE = 0.05
LATER = {"keep": 0.25, "dense_steps": 0.25}
METHODS = {
    "pisa": {},
    "pisa, tile 4x4x8": {"tile": (4, 4, 8)},
    "draft": {},
    "sparse_vdit, block 128": {**LATER, "block": 128},
    "svg, block 128": {**LATER, "block": 128, "dense_layers": 0},
    "rectified, keep alone": {**LATER, "p_remain": 0.0, "neighbours": "none"},
}


def cpu_times(tiny):
    """Print milliseconds of both, and how many times faster impl "torch" is."""
    for heads in (4, 12):
        for tokens in (256,) if tiny else (2304, 3072, 3600, 4080):
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


def generations(sizes, rounds, steps):
    """Print, for every size, what a denoising takes dense and with each method."""
    import dit_sparse
    from dit_sparse.commands.sampling import sample
    from dit_sparse.metrics import psnr
    from dit_sparse.world import held_out_prompts

    pipe, prompt, first = built_in(), held_out_prompts(1)[0], -(-steps // 4)
    for size in sizes:
        frames, height, width = map(int, size.split("x"))
        given = {
            "prompt": prompt, "num_frames": frames, "height": height, "width": width,
            "num_inference_steps": steps, "guidance_scale": 2.0, "max_sequence_length": 64,
        }  # fmt: skip

        def run(name, form, watch=None, given=given):
            dit_sparse.disable(pipe)
            if name != "dense":
                dit_sparse.enable(pipe, name.split(",")[0], **METHODS[name])
            return sample(pipe, {**given, "output_type": form}, 0, watch)

        names = ("dense", *METHODS)
        pictures = {name: run(name, "np") for name in names}
        taken = {name: [] for name in names}
        for _ in range(rounds):
            for name in names:
                watch = Alone()
                made = run(name, "latent", watch)
                steps_of = zip(made.steps[first:], watch.shares[first:], strict=True)
                taken[name] += [t for t, share in steps_of if share <= BESIDE]
        tokens = ((frames - 1) // 4 + 1) * (height // 8) * (width // 8)
        print(f"{size}, {tokens} tokens, {steps} steps, {first} dense first")
        step = {name: median(found) if found else math.nan for name, found in taken.items()}
        for name in names:
            total = first * step["dense"] + (steps - first) * step[name]
            noise = psnr(pictures[name].frames, pictures["dense"].frames)
            print(
                f"  {name:24} step {step[name] * 1e3:5.0f} ms {step['dense'] / step[name]:5.2f}x"
                f" ({len(taken[name])} steps)   denoising {total:6.2f} s"
                f" {steps * step['dense'] / total:5.2f}x"
                f"   density {pictures[name].density:.3f}   PSNR {noise:5.2f} dB"
            )


class Alone:
    """Stands in for the progress bar: notes for each step which share of the cores others took."""

    def __init__(self):
        self.shares, self.last = [], (time.perf_counter(), elsewhere())

    def show(self, step, steps, note):
        now = time.perf_counter(), elsewhere()
        wall, others = (b - a for a, b in zip(self.last, now, strict=True))
        self.shares.append(others / wall / (os.cpu_count() or 1))
        self.last = now


def built_in():
    """Load the built-in model, dense."""
    from dit_sparse.commands.model import load, locate
    from dit_sparse.commands.request import Request
    from dit_sparse.commands.screen import hushed

    with hushed(False):
        return load(Request(prompt="", device="cpu"), locate("shapes"))


def elsewhere():
    """Return the seconds of processor time that other processes have had; 0 where nobody tells."""
    try:
        fields = [int(x) for x in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    except OSError:
        return 0.0
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / os.sysconf("SC_CLK_TCK") - time.process_time()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--generate", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--sizes", default="33x160x160,49x128x128")
    asked = parser.parse_args()
    torch.set_num_threads(THREADS)
    with torch.no_grad():
        if not asked.generate:
            cpu_times(asked.tiny)
        elif asked.tiny:
            generations(["5x64x64"], 1, 2)
        else:
            generations(asked.sizes.split(","), asked.rounds, 12)
