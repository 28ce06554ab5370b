"""The fields of the tab "Generate": what they offer, and what may stand in them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dit_sparse.commands.attention import choose
from dit_sparse.commands.job import checked
from dit_sparse.commands.loading import own_prompts
from dit_sparse.commands.model import BUILT_IN, Trained, locate
from dit_sparse.commands.request import Request
from dit_sparse.demos import evaluations
from dit_sparse.errors import ArgumentError, DitSparseError

# what a visitor may ask of a machine that others wait for
LONGEST_PROMPT, MOST_STEPS, MOST_FRAMES, MOST_PIXELS = 300, 50, 129, 1280 * 1280
MOST_SEED = 2**32 - 1
LEAST_KEEP = 0.02
OWN = "as the model has it"
FIELDS = ("prompt", "method", "keep", "steps", "size", "frames", "seed", "model", "settings")


class Refused(ArgumentError):
    """A field holds what cannot be made. field: its name."""

    def __init__(self, field: str, text: str) -> None:
        super().__init__(text)
        self.field = field


def methods() -> list[tuple[str, str]]:
    """Return (label, name) of the methods with a budget: those for video."""
    from dit_sparse.registry import entry
    from dit_sparse.registry import methods as known

    found = [entry(name) for name in known() if "keep" in entry(name).parameters]
    return [(e.doc.splitlines()[0].partition(" (")[0].rstrip("."), e.name) for e in found]


def prompts(model: str) -> list[str]:
    """Return examples of what a model can show."""
    if model != BUILT_IN:
        return own_prompts(model, 4)
    return [
        "a red circle moves right over a striped blue background",
        "a yellow star bounces over a checkered purple background",
        *own_prompts(model, 2),
    ]


def trained(model: str) -> Trained:
    """Return what a model was trained for; nothing known of one that is not on this machine."""
    return Trained.read(locate(model))


def sizes(model: str) -> list[str]:
    """Return the sizes that are offered, the model's own first."""
    return [OWN, *(f"{height} x {width}" for height, width in trained(model).sizes)]


def lengths(model: str) -> list[str]:
    """Return the numbers of frames that are offered, the model's own first."""
    return [OWN, *map(str, trained(model).frames)]


def steps(model: str) -> int:
    """Return the number of steps to begin with."""
    return trained(model).default.get("num_inference_steps", 30)


def request(values: Sequence[Any], models: Sequence[str], device: str, out: Path) -> Request:
    """Return the comparison that the fields ask for; raise `Refused` for the first wrong one.

    values: in the order of `FIELDS`. models: those of this page. out: the file to write. All that
    can be known without the model is checked, so that nobody waits in vain.
    """
    given = dict(zip(FIELDS, values, strict=True))
    if given["model"] not in models:
        raise Refused("model", f"{given['model']} is not offered; use {', '.join(models)}")
    prompt = str(given["prompt"] or "").strip()
    if not prompt:
        raise Refused("prompt", "The prompt is empty; say what to show, or take an example.")
    if len(prompt) > LONGEST_PROMPT:
        raise Refused(
            "prompt", f"The prompt has {len(prompt)} characters; {LONGEST_PROMPT} are the most."
        )
    names = [name for _, name in methods()]
    if given["method"] not in names:
        raise Refused("method", f"{given['method']} is not offered; use {', '.join(names)}")
    height, width = _size(given["size"])
    asked = Request(
        prompt,
        given["model"],
        device,
        method=given["method"],
        keep=_keep(given["method"], given["keep"]),
        set=_settings(given["method"], given["model"], given["settings"]),
        steps=_number("steps", given["steps"], 1, MOST_STEPS, int),
        frames=_frames(given["frames"]),
        height=height,
        width=width,
        seed=_number("seed", given["seed"], 0, MOST_SEED, int),
        out=out,
        compare=True,
    )
    for field, check in (
        ("method", lambda: choose(asked, asked.model)),
        ("size", lambda: checked(asked)),
        ("prompt", asked.check),
    ):
        try:
            check()
        except DitSparseError as error:
            text = str(error)
            field = "frames" if text.startswith("--frames") else field
            raise Refused(field, plain(text)) from None
    return asked


def plain(text: str) -> str:
    """Return a message without the hyphens of the command line's options."""
    return re.sub(r"(?<!\S)--(\w)", r"\1", text)


def _keep(method: str, value: Any) -> float | None:
    """Return the budget, None for a method that has none: one that was found by search."""
    from dit_sparse.registry import entry
    from dit_sparse.registry import methods as known

    if method in known() and "keep" not in entry(method).parameters:
        return None
    return _number("keep", value, LEAST_KEEP, 1.0, float)


def _settings(method: Any, model: str, text: Any) -> tuple[str, ...]:
    """Return the lines KEY=VALUE of a setting that the tab "Compare" loads, and of no other.

    With its own numbers a visitor could keep the device busy for hours, or name files.
    """
    if not text:
        return ()
    if text not in evaluations.offered(model).get(method, ()):
        raise Refused("settings", "These settings are of no row of the tab “Compare”.")
    return tuple(text.splitlines())


def _number(field: str, value: Any, least: Any, most: Any, kind: Any) -> Any:
    """Return a number in its bounds."""
    try:
        number = kind(value)
        if number == float(value) and least <= number <= most:
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    what = "a whole number" if kind is int else "a number"
    raise Refused(field, f"{value} must be {what} from {least} to {most}.")


def _frames(text: Any) -> int | None:
    return None if text in (OWN, None, "") else _number("frames", text, 1, MOST_FRAMES, int)


def _size(text: Any) -> tuple[int | None, int | None]:
    """Return height and width of a size such as `128 x 160`."""
    if text in (OWN, None, ""):
        return None, None
    found = re.fullmatch(r"\s*(\d{1,5})\s*[xX]\s*(\d{1,5})\s*", str(text))
    height, width = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 0 < height * width <= MOST_PIXELS:
        raise Refused(
            "size",
            f"{text} must be height x width such as 128 x 160, at most {MOST_PIXELS:,} pixels.",
        )
    return height, width
