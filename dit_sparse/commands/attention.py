"""Which attention a request means: a method by name or profile, or the default for a size."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dit_sparse.commands.request import Request
from dit_sparse.errors import ArgumentError, DitSparseError
from dit_sparse.parameters import as_tuples, like
from dit_sparse.profile import ALL_ROUND, unnamed

# below this many tokens attention is so small a part of a step that choosing blocks costs more
WORTHWHILE = 2000


@dataclass(frozen=True)
class Choice:
    """A method to run: its value, its name, its parameters, why it was chosen, its profile."""

    name: str
    value: Any
    params: dict[str, Any]
    reason: str = ""
    profile: Any = None

    @property
    def label(self) -> str:
        """The name with the parameters that were not left at their defaults, and the budget."""
        from dit_sparse.registry import entry

        defaults = entry(self.name).parameters
        shown = {k: v for k, v in self.params.items() if v != defaults[k] or (k == "keep" and v)}
        if self.name == "mixed":
            # tables are for files
            shown = {k: v for k, v in shown.items() if not isinstance(v, list | tuple)}
        return " ".join([self.name, *(f"{k}={_text(v)}" for k, v in shown.items())])


def choose(request: Request, model: str) -> Choice | None:
    """Build the method that was asked for, with the settings shipped for a model.

    None leaves the choice to `default`.
    """
    if request.profile is not None:
        return _of_profile(request.profile, request.params)
    if request.method is not None:
        return _of_name(request.method, request.params, model)
    # a budget, or a comparison with dense, asks for the sparse default whatever the size
    if request.params:
        return _of_name(ALL_ROUND, request.params, model, "default method")
    return _unnamed(model, "default method", request.quant) if request.compare else None


def saved(place: Path | str) -> Choice | None:
    """Return the settings that were saved beside a model, None when there are none."""
    path = Path(place) / "dit_sparse.toml"
    return _of_profile(str(path), {}) if path.is_file() else None


def default(tokens: int | None, model: str, quant: str = "none") -> Choice:
    """Return the default: sparse from 2,000 tokens (or when unknown), dense below."""
    if tokens is None:
        return _unnamed(model, "default method", quant)
    if tokens >= WORTHWHILE:
        pays = f"default: {tokens:,} tokens, sparse pays from {WORTHWHILE:,}"
        return _unnamed(model, pays, quant)
    why = f"default: {tokens:,} tokens, too few for sparse, which pays from {WORTHWHILE:,}"
    return _of_name("dense", {}, model, why)


def _unnamed(model: str, reason: str, quant: str) -> Choice:
    """Return the profile found for a model, else the method that is good everywhere."""
    # a number format is of single methods
    found = unnamed(model) if quant == "none" else ALL_ROUND
    return _of_name(found if isinstance(found, str) else found.method, {}, model, reason)


def _of_name(name: str, params: dict[str, Any], model: str, reason: str = "") -> Choice:
    from dit_sparse.profile import find
    from dit_sparse.registry import entry, get

    known = entry(name).parameters
    params = _checked(name, known, params)
    preset = find(model, name)
    build = partial(get, name)
    if preset is not None:
        build = preset.build
        draft = " (a draft: nobody has measured it)" if preset.is_draft else ""
        reason = "; ".join(filter(None, (reason, f"settings of profile {model}--{name}{draft}")))
    try:
        chosen = {**known, **(preset.params if preset else {}), **params}
        return Choice(name, build(**params), chosen, reason, preset)
    except DitSparseError:
        raise
    except (TypeError, ValueError) as error:
        given = ", ".join(f"{k}={_text(v)}" for k, v in params.items())
        raise ArgumentError(f"method {name} cannot be built with {given}: {error}") from error


def _of_profile(name: str, params: dict[str, Any]) -> Choice:
    import difflib

    from dit_sparse.profile import Profile, shipped
    from dit_sparse.registry import entry

    try:
        if name not in shipped() and not Path(name).is_file():
            close = difflib.get_close_matches(name, shipped(), n=3, cutoff=0.3) or shipped()
            raise ArgumentError(f"--profile {name}: no such file; shipped: {', '.join(close)}")
        try:
            profile = Profile.load(name)
        except ArgumentError as error:
            raise ArgumentError(f"--profile {error}") from error
    except OSError as error:
        raise ArgumentError(f"--profile {name} cannot be read: {error}") from error
    known = entry(profile.method).parameters
    params = _checked(profile.method, known, params)
    reason = f"profile {name}" + (" (a draft: nobody has measured it)" if profile.is_draft else "")
    chosen = {**known, **profile.params, **params}
    return Choice(profile.method, profile.build(**params), chosen, reason, profile)


def _checked(name: str, known: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters with TOML's types made the method's; raise when one is wrong."""
    out = {}
    for key, value in params.items():
        if key not in known:
            takes = ", ".join(f"{k}={_text(v)}" for k, v in known.items())
            if key == "keep":
                raise ArgumentError(
                    f"method {name} has no keep; it takes {takes or 'no parameters'}"
                )
            raise ArgumentError(f"--set {key}: method {name} takes {takes or 'no parameters'}")
        value = as_tuples(value)
        if not like(value, known[key]):
            raise ArgumentError(
                f"--set {key}={_text(value)}: method {name} needs a value like {_text(known[key])}"
            )
        out[key] = value
    return out


def _text(value: Any) -> str:
    """Write a value as --set takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value) or "''"
