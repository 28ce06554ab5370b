"""Profiles: a method with its settings for one model, as TOML; data only."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from dit_sparse.core import Method
from dit_sparse.errors import ArgumentError, UnknownNameError
from dit_sparse.registry import get
from dit_sparse.schedule import Schedule

# what a model gets when no method is named: what was found for it, else what is good everywhere
FOUND, ALL_ROUND = "mixed", "pisa"
FORMAT = 1  # also of files older than the number
TABLES = ("params", "schedule", "measured")  # and "profile"
LARGEST = 1 << 20  # bytes; a profile is a few lines


@dataclass(frozen=True)
class Profile:
    """Settings of one method for one model.

    model: the name it was made for. method: a registered name. params: arguments of the method.
    schedule: arguments of `Schedule`, instead of the method's own. quant: "none" or "fp8".
    measured: device, density, speed, quality, prompts, commit, date; a profile without it is a
    draft.
    """

    model: str
    method: str
    params: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    quant: str = "none"

    @property
    def is_draft(self) -> bool:
        """True when nobody has measured these settings."""
        return not self.measured

    def build(self, **params: Any) -> Method:
        """Return the method with these settings; `params` take precedence."""
        method = get(self.method, **{**self.params, **params}).with_quant(self.quant)
        when = self.when(params)
        return method.with_schedule(Schedule(**when) if when else None)

    def when(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return the schedule beside other parameters; those of a method are among them."""
        given = {k: v for k, v in params.items() if k in ("dense_steps", "dense_layers")}
        return {**self.schedule, **given} if self.schedule else {}

    def elsewhere(self, device: str) -> str:
        """Return a note when the profile was measured on another device than `device`, else ""."""
        where = str(self.measured.get("device", device))
        if device.lower() in where.lower():
            return ""
        return f"profile {self.model}--{self.method} was measured on {where}, not on {device}"

    def to_toml(self) -> str:
        """Return the profile as TOML text."""
        import tomli_w

        head = {"format": FORMAT, "model": self.model, "method": self.method}
        if self.quant != "none":
            head["quant"] = self.quant
        tables: dict[str, Any] = {"profile": head}
        tables |= {name: getattr(self, name) for name in TABLES if getattr(self, name)}
        return tomli_w.dumps(tables)

    @classmethod
    def from_toml(cls, text: str, source: str = "profile") -> Profile:
        """Read a profile from TOML text; `source` names it in error messages."""
        if len(text) > LARGEST:
            raise ArgumentError(f"{source}: {len(text)} characters; {LARGEST} are the most")
        try:
            tables = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ArgumentError(f"{source}: not TOML: {error}") from None
        except RecursionError:
            raise ArgumentError(f"{source}: nested more than a profile can be") from None
        unknown = sorted(set(tables) - {"profile", *TABLES})
        if unknown:
            known = ", ".join(("profile", *TABLES))
            raise ArgumentError(f"{source}: unknown table [{unknown[0]}]; known: {known}")
        wrong = [name for name, table in tables.items() if not isinstance(table, dict)]
        if wrong:
            raise ArgumentError(f"{source}: {wrong[0]} must be a table")
        head = dict(tables.get("profile", {}))
        written = head.pop("format", FORMAT)
        if type(written) is not int or not 1 <= written <= FORMAT:
            raise ArgumentError(
                f"{source}: format = {str(written)[:20]} is not known here; this version reads "
                f"{FORMAT}: update dit-sparse, or write the profile again"
            )
        names = set(head) - {"quant"}
        if names != {"model", "method"} or not all(isinstance(v, str) for v in head.values()):
            raise ArgumentError(
                f"{source}: [profile] must hold the strings model, method and perhaps quant"
            )
        rest = {name: tables.get(name, {}) for name in TABLES}
        profile = cls(head["model"], head["method"], **rest, quant=head.get("quant", "none"))
        try:
            profile.build()
        except RecursionError:
            raise ArgumentError(f"{source}: nested more than a profile can be") from None
        except (ArgumentError, UnknownNameError, TypeError, ValueError, ArithmeticError) as error:
            raise ArgumentError(f"{source}: {' '.join(str(error).split())}") from None
        return profile

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read a profile from a file, or the shipped one of a name, `<model>--<method>`."""
        name, place = str(path), Path(path)
        if name in shipped():
            place = resources.files("dit_sparse.profiles") / f"{name}.toml"
        elif not place.is_file():
            raise ArgumentError(f"profile={name!r} is no file; shipped: {', '.join(shipped())}")
        with place.open("rb") as file:
            data = file.read(LARGEST + 1)
        try:
            return cls.from_toml(data.decode("utf-8"), name)
        except UnicodeDecodeError as error:
            if len(data) > LARGEST:
                raise ArgumentError(f"{path}: a profile has at most {LARGEST} bytes") from None
            raise ArgumentError(f"{path}: not TOML: {error}") from None


def shipped() -> list[str]:
    """Return the names of the profiles that come with the package, `<model>--<method>`."""
    folder = resources.files("dit_sparse.profiles")
    files = (file.name for file in folder.iterdir())
    return sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml"))


def find(model: str, method: str) -> Profile | None:
    """Return the shipped profile of a model and a method, None when there is none."""
    name = f"{model}--{method}"
    return Profile.load(name) if name in shipped() else None


def unnamed(model: str | None) -> Profile | str:
    """Return what a model gets when no method is named."""
    named = (find(model, method) for method in (FOUND, ALL_ROUND) if model)
    return next(filter(None, named), ALL_ROUND)
