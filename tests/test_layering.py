"""The rules of the tree: who may import whom, how long a file may be, what it may be called."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("arrange", "score", "select", "compute")
OURS = "dit_sparse."

# folder or file -> modules of ours it may import, by prefix
ALLOWED = {
    "kernels": ("kernels",),
    "dit_sparse/errors.py": (),
    "dit_sparse/schedule.py": ("errors",),
    "dit_sparse/tokens.py": ("errors",),
    "dit_sparse/checks.py": ("errors", "tokens"),
    "dit_sparse/core.py": ("checks", "errors", "schedule", "tokens"),
    "dit_sparse/parameters.py": ("errors", "kernels.choice", "kernels.contract"),
    "dit_sparse/constants.py": (),
    "dit_sparse/plugins.py": ("errors",),
    "dit_sparse/registry.py": ("core", "errors", "parameters", "plugins"),
    "dit_sparse/weights.py": ("core", "errors"),
    "dit_sparse/profile.py": ("core", "errors", "registry", "schedule"),
    "dit_sparse/arranged.py": ("core", "kernels"),
    "dit_sparse/arrange": ("core", "errors", "kernels", "constants", "parameters"),
    "dit_sparse/score": ("core", "errors", "arranged", "kernels", "constants"),
    "dit_sparse/select": ("core", "errors", "kernels", "constants", "parameters"),
    "dit_sparse/compute": ("core", "errors", "arranged", "kernels", "compute"),
    "dit_sparse/methods": ("core", "errors", "parameters", "registry", "schedule", *STAGES),
    "dit_sparse/mixed.py": ("core", "errors", "schedule", "constants", "compute.attend"),
    "dit_sparse/methods/mixed.py": ("core", "errors", "mixed", "registry", "schedule"),
    "dit_sparse/search": (
        "core", "errors", "mixed", "registry", "metrics", "quality.store", "arrange", "score",
        "select", "compute", "search", "integrations.diffusers",
    ),
    "dit_sparse/integrations": (
        "core", "errors", "schedule", "profile", "registry", "reporting", "integrations",
        "compute.attend", "pipelines", "kernels.attention", "weights", "constants", "parameters",
    ),
    "dit_sparse/metrics.py": ("errors",),
    "dit_sparse/media.py": ("errors",),
    "dit_sparse/quality": (
        "core", "errors", "schedule", "parameters", "registry", "reporting", "media", "metrics",
        "arranged", "kernels", "compute", "integrations", "quality", "bench.plot", "haystack",
    ),
    "dit_sparse/inspection": (
        "core", "errors", "media", "integrations.session", "quality", "inspection",
    ),
    "dit_sparse/world.py": ("errors",),
    "dit_sparse/haystack.py": ("errors",),
    "dit_sparse/adherence.py": ("errors", "world"),
    "pipelines": ("integrations", "profile", "errors", "pipelines", "api"),
}  # fmt: skip
LIMITS = {
    "dit_sparse/core.py": 250, "dit_sparse/registry.py": 90, "dit_sparse/schedule.py": 200,
    "dit_sparse/profile.py": 150, "dit_sparse/methods": 120, "kernels": 300, "tests": 230,
    "tests/measure": 420,
    "pipelines": 160,
}  # fmt: skip
LIMIT = 400


def sources(*folders: str) -> list[Path]:
    return sorted(p for f in folders for p in (ROOT / f).rglob("*.py"))


ALL = sources("dit_sparse", "kernels", "pipelines", "tests", "demos")


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    found = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            if node.module == "dit_sparse":
                found |= {OURS + alias.name for alias in node.names}
    return found


def rule(path: Path, table: dict):
    name = path.relative_to(ROOT).as_posix()
    keys = [k for k in table if name == k or name.startswith(k + "/")]
    return table[max(keys, key=len)] if keys else None


@pytest.mark.parametrize("path", ALL, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_and_size(path):
    allowed = rule(path, ALLOWED)
    ours = {m.removeprefix(OURS) for m in imports(path) if m.startswith(OURS)}
    if allowed is not None:
        wrong = {m for m in ours if not any(m == a or m.startswith(a + ".") for a in allowed)}
        assert not wrong, f"may not import {wrong}"
    folder = path.relative_to(ROOT).parts
    if folder[:2] == ("dit_sparse", "methods") and path.stem != "__init__":
        assert not any(m.startswith("methods.") for m in ours), "a method imports another"
    if (
        folder[0] == "dit_sparse"
        and len(folder) == 3
        and folder[1] in ("arrange", "score", "select")
    ):
        assert not {m for m in ours if m.split(".")[0] in STAGES}, "a stage imports a stage"
    if "triton" in {m.split(".")[0] for m in imports(path, True)}:
        assert "kernels.reference" not in ours, "a Triton file never imports the reference"
    if folder[0] == "dit_sparse":
        heavy = {m.split(".")[0] for m in imports(path, True)} & {
            "diffusers",
            "transformers",
            "triton",
        }
        assert not heavy, f"imports {heavy} at import time"
    lines = path.read_text().count("\n")
    assert lines <= (rule(path, LIMITS) or LIMIT), f"{lines} lines"
    assert path.stem not in {"utils", "common", "helpers", "misc"}
    roots = {m.split(".")[0] for m in imports(path)}
    assert not roots & {"kernels", "pipelines", "profiles"}, "modules would load twice"


@pytest.mark.parametrize("folder", ["demos", "kernels", "pipelines", "profiles"])
def test_no_package_file_shadows_others(folder):
    """A root folder `kernels` with an `__init__.py` would hide Hugging Face's package."""
    assert (ROOT / folder).is_dir() and not (ROOT / folder / "__init__.py").exists()


def test_every_package_is_listed():
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {p.parent for p in sources("dit_sparse", "kernels", "pipelines")}
    names = {p.relative_to(ROOT).as_posix().replace("/", ".") for p in folders}
    names = {n if n.startswith("dit_sparse") else OURS + n for n in names}
    assert names <= set(setup["packages"])


def test_import_is_light():
    """Importing the package loads neither Triton nor diffusers, and shadows nothing."""
    code = (
        "import sys, dit_sparse, dit_sparse.kernels.attention;"
        "print(sorted({'triton', 'diffusers', 'transformers', 'cv2'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert out.stdout.strip() == "[]", out.stderr
