"""Sparse attention for diffusion transformers.

    import dit_sparse
    dit_sparse.enable(pipe, "pisa", keep=0.15)
    video = pipe("a cat on a skateboard").frames[0]
    print(dit_sparse.report(pipe))
    dit_sparse.disable(pipe)

Importing this package imports nothing heavy, not even torch: each name loads with its first use.
"""

from importlib import import_module as _import_module
from pathlib import Path as _Path
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

# in a checkout, demos/, kernels/, pipelines/ and profiles/ lie beside this folder and have no
# __init__.py: a root folder `kernels` with one would shadow Hugging Face's package of that name
_root = _Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "kernels").is_dir():
    __path__.append(str(_root))

if _TYPE_CHECKING:
    from dit_sparse.api import attention, disable, enable, plan, report
    from dit_sparse.core import Context, Grid, Method, Plan
    from dit_sparse.errors import DitSparseError, UnsupportedModelError
    from dit_sparse.profile import Profile
    from dit_sparse.registry import get, methods, register
    from dit_sparse.reporting import Report
    from dit_sparse.schedule import Schedule

__version__ = "0.1.0"

__all__ = [
    "Context",
    "DitSparseError",
    "Grid",
    "Method",
    "Plan",
    "Profile",
    "Report",
    "Schedule",
    "UnsupportedModelError",
    "attention",
    "disable",
    "enable",
    "get",
    "methods",
    "plan",
    "register",
    "report",
]

_HOMES = {
    "api": ("attention", "disable", "enable", "plan", "report"),
    "core": ("Context", "Grid", "Method", "Plan"),
    "errors": ("DitSparseError", "UnsupportedModelError"),
    "profile": ("Profile",),
    "registry": ("get", "methods", "register"),
    "reporting": ("Report",),
    "schedule": ("Schedule",),
}

# the first import of the folder `methods` binds its name here: let that happen before the function
# of the same name takes it, else `dit_sparse.methods()` works once
_import_module("dit_sparse.methods")
globals().pop("methods", None)

# the folder `pipelines` has no __init__.py; what it offers stands in its file _package.py, loaded
# when something is asked of it
_pipelines = _import_module("dit_sparse.pipelines")
_pipelines.__getattr__ = lambda name: getattr(_import_module("dit_sparse.pipelines._package"), name)
_pipelines.__dir__ = lambda: dir(_import_module("dit_sparse.pipelines._package"))


def __getattr__(name: str) -> _Any:
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(_import_module(f"dit_sparse.{home}"), name)
            globals()[name] = value
            return value
    if name == "testing":
        return _import_module("dit_sparse.testing")
    raise AttributeError(f"module 'dit_sparse' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
