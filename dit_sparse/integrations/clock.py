"""Which step of which generation a transformer call belongs to, and its CFG branch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Clock:
    """Tells the step of every transformer call of one pipeline; both experts of Wan 2.2 share it.

    In order of trust: `step_index` of diffusers' cache context; the loop variable of the pipeline
    (`_current_timestep`: a new object is a new step, `scheduler.timesteps` replaced is a new
    generation; no value is read, so the device is not waited for); the value of the `timestep`
    argument, where a new value is a new step and a turn against the direction a new generation.
    A call is told apart from others of its step by the name of the cache context, else by its
    number. generation: counts up. step: -1 before the first call. steps: 0 when unknown.
    """

    generation: int = 0
    step: int = -1
    steps: int = 0
    ended: bool = True
    source: str = ""
    sequence: Any = None
    mark: Any = None
    direction: int = 0
    branches: dict[str, int] = field(default_factory=dict)
    seen: dict[tuple[str, str], int] = field(default_factory=dict)

    def tick(self, part: str, context: Any, pipe: Any, read: Callable[[], float]) -> int:
        """Advance to the step of a call of transformer `part`; return the number of its branch.

        context: diffusers' cache context, its name (older versions) or None. pipe: the pipeline or
        None. read: returns the largest value of the timestep argument.
        """
        name = getattr(context, "name", context)
        index = getattr(context, "step_index", None)
        current = getattr(pipe, "_current_timestep", None)
        sequence = None if current is None else getattr(pipe.scheduler, "timesteps", None)
        fresh = self.ended or (sequence is not None and sequence is not self.sequence)
        again = name is not None and (part, name) in self.seen
        source = "context" if index is not None else "loop" if current is not None else "value"
        if source != self.source:
            fresh, self.mark, self.source = True, None, source
        if index is not None:
            fresh = fresh or index < self.step or (index == self.step == 0 and again)
            step, mark = index, None
        elif current is not None:
            mark = current
            step = self.step + (mark is not self.mark)
        else:
            mark = read()
            turn = 0 if self.mark is None else (mark > self.mark) - (mark < self.mark)
            # the value of step 0 again, in a branch it already had: the run before was aborted
            fresh = fresh or turn * self.direction < 0 or (turn == self.step == 0 and again)
            self.direction = 0 if fresh else self.direction or turn
            step = self.step + (turn != 0)
        if fresh:
            self.generation += 1
            self.branches.clear()
            step = index or 0
        if fresh or step != self.step:
            self.seen.clear()
        self.step, self.mark, self.sequence, self.ended = step, mark, sequence, False
        told = getattr(context, "num_inference_steps", None)
        if told is None and current is not None:
            told = getattr(pipe, "_num_timesteps", None)
        if told is None and source == "value":
            # a modular pipeline tells nothing, but has set its scheduler up
            timesteps = getattr(getattr(pipe, "scheduler", None), "timesteps", None)
            told = None if timesteps is None else len(timesteps)
        self.steps = 0 if told is None else max(int(told), step + 1)
        key = (part, name or "")
        self.seen[key] = self.seen.get(key, 0) + 1
        branch = name or f"call {self.seen[key]} of its step"
        return self.branches.setdefault(branch, len(self.branches))
