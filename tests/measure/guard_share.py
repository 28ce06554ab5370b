"""What share of a generation the quality guard takes: CPU time inside it, of all.

    python tests/measure/guard_share.py

The built-in model with `pisa` at a quarter of its blocks, at every step, on one thread.
"""

import time
from collections.abc import Callable
from typing import Any

import torch

import dit_sparse
from dit_sparse.integrations import diffusers as integration
from dit_sparse.integrations.guard import Guard
from dit_sparse.pipelines import load

PROMPT = "a large red circle moves right over a striped blue background"
SIDES = 160, 128
STEPS = 6
# what a session calls: at every sparse call, and at the end of a step
CALLS = ("look", "judge")


class Clock:
    """Adds up the CPU time that calls take."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def watch(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            begin = time.process_time()
            out = call(*args, **options)
            self.seconds += time.process_time() - begin
            return out

        return timed


def main() -> None:
    torch.set_num_threads(1)
    pipe = load("shapes", "dense")
    pipe.set_progress_bar_config(disable=True)
    for side in SIDES:
        clock, whole = Clock(), Clock()
        guard = type("Timed", (Guard,), {n: clock.watch(getattr(Guard, n)) for n in CALLS})
        integration.Guard = guard
        dit_sparse.enable(pipe, "pisa", keep=0.25, dense_steps=0, guard=0.9)
        size = {"height": side, "width": side, "num_frames": 33, "max_sequence_length": 64}
        start = torch.Generator().manual_seed(0)
        whole.watch(pipe)(
            PROMPT, num_inference_steps=STEPS, generator=start, output_type="latent", **size
        )
        share = clock.seconds / whole.seconds
        print(f"{side} x {side}: {clock.seconds:.3f} of {whole.seconds:.2f} s, {share:.2%}")


if __name__ == "__main__":
    main()
