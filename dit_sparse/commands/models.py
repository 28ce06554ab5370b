"""`dit-sparse models`: the transformer classes that can be made sparse."""

from __future__ import annotations

import json as json_module
from typing import Annotated, Any

import typer


def models(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the class names alone.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """List the supported transformer classes and where each is attached."""
    facts = describe()
    if json:
        print(json_module.dumps(facts, indent=2))
    elif quiet:
        print("\n".join(fact["class"] for fact in facts))
    else:
        _table(facts)


def describe() -> list[dict[str, Any]]:
    """Return each supported transformer class with its adapter row, as plain data."""
    from dit_sparse.integrations.adapters import adapters

    return [
        {
            "class": name,
            "attention": row.attention,
            "exclude": row.exclude,
            "text": row.text,
            "diffusers": row.needs,
        }
        for name, row in sorted(adapters().items())
    ]


def _table(facts: list[dict[str, Any]]) -> None:
    """Print one row per class."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("transformer", style="bold", no_wrap=True)
    table.add_column("self-attention modules", overflow="fold")
    table.add_column("joint text")
    table.add_column("diffusers")
    for fact in facts:
        where = fact["attention"] + (f" without {fact['exclude']}" if fact["exclude"] else "")
        table.add_row(fact["class"], escape(where), fact["text"], f">= {fact['diffusers']}")
    Console(highlight=False).print(table)
