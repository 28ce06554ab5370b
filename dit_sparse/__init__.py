"""Sparse attention for diffusion transformers.

    import dit_sparse
    dit_sparse.enable(pipe, "pisa", keep=0.15)
    video = pipe("a cat on a skateboard").frames[0]
    print(dit_sparse.report(pipe))
    dit_sparse.disable(pipe)

Importing this package imports neither Triton nor diffusers: each loads with its first use.
"""

from pathlib import Path as _Path

# in a checkout, kernels/, pipelines/ and profiles/ lie beside this folder and have no __init__.py:
# a root folder `kernels` with one would shadow Hugging Face's package of the same name
_root = _Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "kernels").is_dir():
    __path__.append(str(_root))

from dit_sparse.api import attention, disable, enable, plan, report  # noqa: E402
from dit_sparse.core import Context, Grid, Method, Plan  # noqa: E402
from dit_sparse.errors import DitSparseError, UnsupportedModelError  # noqa: E402
from dit_sparse.profile import Profile  # noqa: E402
from dit_sparse.registry import get, methods, register  # noqa: E402
from dit_sparse.reporting import Report  # noqa: E402
from dit_sparse.schedule import Schedule  # noqa: E402

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
