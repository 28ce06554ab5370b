"""What was asked for on the command line, checked as far as no model is needed."""

from __future__ import annotations

import difflib
import math
import re
import shlex
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit_sparse.errors import ArgumentError, DitSparseError

DTYPES = {
    "float32": "float32", "fp32": "float32",
    "bfloat16": "bfloat16", "bf16": "bfloat16",
    "float16": "float16", "fp16": "float16",
}  # fmt: skip

# the arguments by which any command that generates says what with
SHARED = (
    "model", "device", "dtype", "compile", "steps", "frames", "height", "width", "guidance",
    "negative", "seed", "debug",
)  # fmt: skip


@dataclass(frozen=True)
class Request:
    """The arguments of `generate`; None = the model's default."""

    prompt: str
    model: str = "shapes"
    device: str = "auto"
    dtype: str = "auto"
    compile: bool = False
    method: str | None = None
    keep: float | None = None
    profile: str | None = None
    set: tuple[str, ...] = ()
    quant: str = "none"
    guard: float | None = None
    steps: int | None = None
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    guidance: float | None = None
    negative: str | None = None
    image: Path | None = None
    seed: int = 0
    fps: float | None = None
    out: Path | None = None
    compare: bool = False
    quiet: bool = False
    json: bool = False
    debug: bool = False
    prompts: Path | None = None

    @classmethod
    def of(cls, order: Any, prompt: str = "any", **more: Any) -> Request:
        """Return the checked generations of another command: its model, its sampling arguments.

        order: that command's arguments. more: further fields, by name.
        """
        shared = {name: getattr(order, name) for name in SHARED if hasattr(order, name)}
        request = cls(prompt, **shared, **more)
        request.check()
        return request

    def check(self) -> None:
        """Raise `ArgumentError` for the first argument that cannot work with any model."""
        # imports torch, which no --help should wait for
        from dit_sparse.kernels.contract import QUANTS

        if self.prompts is not None and (self.prompt or self.compare):
            raise ArgumentError(f"--prompts {self.prompts} goes without a PROMPT and --compare")
        if self.prompts is None and not self.prompt.strip():
            raise ArgumentError("the prompt is empty; say what to show")
        for name in ("steps", "frames", "height", "width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ArgumentError(f"--{name} {value} must be at least 1")
        if self.keep is not None and not 0 < self.keep <= 1:
            raise ArgumentError(f"--keep {self.keep:g} must be above 0 and at most 1, e.g. 0.25")
        if self.guidance is not None and not 0 <= self.guidance < math.inf:
            raise ArgumentError(f"--guidance {self.guidance:g} must be 0 or more; 1 = no guidance")
        if self.fps is not None and not 1 <= self.fps <= 240:
            raise ArgumentError(f"--fps {self.fps:g} must be from 1 to 240")
        if not 0 <= self.seed < 2**63:
            raise ArgumentError(f"--seed {self.seed} must be from 0 to 2^63 - 1")
        if self.dtype != "auto" and self.dtype not in DTYPES:
            raise ArgumentError(f"--dtype {self.dtype} is not known; use auto, {', '.join(DTYPES)}")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ArgumentError(f"--device {self.device} is not known; use auto, cpu or cuda")
        if self.quant not in QUANTS:
            raise ArgumentError(f"--quant {self.quant} is not known; use {' or '.join(QUANTS)}")
        check_guard(self.guard)
        self._check_method()
        if self.image is not None:
            from dit_sparse.commands.picture import read

            read(self.image)
        if self.out is not None and self.prompts is not None:
            check_folder(self.out)
        elif self.out is not None:
            check_out(self.out, self.compare)
        elif not writable(Path.cwd()):
            raise ArgumentError(f"cannot write to the current folder {Path.cwd()}; use --out")

    def _check_method(self) -> None:
        """Check how the method was named and its settings written; values come later."""
        params = self.params
        if self.method is not None and self.profile is not None:
            raise ArgumentError("--method and --profile both name a method; give one of them")
        if self.method == "dense" and self.compare:
            raise ArgumentError("--compare sets a sparse method against dense; dense was asked for")
        # a budget without a method means: the default sparse method with this budget
        if self.method is None and self.profile is None and set(params) - {"keep"}:
            raise ArgumentError("--set needs --method or --profile: whose parameter is it?")
        if self.method is not None:
            check_name(self.method)

    @property
    def params(self) -> dict[str, Any]:
        """The parameters of the method that were given by --keep and --set."""
        params = dict(parse_setting(text) for text in self.set)
        if self.keep is not None:
            if "keep" in params:
                raise ArgumentError("--keep and --set keep=... say the same; give one of them")
            params["keep"] = self.keep
        return params


@dataclass
class Asked:
    """What commands with one prompt, one model and one method are asked; None = a default."""

    prompt: str | None
    model: str
    device: str
    dtype: str
    method: str | None
    keep: float | None
    profile: str | None
    set: list[str] | None


def check_name(method: str) -> None:
    """Raise unless a method has the name that --method gives; say which ones are close to it."""
    from dit_sparse.registry import methods

    if method not in methods():
        close = difflib.get_close_matches(method, methods(), n=3, cutoff=0.4)
        near = f"nearest: {', '.join(close)}" if close else f"known: {', '.join(methods())}"
        raise ArgumentError(f"--method {method} is not known; {near}")


def check_guard(guard: float | None) -> None:
    """Raise unless --guard can be the largest relative error of a layer."""
    if guard is not None and not 0 < guard < 1:
        raise ArgumentError(f"--guard {guard:g} must be above 0 and below 1, e.g. 0.05")


def parse_setting(text: str) -> tuple[str, Any]:
    """Split KEY=VALUE; the value is TOML (`8`, `0.5`, `true`, `[8, 16]`), a bare word or path."""
    key, equals, raw = (part.strip() for part in text.partition("="))
    if not equals or not key.isidentifier() or not raw or "\n" in raw:
        raise ArgumentError(f"--set {text!r} must be KEY=VALUE, e.g. dense_steps=0.25")
    # TOML wants a digit before the point
    raw = re.sub(r"^\.(?=\d)", "0.", raw)
    try:
        return key, tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        if re.fullmatch(r"[A-Za-z~./\\][\w~./\\:{} -]*", raw):
            return key, raw
        raise ArgumentError(
            f"--set {text!r}: the value is not TOML; write 8, 0.5, true, [8, 16], a word or a path"
        ) from None


def check_set(settings: list[str] | None, names: list[str], budget: bool = False) -> None:
    """Raise unless every --set belongs to one method, and none is its budget, or with `budget`.

    names: the methods of --method.
    """
    if settings and len(names) != 1:
        raise ArgumentError("--set needs one --method: whose parameter is it?")
    if not budget and any(parse_setting(text)[0] == "keep" for text in settings or ()):
        raise ArgumentError("--set keep=...: use --keep")


def split_case(text: str) -> tuple[str, list[str]]:
    """Return the name and the settings KEY=VALUE of a --case such as `pisa order=0`."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ArgumentError(f"--case {text!r}: {error}; write METHOD KEY=VALUE ...") from None
    if not words:
        raise ArgumentError(f"--case {text!r} names no method; write METHOD KEY=VALUE ...")
    return words[0], words[1:]


@contextmanager
def of_case(text: str) -> Iterator[None]:
    """Say of an error that it is about this --case, which is written without other options."""
    try:
        yield
    except DitSparseError as error:
        told = re.sub(r"^--(method|set) ", "", str(error))
        raise ArgumentError(f"--case {text!r}: {told}") from error


def check_out(out: Path, compare: bool) -> None:
    """Raise unless a file can be written at `out`, which is a folder or a file name."""
    from dit_sparse.media import EXTENSIONS

    if out.is_dir():
        folder = out
    elif out.suffix.lower() not in EXTENSIONS:
        kind = f"{out.suffix!r} is not known" if out.suffix else "has no file extension"
        raise ArgumentError(
            f"--out {out}: {kind}; use {', '.join(EXTENSIONS)} or a folder that is there"
        )
    else:
        folder = out.parent
        if not folder.is_dir():
            raise ArgumentError(f"--out {out}: the folder {str(folder)!r} does not exist")
        if compare and beside(out).is_dir():
            raise ArgumentError(f"--out {out}: {beside(out)} is a folder")
    if not writable(folder):
        raise ArgumentError(f"--out {out}: cannot write to the folder {str(folder)!r}")


def check_folder(out: Path) -> None:
    """Raise unless `out` is a folder that can be written to, or can be made."""
    from dit_sparse.media import EXTENSIONS

    if out.suffix.lower() in EXTENSIONS and not out.is_dir():
        raise ArgumentError(f"--out {out} must be a folder for --prompts, not one file")
    folder_for(out)


def folder_for(folder: Path) -> Path:
    """Return a folder for results, which need not be there yet; raise where it cannot be made."""
    there = folder
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise ArgumentError(f"--out {folder}: {there} is a file; name a folder")
    if not writable(there):
        raise ArgumentError(f"--out {folder}: cannot write to the folder {str(there)!r}")
    return folder


def beside(path: Path) -> Path:
    """Return the name of the side-by-side file: cat.mp4 -> cat_compare.mp4."""
    return path.with_name(f"{path.stem}_compare{path.suffix}")


def writable(folder: Path) -> bool:
    """Tell whether a file can be made in a folder."""
    # asking for permission bits is wrong for root, network and read-only file systems: try it
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
