"""`dit-sparse models`: the transformer classes that can be made sparse, and what was tested."""

from __future__ import annotations

import json as json_module
from typing import Annotated, Any

import typer

# what only a run of the tests can tell
MEASURED = {"attached": "", "rows": [], "checked": [], "diffusers": "", "torch": ""}
COLUMNS = {
    "class": "transformer",
    "family": "family",
    "attached": "reached by",
    "text": "joint text",
    "mask": "mask",
    "checked": "tested",
}
CHECKS = ("dense limit", "sparse", "samples", "one graph")
LEGEND = """\
Every row was run on a tiny model with random weights: **dense limit** (all blocks kept gives the
output of the model itself, and disabling restores it bit for bit, weights and configuration
unchanged), **sparse** (all self-attention and nothing else is sparse, on the grid of the tokens),
**samples** (a batch gives what its samples give alone, so both ways of CFG agree), **one graph**
(`torch.compile(fullgraph=True)`), **odd grid**, **padded text** (texts of different lengths).
Reached by: the attention dispatcher of diffusers, or PyTorch's attention function where a class
calls that. Mask: what a mask given to self-attention means; a call with any other stays dense and
says so."""


def models(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/models.md.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the class names alone.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """List the transformer classes that can be made sparse, what was tested, and those refused."""
    facts = describe()
    if json:
        print(json_module.dumps(facts, indent=2))
    elif markdown:
        print(document(facts), end="")
    elif quiet:
        print("\n".join(fact["class"] for fact in facts if fact["supported"]))
    else:
        _table(facts)


def describe() -> list[dict[str, Any]]:
    """Return each known transformer class as plain data: its row, and what the tests found.

    A class that was not tested, of a row added later, has no `checked`; one that is refused has a
    `reason` instead.
    """
    from dit_sparse.integrations.adapters import refused

    tested = {entry["class"]: entry for entry in recorded()["classes"]}
    found = []
    for name, facts in static().items():
        measured = {key: tested.get(name, {}).get(key, none) for key, none in MEASURED.items()}
        found.append({"supported": True, **facts, **measured})
    for name, reason in sorted(refused().items()):
        found.append({"supported": False, "class": name, "reason": reason})
    return found


def static() -> dict[str, dict[str, Any]]:
    """Return what the adapter rows tell of each class, in the order of their names."""
    from dit_sparse.integrations.adapters import families

    found = {
        name: {
            "class": name,
            "family": module.__name__.rpartition(".")[2],
            "attention": row.attention,
            "exclude": row.exclude,
            "text": row.text,
            "mask": row.mask,
            "needs": row.needs,
            "note": row.note,
        }
        for module in families()
        for row in module.ADAPTERS
        for name in row.classes
    }
    return dict(sorted(found.items()))


def recorded() -> dict[str, Any]:
    """Return what `python -m tests.matrix` wrote: the classes it tested and those refused."""
    from importlib.resources import files

    path = files("dit_sparse.integrations") / "matrix.json"
    if not path.is_file():
        return {"classes": [], "refused": {}}
    return json_module.loads(path.read_text(encoding="utf-8"))


def document(facts: list[dict[str, Any]]) -> str:
    """Return the page of the docs that holds the matrix."""
    rows = [fact for fact in facts if fact["supported"]]
    versions = " and ".join(sorted({fact["diffusers"] for fact in rows if fact["diffusers"]}))
    lines = [
        "# Which transformers can be sparse",
        "",
        f"{len(rows)} classes, with diffusers {versions}. This page is printed by "
        "`dit-sparse models --markdown`; its facts",
        "come from a run of the tests, `python -m tests.matrix`.",
        "",
        *LEGEND.splitlines(),
        "",
        "| " + " | ".join(COLUMNS.values()) + " |",
        "|" + "---|" * len(COLUMNS),
        *("| " + " | ".join(_cells(fact)) + " |" for fact in rows),
        "",
        "## Refused",
        "",
        "`dit_sparse.enable` raises with this reason; any other class is refused as unknown.",
        "",
        "| transformer | reason |",
        "|---|---|",
        *(f"| {f['class']} | {f['reason']} |" for f in facts if not f["supported"]),
    ]
    return "\n".join(lines) + "\n"


def _cells(fact: dict[str, Any]) -> list[str]:
    """Return the texts of a table row."""
    shown = {**fact, "checked": ", ".join(fact["checked"]) or "not run"}
    return [shown[name] or "-" for name in COLUMNS]


def _table(facts: list[dict[str, Any]]) -> None:
    """Print one row per class."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    shown = [name for name in COLUMNS if name not in ("family", "checked")]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in shown:
        table.add_column(COLUMNS[name].removeprefix("joint "), overflow="fold")
    table.add_column("checks")
    out = Console(highlight=False)
    for fact in facts:
        if fact["supported"]:
            held = f"{sum(check in fact['checked'] for check in CHECKS)} of {len(CHECKS)}"
            table.add_row(*(fact[name] or "-" for name in shown), held)
    out.print(table)
    out.print(f"checks: {', '.join(CHECKS)}; --markdown explains them", style="dim")
    out.print("refused:", style="bold")
    for fact in facts:
        if not fact["supported"]:
            out.print(escape(f"  {fact['class']}: {fact['reason']}"))
