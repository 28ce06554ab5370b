"""The body of the package `dit_sparse.pipelines`, which has no `__init__.py`.

In a checkout the folder `pipelines/` lies at the root, where an `__init__.py` would make it
importable as `pipelines` and hide other packages of that name; `dit_sparse/__init__.py` loads this
file in its place.
"""

from __future__ import annotations

import json
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any

from dit_sparse.errors import ArgumentError, DitSparseError, UnsupportedModelError
from dit_sparse.profile import find


def __getattr__(name: str) -> Any:
    found = _names() if name.startswith("Sparse") else {}
    if name not in found:
        raise AttributeError(f"module 'dit_sparse.pipelines' has no attribute {name!r}")
    return getattr(found[name], name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_names()})


def load(path: str | Path = "shapes", method: Any = None, **options: Any) -> Any:
    """Load a pipeline by folder, Hub id or the name "shapes", sparse attention enabled.

    The class follows from `model_index.json`. options: as in `from_pretrained` of the drop-in
    classes. dtype: default float32 for "shapes" and without a GPU, else bfloat16, for all
    components alike.

        pipe = dit_sparse.pipelines.load("shapes", method="pisa", keep=0.25)
    """
    import torch

    builtin = str(path) == "shapes" and not Path(path).is_dir()
    if builtin:
        folder = resources.files("dit_sparse") / "models" / "shapes"
        if not (folder / "model_index.json").is_file():
            raise DitSparseError(f"model='shapes' is not in this installation: {folder} is empty")
        path = str(folder)
        if isinstance(method, str):
            # settings made for this model; what the caller gives takes precedence
            method = find("shapes", method) or method
    host = _index(path, options).get("_class_name")
    ours = {module.PIPELINES[name]: name for name, module in _names().items()}
    if host not in ours:
        raise UnsupportedModelError(
            f"model={str(path)!r}: its pipeline class {host} is not supported; "
            f"nearest: {', '.join(get_close_matches(host or '', ours, n=3, cutoff=0))}; "
            "`dit-sparse models` lists the transformers that can be sparse"
        )
    if not {"dtype", "torch_dtype"} & set(options):
        full = builtin or not torch.cuda.is_available()
        options["dtype"] = torch.float32 if full else torch.bfloat16
    return __getattr__(ours[host]).from_pretrained(path, method, **options)


def _names() -> dict[str, Any]:
    """Return the module of each drop-in class name."""
    from dit_sparse.integrations.adapters import families

    return {name: module for module in families() for name in getattr(module, "PIPELINES", {})}


def _index(path: str | Path, options: dict[str, Any]) -> dict[str, Any]:
    """Return `model_index.json` of a folder or a Hub id."""
    folder, text = Path(path), str(path)
    try:
        if folder.is_dir():
            folder /= "model_index.json"
        elif folder.is_absolute() or text[0] in ".~" or text.count("/") != 1:
            raise OSError("no such folder, no Hub id (owner/name) and not 'shapes'")
        else:
            from huggingface_hub import hf_hub_download

            names = ("cache_dir", "revision", "token", "local_files_only", "force_download")
            given = {name: options[name] for name in names if name in options}
            folder = Path(hf_hub_download(text, "model_index.json", **given))
        return json.loads(folder.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ArgumentError(f"model={text!r} cannot be loaded: {reason}") from None
