"""How to make a generation again: the line for a shell, and the lines of Python."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path

from dit_sparse.commands.job import Job
from dit_sparse.commands.request import Request
from dit_sparse.pipelines._adapter import HOST


def command(request: Request) -> str:
    """Return the command line that asks for a request; what has its default is left out.

    command(Request("a red circle", keep=0.25))  # dit-sparse generate 'a red circle' --keep 0.25
    """
    words = ["dit-sparse", "generate"]
    for field in fields(request):
        value, option = getattr(request, field.name), f"--{field.name}"
        if field.name == "prompt":
            # a prompt may begin with a hyphen
            words += ["--", value] if value.startswith("-") else [value]
        elif value == field.default:
            continue
        elif value is True:
            words += [option]
        else:
            for one in value if isinstance(value, tuple) else (value,):
                words += [option, str(one)]
    if "--" in words[:3]:
        # what follows it is no option: it goes last
        words = [*words[:2], *words[4:], *words[2:4]]
    return shlex.join(words)


def python(job: Job, file: str | Path) -> str:
    """Return the lines of Python that make the sparse file of a job."""
    request, choice = job.request, job.choice
    dtype = str(job.pipe.transformer.dtype).removeprefix("torch.")
    asked = {k: v for k, v in job.arguments.items() if k not in ("prompt", "output_type")}
    more = {"quant": request.quant, "guard": request.guard}
    params = {k: v for k, v in request.params.items() if k in HOST}
    given = {k: v for k, v in request.params.items() if k not in HOST}
    given |= {k: v for k, v in more.items() if v not in ("none", None)}
    given |= {"params": params} if params else {}
    method = repr(choice.name) if request.profile is None else f"profile={request.profile!r}"
    options = "".join(f", {k}={v!r}" for k, v in given.items())
    device = "" if job.pipe.device.type == "cpu" else f'.to("{job.pipe.device}")'
    lines = [
        "import dit_sparse",
        "import torch",
        "from dit_sparse.media import write",
        "",
        f"pipe = dit_sparse.pipelines.load({request.model!r}, {method}{options},",
        f"                                 dtype=torch.{dtype}){device}",
        "video = pipe(",
        f"    {request.prompt!r},",
        *(f"    {name}={value!r}," for name, value in asked.items()),
        f'    generator=torch.Generator("cpu").manual_seed({request.seed}),',
        '    output_type="np",',
        f").{'frames[0]' if job.geometry.video else 'images'}",
        f"write({str(file)!r}, video, fps={job.fps:g})",
        "print(dit_sparse.report(pipe))",
    ]
    return "\n".join(lines) + "\n"
