"""A method for every head, as Sparse-vDiT assigns patterns (arXiv 2506.03065).

    1. a table gives each head of each layer (and part of the
       steps) a letter; the method behind the letter arranges
       the tokens of its heads                               -> arrange
    2. it scores the blocks of its heads                     -> score
    3. it keeps what it keeps of them                        -> select
    4. it computes its heads; the heads are put together     -> compute

letters: "LETTER METHOD KEY=VALUE ...", values as in TOML, for example
"a pisa keep=0.25". table: a string, one letter per head, for every layer
(a short one repeats over the heads); a list of strings, one per layer;
or, with `begins`, a list of such tables, one for each part of the steps.
begins: the shares of the steps at which the parts after the first begin.

Differs from the paper:
- any method that needs no learned weights may stand behind a letter; the
  paper has five patterns: "sparse_vdit table=D" and so on are four of
  them, "dense" is the fifth.
- the table changes between parts of the steps, not at every step.
- each letter of a layer is computed in launches of its own, and its
  schedule is not used: the schedule here stands for all.
"""

import shlex
import tomllib

from dit_sparse.core import Method
from dit_sparse.errors import ArgumentError
from dit_sparse.mixed import Apart, AsChosen, ByHead, Chosen, Letter, Together
from dit_sparse.registry import get, register
from dit_sparse.schedule import Schedule


@register(
    "mixed",
    arxiv="2506.03065",
    xfail={
        "dense_limit": "what is kept is chosen by the method of each head",
        "head_equivariant": "the table gives every head number its own method",
    },
)
def mixed(
    letters=("a pisa keep=0.25", "b draft keep=0.25"),
    table="ab",
    begins=(),
    dense_steps=0,
    dense_layers=0,
):
    heads = ByHead(tuple(map(read, letters)), table, tuple(begins))
    return Method(
        arrange=Apart(heads),
        score=Chosen(heads),
        select=AsChosen(),
        compute=Together(heads),
        schedule=Schedule(dense_steps, dense_layers),
    )


def read(text: str) -> Letter:
    """Return what a letter stands for, from a text such as "a pisa keep=0.25 tile=[4, 4, 4]"."""
    wrong = f"letters: {text!r} must be LETTER METHOD KEY=VALUE ..., such as 'a pisa keep=0.25'"
    words = text.split(maxsplit=2) if isinstance(text, str) else ()
    if len(words) < 2 or len(words[0]) != 1 or words[1] == "mixed":
        raise ArgumentError(wrong)
    letter, name, *rest = words
    params = {}
    try:
        for word in shlex.split(rest[0].replace(", ", ",")) if rest else ():
            key, _, value = word.partition("=")
            # a bare word stands for itself
            quoted = (
                f'"{value}"' if value.isidentifier() and value not in ("true", "false") else value
            )
            params[key] = tomllib.loads(f"value = {quoted}")["value"]
    except (ValueError, KeyError, RecursionError):
        raise ArgumentError(wrong) from None
    return Letter(letter, get(name, **params), text)
