"""The loop every stage shares: a time budget, rates by the share of it used, saved state, one
record.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from models import finite
from optim import Average
from ranks import GateFailed, OutOfTime, Run
from torch import Tensor, nn

SAVE_EVERY, SAY_EVERY = 120.0, 15.0


@dataclass
class Stage:
    """One stage's model, optimisers and progress; `name` is its file in the work folder."""

    run: Run
    name: str
    model: nn.Module
    optimisers: list[torch.optim.Optimizer]
    average: Average
    budget: float
    rate: Callable[[float], float]
    clip: float = 1.0
    step: int = 0
    elapsed: float = 0.0
    samples: int = 0
    curve: list[list[float]] = field(default_factory=list)
    # steps without a finite gradient; stays on the device until it is printed
    skipped: Tensor | int = 0
    # seconds this call must keep after the stage, when it has to end in this call
    closing: float | None = None

    def resume(self) -> "Stage":
        """Take up the state a former call saved, if any."""
        state = self.run.load(self.name)
        if state:
            self.model.load_state_dict(state["model"])
            self.average.load(state["average"], state["average_steps"])
            for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(saved)
            self.step, self.elapsed, self.samples = (
                state["step"],
                state["elapsed"],
                state["samples"],
            )
            self.curve = state["curve"]
            self.run.say(
                f"{self.name}: resumed at step {self.step}, {self.elapsed:.0f} s "
                f"of {self.budget:.0f} used"
            )
        return self

    def save(self) -> None:
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "average": self.average.state(),
            "average_steps": self.average.steps,
            "optimisers": [o.state_dict() for o in self.optimisers],
            "step": self.step,
            "elapsed": self.elapsed,
            "samples": self.samples,
            "curve": self.curve,
        }
        self.run.save(self.name, state)

    def apply(self, lr: float) -> None:
        """Average the gradients, clip, step, and move the average.

        A gradient that is not finite counts as zero, the same on every rank, and is counted: one
        bad batch must not end a run.
        """
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        self.run.average(parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.clip)
        sound = norm.isfinite()
        for p in parameters:
            p.grad = torch.where(sound, p.grad, 0)
        self.skipped = self.skipped + (~sound).int()
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = lr
            optimiser.step()
        self.model.zero_grad(set_to_none=True)
        self.average.update()

    def fit(self, loss: Callable[[int], tuple[Tensor, int]], *, warm: int = 1) -> None:
        """Train until the budget is used, or raise OutOfTime with the state saved when the call
        ends first.

        loss: step -> (loss to minimise, samples used); its first `warm` calls run before the clock
        starts
        """
        run, begun = self.run, time.monotonic()
        for i in range(warm):
            if run.agree(run.left() < 15)[0]:
                raise OutOfTime(self.name)
            value = loss(i)[0]
            value.backward()
            norm = torch.nn.utils.get_total_norm(
                [p.grad for p in self.model.parameters() if p.grad is not None]
            )
            run.say(f"{self.name}: shape {i} loss {value.item():.4f} gradient {norm.item():.3f}")
            self.model.zero_grad(set_to_none=True)
        run.sync()
        if warm:
            run.say(f"{self.name}: {warm} shapes ready after {time.monotonic() - begun:.1f} s")
        run.note(self.name, compile_s=round(time.monotonic() - begun, 1))
        start = said = met = time.monotonic()
        if self.closing is not None:
            self.budget = run.agree(
                max(1.0, min(self.budget, self.elapsed + run.left() - self.closing))
            )[0]
            run.say(f"{self.name}: {self.budget - self.elapsed:.0f} s to train in this call")
        base, said_step, said_samples, every = self.elapsed, self.step, self.samples, 1
        recent: list[Tensor] = []
        begin = self.step
        fraction, since = self.elapsed / self.budget, 0
        while True:
            if since == 0:
                run.sync()
                now = time.monotonic()
                self.elapsed = base + now - start
                # rank 0 decides: the rates depend on the fraction, so every rank must use the same
                # one
                fraction, out, save, pace = run.agree(
                    self.elapsed / self.budget,
                    run.left() < 0,
                    now - run.last_save > SAVE_EVERY,
                    max(1, min(16, int(every / max(now - met, 1e-3)))) if self.step > begin else 1,
                )
                every = since = int(pace)
                met = now
                finished = fraction >= 1
                if recent:
                    value = torch.stack(recent).nanmean().item()
                    skipped = int(self.skipped)
                    if not finite(value) or skipped > 20 + 0.05 * self.step:
                        raise GateFailed(
                            f"{self.name}: the loss is {value} at step {self.step}, "
                            f"{skipped} steps skipped"
                        )
                    self.curve.append([round(self.elapsed, 1), self.step, round(value, 5)])
                    recent = []
                if finished or out or now - said > SAY_EVERY:
                    value = self.curve[-1][2] if self.curve else 0.0
                    speed = run.world * (self.samples - said_samples) / max(now - said, 1e-3)
                    ms = 1000 * (now - said) / max(self.step - said_step, 1)
                    run.say(
                        f"{self.name} {100 * fraction:5.1f} % step {self.step} loss {value:.4f} "
                        f"lr {self.rate(fraction):.2e} {speed:.0f} samples/s {ms:.1f} ms/step"
                        + (f", {int(self.skipped)} steps skipped" if int(self.skipped) else "")
                    )
                    said, said_step, said_samples = now, self.step, self.samples
                if finished or out or save:
                    self.save()
                if finished or out:
                    totals = {
                        "steps": self.step,
                        "seconds": round(self.elapsed, 1),
                        "samples": self.samples * run.world,
                    }
                    run.note(self.name, **totals, ranks=run.world, curve=self.curve)
                if finished:
                    return
                if out:
                    raise OutOfTime(self.name)
            value, count = loss(self.step)
            value.backward()
            recent.append(value.detach())
            self.apply(self.rate(fraction))
            self.step, self.samples, since = self.step + 1, self.samples + count, since - 1


def gate(run: Run, stage: str, passed: bool, **figures: Any) -> None:
    """Record a stage's closing figures, and stop the run when they do not allow the next one."""
    passed = bool(run.agree(passed)[0])
    run.note(stage, gate={**figures, "passed": passed})
    run.say(f"{stage} gate {'passed' if passed else 'FAILED'}: {figures}")
    if not passed:
        raise GateFailed(
            f"{stage}: {figures} is below what the next stage needs (--no-gates goes on anyway)"
        )
