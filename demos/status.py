"""What a page says while the device works for it, and how the work ended."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gradio as gr

from dit_sparse.demos import address, form
from dit_sparse.demos.runner import Done, Failed, Said, Step, Stopped
from dit_sparse.errors import ArgumentError, DitSparseError

STOP_SECONDS = 10  # how long a button Stop waits for the step under way


def reported(
    begin: Callable[[], Iterator[Any]],
    finished: Callable[[Any], tuple[Any, ...]],
    rest: Sequence[Any],
    warned: Callable[[str], None] = lambda text: None,
) -> Iterator[tuple[Any, ...]]:
    """Yield the outputs of a tab for every event of some work: a status first, then `rest`.

    begin: gives the events of `Runner.work`, and outputs as they are. finished: what all outputs
    are of the value that the work returned. warned: hears warnings.
    """
    try:
        for event in begin():
            match event:
                case Done(value):
                    yield finished(value)
                case Said(text, warns):
                    if warns:
                        warned(text)
                    yield status_of(text), *rest
                case Step():
                    yield status_of_step(event), *rest
                case tuple():
                    yield event
    except Stopped:
        yield status_of("Stopped."), *rest
    except (Failed, ArgumentError) as error:
        yield status_of(str(error), wrong=True), *rest


def stops(app: Any, button: Any, work: Any, status: Any) -> None:
    """Let a button end the event `work` of its visitor, running or still in the queue."""

    def stop(request: gr.Request) -> str:
        turn = app.runner.stop(request.session_hash or "")
        # until the work is over the page takes no click on its start
        if turn is None or turn.over.wait(STOP_SECONDS):
            return status_of("Stopped.")
        return status_of("Stopping: the step under way ends first.")

    button.click(None, None, None, cancels=[work])
    button.click(stop, None, status, queue=False, show_progress="hidden", api_visibility="private")


@contextmanager
def told() -> Iterator[None]:
    """Show what is wrong with a choice as a message of the page."""
    try:
        yield
    except DitSparseError as error:
        raise gr.Error(form.plain(str(error)), print_exception=False) from None


def status_of(text: str, wrong: bool = False) -> str:
    """Return the status line; wrong: an error, which screen readers say at once."""
    return _status("alert" if wrong else "status", "", text, 0, 1)


def status_of_step(step: Step) -> str:
    """Return the status of a running generation: its newest frames, a bar, a line."""
    seen, (run, runs) = "", step.run
    if step.picture is not None:
        told = f"first look at the {step.label} video after step {step.step}"
        seen = f'<img src="{address.of_picture(step.picture)}" alt="{html.escape(told)}">'
    many = f"{run} of {runs}, " if runs > 1 else ""
    text = f"{many}{step.label}: step {step.step} of {step.steps}, {step.note}"
    return _status("status", seen, text, (run - 1) * step.steps + step.step, runs * step.steps)


def _status(role: str, seen: str, text: str, done: int, total: int) -> str:
    return (
        f'<div class="now" role="{role}"><div class="preview">{seen}</div><div class="said">'
        f'<p>{html.escape(text)}</p><div class="progress" role="progressbar" aria-label="steps" '
        f'aria-valuenow="{done}" aria-valuemin="0" aria-valuemax="{total}">'
        f'<div style="width:{done / total:.1%}"></div></div></div></div>'
    )
