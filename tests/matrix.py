"""Run every row of `tests/tiny` and write what held: `python -m tests.matrix [CLASS ...]`.

The file `dit_sparse/integrations/matrix.json` is what `dit-sparse models` prints. With class names
(or any other word, as `changed`), only those are run, and classes whose rows changed since; the
rest of the file is kept.
"""

import json
import sys
import warnings
from collections import defaultdict
from pathlib import Path

import diffusers
import torch

import dit_sparse
from dit_sparse.commands.models import MEASURED, static
from dit_sparse.integrations.adapters import adapters, refused
from dit_sparse.integrations.capture import is_captured
from tests import test_adapters
from tests.probe import probe
from tests.tiny.case import Case, cases

FILE = Path(dit_sparse.__file__).parent / "integrations" / "matrix.json"
CHECKS = {
    "dense limit": test_adapters.test_dense_limit_and_undone,
    "sparse": test_adapters.test_sparse,
    "samples": test_adapters.test_samples_do_not_mix,
    "one graph": test_adapters.test_compiles_to_one_graph,
}


def rows() -> dict[str, list[Case]]:
    """Return the rows of each class."""
    found = defaultdict(list)
    for case in cases():
        found[case.model].append(case)
    return {name: found[name] for name in sorted(found)}


def traits(of: list[Case]) -> list[str]:
    """Return what the rows of a class hold besides the checks."""
    odd = any(n % 2 for case in of for n in case.grid[1:])
    padded = any(len(set(case.texts)) > 1 for case in of)
    return ["odd grid"] * odd + ["padded text"] * padded


def holds(check, case: Case) -> bool:
    """Run one check of one row; say what failed."""
    if check is CHECKS["one graph"] and not case.compiles:
        return False
    try:
        with warnings.catch_warnings():
            # as under pytest
            warnings.simplefilter("error")
            check(case)
    except Exception as error:
        print(f"{case}: {check.__name__}: {type(error).__name__}: {error}", file=sys.stderr)
        return False
    return True


def attached(case: Case) -> str:
    """Return the way by which the self-attention of a class is reached."""
    model, row = case.build(), adapters()[case.model]
    dit_sparse.enable(model, probe())
    layer = row.layers(model)[0]
    return "PyTorch" if is_captured(getattr(layer, "processor", layer)) else "dispatcher"


def measure(name: str, of: list[Case]) -> dict:
    """Return the entry of a class."""
    checked = [text for text, check in CHECKS.items() if all(holds(check, case) for case in of)]
    entry = {
        "attached": attached(of[0]),
        "rows": [str(case) for case in of],
        "checked": checked + traits(of),
        "diffusers": diffusers.__version__,
        "torch": torch.__version__.partition("+")[0],
    }
    assert entry.keys() == MEASURED.keys()
    return {**static()[name], **entry}


def same(entry: dict, name: str, of: list[Case]) -> bool:
    """Return whether an entry is about the rows of a class as they are now."""
    facts = {key: static()[name][key] for key in ("attention", "exclude", "text", "mask")}
    found = {**facts, "rows": [str(case) for case in of]}
    traited = [text for text in entry.get("checked", ()) if text not in CHECKS]
    return all(entry.get(key) == value for key, value in found.items()) and traited == traits(of)


def main(names: list[str]) -> None:
    """Write the file."""
    old = json.loads(FILE.read_text())["classes"] if FILE.is_file() else []
    known = {entry["class"]: entry for entry in old}
    found = {}
    for name, of in rows().items():
        if name not in adapters():
            continue
        if names and name not in names and same(known.get(name, {}), name, of):
            found[name] = {**known[name], **static()[name]}
        else:
            print(name, flush=True)
            found[name] = measure(name, of)
    text = json.dumps({"classes": list(found.values()), "refused": refused()}, indent=1)
    FILE.write_text(text + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
