"""One generation at a time per device, with progress, and with an end that anyone can call for.

    for event in runner.work(visitor, lambda turn: ...):
        ...  # what the work told; `Done` comes last

The work runs in a thread of its own, so that the page hears of it while a step lasts. It tells its
progress through `Turn` and is stopped there, between two denoising steps.
"""

from __future__ import annotations

import gc
import math
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from dit_sparse.commands.job import Job, prepare
from dit_sparse.commands.loading import Loaded, loaded
from dit_sparse.commands.model import load, locate
from dit_sparse.commands.request import Request
from dit_sparse.commands.sampling import RunError
from dit_sparse.commands.screen import Screen, hushed
from dit_sparse.demos.form import plain
from dit_sparse.errors import DitSparseError


class Stopped(BaseException):
    """The visitor wants no more of it: unwind to where the work began."""


class Expired(Stopped):
    """The time that one work may have the device is over."""


class Failed(Exception):
    """The work failed; the text is for the visitor."""


@dataclass(frozen=True)
class Said:
    """What goes on now, in words."""

    text: str
    warns: bool = False


@dataclass(frozen=True)
class Step:
    """A denoising step is done.

    note: time and density in words; picture: of now, or None; run: which of how many runs.
    """

    label: str
    step: int
    steps: int
    note: str
    picture: Any = None
    run: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Done:
    """The work is over; value: what it returned."""

    value: Any


@dataclass
class Turn:
    """What a work tells the page while it has the device, and where it is stopped.

    limit: seconds from `begin` on; what takes longer is stopped.
    """

    limit: float = math.inf
    stopped: threading.Event = field(default_factory=threading.Event)
    events: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)
    over: threading.Event = field(default_factory=threading.Event)
    end: float = math.inf

    def begin(self) -> None:
        """Count the seconds of the limit from now."""
        self.end = time.monotonic() + self.limit

    def tell(self, event: Any) -> None:
        """Hand an event to the page; ends the work when it was stopped."""
        self.check()
        self.events.put(event)

    def show(self, step: int, steps: int, note: str) -> None:
        """Tell that `step` of `steps` is done: a turn can be the bar of `sample`."""
        self.tell(Step("", step, steps, note))

    def check(self) -> None:
        """End the work when it was stopped, or when its time is over."""
        if self.stopped.is_set():
            raise Stopped
        if time.monotonic() > self.end:
            raise Expired


class Page(Screen):
    """The screen of a command, shown on the page.

    runs: how many generations there are. picture: makes the preview of the newest step; None: no
    preview.
    """

    def __init__(self, turn: Turn, runs: int = 1) -> None:
        super().__init__(quiet=True)
        self.turn, self.runs, self.run = turn, runs, 0
        self.picture: Callable[[], Any] | None = None

    def warn(self, text: str) -> None:
        """Say in one line what the visitor should know even when all goes on."""
        self.turn.tell(Said(text, warns=True))

    def say(self, text: str) -> None:
        """Say in one line what goes on."""
        self.turn.tell(Said(text))

    @contextmanager
    def steps(self, label: str) -> Iterator[Any]:
        """Show the denoising steps of one run."""
        self.label, self.run = label, self.run + 1
        self.turn.check()
        yield self

    def show(self, step: int, steps: int, note: str) -> None:
        """Tell that `step` of `steps` is done."""
        picture = self.picture() if self.picture is not None else None
        self.turn.tell(Step(self.label, step, steps, note, picture, (self.run, self.runs)))

    def result(self, data: dict[str, Any], rows: Sequence[Any], files: list) -> None:
        """Tell the facts of the result."""
        self.turn.tell(data)


