"""What is set against dense attention: methods with settings, from names or from a file.

[schedule]                      # optional: one schedule for all cases
dense_steps = 0.25

[[case]]
label = "psa, exact or skipped alone"
method = "psa"
params = { block = [64, 64], levels = [1] }
remainder = "drop"              # optional: another remainder than the method's own

[[claim]]                       # optional: a line of the table of paired differences
says = "multi-level beats binary (PSA)"
better = "psa"
other = "psa, exact or skipped alone"
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dit_sparse.compute.attend import Attend
from dit_sparse.compute.remainder import Centroid, Drop
from dit_sparse.core import Method
from dit_sparse.errors import ArgumentError, DitSparseError
from dit_sparse.parameters import as_tuples
from dit_sparse.registry import entry, get
from dit_sparse.schedule import Schedule

# the label of what all cases are set against
DENSE = "dense"
REMAINDERS = {"drop": Drop, "centroid": Centroid}
CASE = ("label", "method", "params", "remainder")
CLAIM = ("says", "better", "other")


@dataclass(frozen=True)
class Case:
    """One method with its settings.

    label: its name in tables. schedule, remainder: instead of the method's own. target: the
    measured density that its budget is moved to; None leaves the budget as it stands in params.
    """

    label: str
    method: str
    params: dict[str, Any] = field(default_factory=dict)
    schedule: Schedule | None = None
    remainder: str = ""
    target: float | None = None

    def build(self, keep: float | None = None) -> Method:
        """Return the method, with another budget where one is given."""
        params = self.params if keep is None else {**self.params, "keep": keep}
        try:
            method = get(self.method, **params)
        except DitSparseError:
            raise
        except (TypeError, ValueError) as error:
            raise ArgumentError(f"case {self.label!r} cannot be built: {error}") from error
        if self.remainder:
            method = replace(method, compute=self._with_remainder(method))
        return method.with_schedule(self.schedule)

    def _with_remainder(self, method: Method) -> Attend:
        """Return the method's attention with the case's remainder and all else as it was."""
        compute, what = method.compute, f"case {self.label!r}: remainder={self.remainder!r}"
        if not isinstance(compute, Attend):
            kind = type(compute).__name__
            raise ArgumentError(
                f"{what} needs a method that computes with Attend, such as pisa; "
                f"{self.method} computes with {kind}"
            )
        if compute.per_token and self.remainder != "drop":
            raise ArgumentError(
                f"{what} needs blocks of queries, and {self.method} chooses for every query; "
                "use drop, or leave it out"
            )
        return replace(compute, remainder=REMAINDERS[self.remainder]())

    @property
    def series(self) -> str:
        """What cases of other budgets have in common with this one."""
        words = self.label.split(" ")
        return " ".join(w for w in words if not w.startswith(("keep=", "density=")))


@dataclass(frozen=True)
class Claim:
    """A comparison of two cases, by label."""

    says: str
    better: str
    other: str


def at_budgets(
    cases: Iterable[Case], keeps: Iterable[float], targets: Iterable[float]
) -> list[Case]:
    """Return every case at every budget, or at every target density of which there are any."""
    found = []
    for case in cases:
        if "keep" not in entry(case.method).parameters:
            raise ArgumentError(
                f"method {case.method} has no keep, so that it cannot be brought to a budget"
            )
        found += [
            replace(case, label=f"{case.series} density={target:g}", target=target)
            for target in targets
        ]
        for keep in keeps:
            label = f"{case.series} keep={keep:g}"
            found.append(replace(case, label=label, params={**case.params, "keep": keep}))
    return found


def check_labels(cases: Iterable[Case], where: str = "") -> None:
    """Raise unless each case has a label of its own, and none that of the dense row."""
    labels = [case.label for case in cases]
    if DENSE in labels:
        raise ArgumentError(
            f"{where}a case is called {DENSE!r}, the name of what all cases are set against; "
            "give it another label"
        )
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ArgumentError(
            f"{where}two cases are called {twice[0]!r}; give one another label or leave it out"
        )


def read(path: Path) -> tuple[list[Case], list[Claim]]:
    """Return the cases and claims of a TOML file."""
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ArgumentError(f"--cases {path} cannot be read: {error}") from None
    where = f"--cases {path}"
    _known(told, ("schedule", "case", "claim"), where)
    schedule = None
    if "schedule" in told:
        _known(told["schedule"], ("dense_steps", "dense_layers"), f"{where}: [schedule]")
        schedule = Schedule(**told["schedule"])
    cases = []
    for number, row in enumerate(_tables(told, "case", where), 1):
        here = f"{where}: case {number}"
        _known(row, CASE, here)
        if not isinstance(row.get("method"), str):
            raise ArgumentError(f"{here} must name its method")
        remainder = row.get("remainder", "")
        if remainder not in ("", *REMAINDERS):
            raise ArgumentError(f"{here}: remainder={remainder!r}; use {', '.join(REMAINDERS)}")
        params = row.get("params", {})
        if not isinstance(params, dict):
            raise ArgumentError(f"{here}: params={params!r} must be a table")
        params = {k: as_tuples(v) for k, v in params.items()}
        label = row.get("label", row["method"])
        case = Case(str(label), row["method"], params, schedule, remainder)
        case.build()
        cases.append(case)
    if not cases:
        raise ArgumentError(f"{where} holds no [[case]]")
    check_labels(cases, f"{where}: ")
    labels = [case.label for case in cases]
    claims = []
    for number, row in enumerate(_tables(told, "claim", where), 1):
        _known(row, CLAIM, f"{where}: claim {number}")
        lost = [key for key in CLAIM if key not in row]
        lost += [key for key in CLAIM[1:] if key in row and row[key] not in labels]
        if lost:
            raise ArgumentError(f"{where}: claim {number}: {lost[0]} must be the label of a case")
        claims.append(Claim(**row))
    return cases, claims


def _tables(told: dict[str, Any], name: str, where: str) -> list[dict[str, Any]]:
    """Return the tables [[name]] of a file."""
    rows = told.get(name, [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ArgumentError(f"{where}: write [[{name}]] for every {name}")
    return rows


def _known(row: Any, keys: Iterable[str], where: str) -> None:
    """Raise unless a table holds no other key."""
    if not isinstance(row, dict):
        raise ArgumentError(f"{where} must be a table")
    unknown = sorted(set(row) - set(keys))
    if unknown:
        raise ArgumentError(f"{where}: {unknown[0]!r} is not known; known: {', '.join(keys)}")
