"""`dit-sparse methods`: every method with its four stages, read from the registry."""

from __future__ import annotations

import json as json_module
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from dit_sparse.registry import Entry

STAGES = ("arrange", "score", "select", "compute")


def methods(
    name: Annotated[
        str | None, typer.Argument(help="Show this method's page.", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the names alone.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """List the sparse attention methods with their four stages, or show one method's page."""
    from dit_sparse import registry

    chosen = [name] if name else registry.methods()
    if quiet:
        print("\n".join(registry.entry(n).name for n in chosen))
        return
    facts = [describe(registry.entry(n)) for n in chosen]
    if json:
        print(json_module.dumps(facts[0] if name else facts, indent=2, ensure_ascii=False))
    elif markdown:
        print(markdown_table(facts))
    elif name:
        _page(facts[0])
    else:
        _table(facts)


def describe(entry: Entry) -> dict[str, Any]:
    """Return a method's plain data: paper, parameters with defaults, stages, declared misses."""
    method = entry.build()
    title = entry.doc.partition("\n")[0].rstrip(".")
    return {
        "name": entry.name,
        "title": title.partition(" (arXiv")[0],
        "arxiv": entry.arxiv,
        "code": entry.code,
        "parameters": {
            k: list(v) if isinstance(v, tuple) else v for k, v in entry.parameters.items()
        },
        "stages": {stage: stage_text(getattr(method, stage)) for stage in STAGES},
        "schedule": stage_text(method.schedule),
        "xfail": dict(entry.xfail),
        "doc": entry.doc,
    }


def stage_text(stage: Any) -> str:
    """Write a stage as a call: its first field, and others that differ from their defaults."""
    if isinstance(stage, tuple) and all(isinstance(n, int) for n in stage):
        return "x".join(map(str, stage))
    if not is_dataclass(stage):
        return str(stage)
    words = []
    for number, f in enumerate(fields(stage)):
        value = getattr(stage, f.name)
        if value is True:
            words.append(f.name)
        elif number == 0 and not isinstance(value, bool):
            words.append(stage_text(value))
        elif value != f.default:
            words.append(f"{f.name}={stage_text(value)}")
    return f"{type(stage).__name__}({', '.join(words)})" if words else type(stage).__name__


def markdown_table(facts: list[dict[str, Any]] | None = None) -> str:
    """Return the table of all methods as Markdown, for the README."""
    if facts is None:
        from dit_sparse import registry

        facts = [describe(registry.entry(n)) for n in registry.methods()]
    head = ["method", "paper", *STAGES]
    rows = []
    for fact in facts:
        number = fact["arxiv"]
        link = f" ([{number}](https://arxiv.org/abs/{number}))" if number else ""
        stages = [f"`{_short(fact['stages'][stage], 60)}`" for stage in STAGES]
        rows.append([f"`{fact['name']}`", fact["title"] + link, *stages])
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines
    )


def _signature(fact: dict[str, Any]) -> str:
    """Write the parameters with their defaults, each as --set takes it."""
    return ", ".join(f"{k}={_value(v)}" for k, v in fact["parameters"].items()) or "-"


def _short(text: str, limit: int = 100) -> str:
    """Return a stage as a table shows it; a method's page has all of it."""
    return text if len(text) <= limit else text[: limit - 4].rstrip() + " ..."


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json_module.dumps(value, separators=(",", ":"))


def _table(facts: list[dict[str, Any]]) -> None:
    """Print one row per method."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("method", "stages", "parameters"):
        table.add_column(title)
    for fact in facts:
        paper = f"\n[dim]{fact['arxiv']}[/dim]" if fact["arxiv"] else ""
        stages = [f"[dim]{k:8}[/dim]{escape(_short(v))}" for k, v in fact["stages"].items()]
        parameters = escape(_signature(fact).replace(", ", "\n") if fact["parameters"] else "-")
        table.add_row(f"[bold]{fact['name']}[/bold]{paper}", "\n".join(stages), parameters)
        table.add_row()
    console = Console(highlight=False)
    console.print(table)
    console.print("dit-sparse methods NAME shows a method's page", style="dim")


def _page(fact: dict[str, Any]) -> None:
    """Print one method: its docstring, parameters, stages and declared misses."""
    from rich.console import Console
    from rich.markup import escape
    from rich.panel import Panel
    from rich.table import Table

    console = Console(highlight=False)
    console.print(
        Panel(escape(fact["doc"]), title=f"[bold]{fact['name']}[/bold]", title_align="left")
    )
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    if fact["arxiv"]:
        table.add_row("paper", f"https://arxiv.org/abs/{fact['arxiv']}")
    if fact["code"]:
        table.add_row("code", f"https://github.com/{fact['code']}")
    table.add_row("parameters", escape(_signature(fact)))
    for stage, text in {**fact["stages"], "schedule": fact["schedule"]}.items():
        table.add_row(stage, escape(text))
    for rule, reason in fact["xfail"].items():
        table.add_row("misses", escape(f"{rule}: {reason}"))
    console.print(table)