class Runner:
    """The device, the model on it, and who has it now.

    limit: seconds that one work may have the device, loading a model not counted.
    """

    def __init__(self, device: str = "auto", debug: bool = False, limit: float = math.inf) -> None:
        self.device, self.debug, self.limit = device, debug, limit
        self._lock = threading.Lock()  # held while a work has the device
        self._turns: dict[str, Turn] = {}
        self._pipe: tuple[str, Any] | None = None

    def work(self, visitor: str, job: Callable[[Turn], Any]) -> Iterator[Any]:
        """Run `job(turn)` when the device is free; yields what it tells, then `Done`.

        visitor: by which `stop` finds it. Raises `Stopped`, or `Failed` with a text for the
        visitor. Leaving the loop early stops the job.
        """
        turn = self._turns[visitor] = Turn(self.limit)
        thread = threading.Thread(target=self._do, args=(job, turn), daemon=True)
        thread.start()
        try:
            while not isinstance(event := turn.events.get(), Done):
                if isinstance(event, BaseException):
                    raise event
                yield event
            yield event
        finally:
            turn.stopped.set()
            # the collector may close what nobody reads any more, in the very thread of the work
            if thread is not threading.current_thread():
                thread.join()
            if self._turns.get(visitor) is turn:
                del self._turns[visitor]

    def stop(self, visitor: str) -> Turn | None:
        """Stop what a visitor has running; returns it, or None where there is nothing."""
        turn = self._turns.get(visitor)
        if turn is not None:
            turn.stopped.set()
        return turn

    def stop_all(self) -> None:
        """Stop whatever runs."""
        for visitor in list(self._turns):
            self.stop(visitor)

    def pipe(self, request: Request, screen: Screen) -> Any:
        """Return the pipeline of a request, dense; one is kept, and makes room for another."""
        if self._pipe is None or self._pipe[0] != request.model:
            self._pipe = None
            release()
            screen.say(f"loading {request.model}")
            self._pipe = request.model, load(request, locate(request.model))
            if isinstance(screen, Page):
                screen.turn.begin()
        return self._pipe[1]

    def warm(self, model: str) -> None:
        """Load a model before anyone asks for it; an error waits for who does."""
        request = Request("any", model, self.device)
        with suppress(Failed, Stopped):
            list(self.work("", lambda turn: self.pipe(request, Page(turn))))

    def job(self, request: Request, screen: Screen) -> Job:
        """Return all that a generation needs, its method enabled; use inside `work`."""
        return prepare(request, screen, pipe=self.pipe(request, screen))

    def model(self, request: Request, screen: Screen | None = None) -> Loaded:
        """Return the model of a request, dense, and how to call it; use inside `work`."""
        screen = screen or Screen(quiet=True)
        return loaded(request, screen, self.pipe(request, screen))

    def _do(self, job: Callable[[Turn], Any], turn: Turn) -> None:
        """Run a job and tell how it ended; what it held on the device is free before that."""
        end: Any = Stopped()
        try:
            with self._lock, hushed(self.debug):
                try:
                    turn.check()
                    turn.begin()
                    end = Done(job(turn))
                except Expired:
                    end = Failed(too_long(self.limit))
                except Stopped:
                    pass
                except BaseException as error:
                    if self.debug or not isinstance(error, DitSparseError | RunError):
                        traceback.print_exc()
                    # a new exception: the frames of this one hold the tensors of the generation
                    end = Failed(explain(error))
                finally:
                    self._tidy()
        except BaseException as error:
            # a model that cannot be tidied up is loaded anew
            self._pipe, end = None, Failed(explain(error))
        finally:
            # whoever waits must hear of the end, whatever happened
            turn.events.put(end)
            turn.over.set()

    def _tidy(self) -> None:
        """Leave the model dense, and nothing of a generation in memory."""
        if self._pipe is not None:
            import dit_sparse

            dit_sparse.disable(self._pipe[1])
        release()


def too_long(limit: float) -> str:
    """Say that a work was ended by the limit of time, and what would fit into it."""
    allowed = f"{limit / 60:.3g} minutes" if limit >= 120 else f"{limit:g} seconds"
    return (
        f"This took longer than {allowed}, the most that one visitor may have the device: "
        "choose fewer frames or steps, or a smaller size."
    )


def explain(error: BaseException) -> str:
    """Return one line about an error that a visitor can read."""
    text = " ".join(str(error).split())
    if isinstance(error, DitSparseError | RunError):
        return plain(text)
    return f"Something went wrong here ({type(error).__name__}); the page goes on."


def release() -> None:
    """Give memory that nobody uses back to the device."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
