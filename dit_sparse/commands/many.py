"""Many prompts, one loading of the model: numbered files, and a manifest with a line for each.

Started by `torchrun`, the prompts are shared out to the processes. Run again, it makes what is
missing: a prompt counts as done when the manifest says so for the same settings and its file is
there. Nothing is overwritten.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

from dit_sparse.commands.attention import choose
from dit_sparse.commands.job import Job, checked, file_name, prepare, warn_of_words
from dit_sparse.commands.request import Request
from dit_sparse.commands.sampling import RunError, sample
from dit_sparse.commands.screen import Screen, hushed
from dit_sparse.errors import ArgumentError, DitSparseError
from dit_sparse.integrations.processes import leave, started
from dit_sparse.media import named

MANIFEST = "manifest.jsonl"
# what does not decide a result; the prompt stands beside the settings
ELSE = {"prompt", "prompts", "device", "compile", "out", "compare", "quiet", "json", "debug"}


@dataclass(frozen=True)
class Entry:
    """One prompt of the file: its place there, counted from 0, and what it makes."""

    number: int
    prompt: str

    def path(self, folder: Path, suffix: str) -> Path:
        """Return the file it makes: its number, then its words."""
        return folder / f"{self.number:04d}-{file_name(self.prompt)}{suffix}"


def read(path: Path) -> list[Entry]:
    """Return the prompts of a text file, one per line; empty lines are left out."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ArgumentError(f"--prompts {path} cannot be read: {reason}") from None
    entries = [Entry(number, line.strip()) for number, line in enumerate(lines) if line.strip()]
    if not entries:
        raise ArgumentError(f"--prompts {path} holds no prompt; write one per line")
    return entries


class Manifest:
    """The lines of a folder's `manifest.jsonl`: what was made, with which settings, what failed."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder, settings
        self.path = folder / MANIFEST

    def lines(self) -> list[dict[str, Any]]:
        """Return what it says; a line that was cut off by a crash is left out."""
        found = []
        if self.path.is_file():
            for line in self.path.read_bytes().split(b"\n"):
                try:
                    found.append(json.loads(line.decode()))
                except ValueError:
                    continue
        return [line for line in found if isinstance(line, dict)]

    def mine(self) -> dict[tuple[int, str], dict[str, Any]]:
        """Return the last line of every prompt that was made with the same settings."""
        return {
            (line.get("number", -1), line.get("prompt", "")): line
            for line in self.lines()
            if line.get("settings") == self.settings
        }

    def done(self, entry: Entry) -> bool:
        """Return whether a prompt was made, and its file is there."""
        line = self.mine().get((entry.number, entry.prompt), {})
        return line.get("status") == "done" and (self.folder / str(line.get("file"))).is_file()

    def add(self, entry: Entry, **facts: Any) -> None:
        """Append a line, whole: several processes write to one manifest."""
        line = {"number": entry.number, "prompt": entry.prompt, **facts, "settings": self.settings}
        text = json.dumps(line, ensure_ascii=False) + "\n"
        with named(self.path), open(self.path, "ab", buffering=0) as file:
            if file.tell() and not self.path.read_bytes().endswith(b"\n"):
                text = "\n" + text
            file.write(text.encode())
            os.fsync(file.fileno())


def run(request: Request, prompts: Path) -> None:
    """Make all prompts of a file; raises at the end when some failed."""
    entries, folder = read(prompts), request.out or Path()
    # what needs no model to be refused leaves no folder behind
    choose(request, request.model)
    checked(request)
    folder.mkdir(parents=True, exist_ok=True)
    names = [field.name for field in fields(request) if field.name not in ELSE]
    settings = {name: _plain(getattr(request, name)) for name in names}
    manifest, screen = Manifest(folder, settings), Screen(request.quiet, request.json)
    todo = [entry for entry in entries if not manifest.done(entry)]
    if len(todo) < len(entries):
        screen.say(f"{len(entries) - len(todo)} of {len(entries)} prompts are done already")
    with hushed(request.debug):
        _share(request, todo, manifest, screen)
    made = [manifest.mine().get((entry.number, entry.prompt), {}) for entry in entries]
    failed = [line for line in made if line.get("status") != "done"]
    files = [str(folder / line["file"]) for line in made if line.get("status") == "done"]
    rows = [("done", f"{len(files)} of {len(entries)} prompts"), ("manifest", str(manifest.path))]
    rows += [("failed", f"{line.get('prompt')}: {line.get('error')}") for line in failed]
    facts = {"manifest": str(manifest.path), "files": files, "failed": failed}
    if started().first:
        screen.result(facts, rows, files)
    if failed:
        raise RunError(f"{len(failed)} of {len(entries)} prompts failed; see {manifest.path}")


def _share(request: Request, todo: Sequence[Entry], manifest: Manifest, screen: Screen) -> None:
    """Make this process's part of what is to do; return when every process is through."""
    import torch
    from accelerate import PartialState

    on_cpu = request.device == "auto" and not torch.accelerator.is_available()
    state = PartialState(cpu=on_cpu or request.device == "cpu")
    if todo:
        with state.split_between_processes(list(todo)) as mine:
            if mine:
                # one process alone takes the device that was asked for
                device = request.device if state.num_processes == 1 else str(state.device)
                own = replace(request, device=device)
                _make(own, cast(list[Entry], mine), manifest, screen)
    state.wait_for_everyone()
    leave()


def _make(request: Request, entries: Sequence[Entry], manifest: Manifest, screen: Screen) -> None:
    """Load the model once and make one file per prompt; a failure is noted and passed over."""
    request = replace(request, prompt=entries[0].prompt, out=manifest.folder)
    job = prepare(request, screen)
    for entry in entries:
        screen.say(f"{entry.number}: {entry.prompt}")
        if entry is not entries[0]:
            warn_of_words(entry.prompt, job.trained, screen)
        start = time.perf_counter()
        try:
            path = _one(job, entry)
        except (RunError, DitSparseError, OSError) as error:
            why = " ".join(str(error).split())
            screen.warn(f"{entry.prompt}: {why}")
            manifest.add(entry, status="failed", error=why)
        else:
            seconds = round(time.perf_counter() - start, 2)
            manifest.add(entry, status="done", file=path.name, seconds=seconds)


def _one(job: Job, entry: Entry) -> Path:
    """Generate one prompt and write its file."""
    from dit_sparse import media

    with job.screen.steps(str(entry.number)) as bar:
        run = sample(job.pipe, {**job.arguments, "prompt": entry.prompt}, job.request.seed, bar)
    suffix = ".mp4" if len(run.frames) > 1 else ".png"
    return media.write(
        entry.path(job.request.out or Path(), suffix), run.frames, job.fps, overwrite=False
    )


def _plain(value: Any) -> Any:
    """Return a setting as JSON holds it."""
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value
