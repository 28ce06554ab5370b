"""Drop-in pipelines: a diffusers pipeline that loads enabled and saves its settings beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from dit_sparse.errors import ArgumentError, MissingDependencyError
from dit_sparse.profile import Profile

SETTINGS = "dit_sparse.toml"
# options of diffusers' own from_pretrained
HOST = frozenset((
    "cache_dir", "custom_pipeline", "custom_revision", "dduf_file", "device_map", "disable_mmap",
    "dtype", "force_download", "local_files_only", "low_cpu_mem_usage", "max_memory", "mirror",
    "offload_folder", "offload_state_dict", "output_loading_info", "provider", "provider_options",
    "proxies", "quantization_config", "revision", "sess_options", "token", "torch_dtype",
    "trust_remote_code", "use_onnx", "use_safetensors", "variant",
))  # fmt: skip


class Sparse:
    """Mixin in front of a diffusers pipeline class, whose name is in `host_name`."""

    host_name = ""

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        method: Any = None,
        *,
        profile: Profile | str | Path | None = None,
        schedule: Any = None,
        impl: str = "auto",
        quant: str = "none",
        guard: float | None = None,
        params: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Load a pipeline and enable a sparse method on it.

        method: a name or a `Method`; its parameters stand among the options, the rest goes to
        diffusers, and so does what both know: such a parameter (SLA's variant) goes into `params`.
        profile: settings instead of `method`. With neither, the `dit_sparse.toml` saved beside the
        model decides, else `enable` does. impl, quant, guard: as in `enable`. dtype and
        torch_dtype are one.
        """
        from dit_sparse.integrations.diffusers import enable, parameters
        from dit_sparse.integrations.seam import DTYPE

        if method is not None and profile is not None:
            raise ArgumentError(f"method={method!r} and profile={profile!r}: give one of them")
        saved = Path(path) / SETTINGS
        chosen = profile if method is None else method
        if isinstance(chosen, str) and chosen == profile:
            chosen = Path(chosen)
        if chosen is None and saved.is_file():
            chosen = saved
        if isinstance(chosen, Path):
            chosen = Profile.load(chosen)
        given = {**_split(parameters(chosen) - HOST, options), **(params or {})}
        for key in {"dtype", "torch_dtype"} & set(options):
            options[DTYPE] = options.pop(key)
        pipe = super().from_pretrained(path, **options)  # type: ignore[misc]
        return enable(pipe, chosen, schedule=schedule, impl=impl, quant=quant, guard=guard, **given)

    def save_pretrained(self, path: str | Path, *args: Any, **options: Any) -> None:
        """Save the pipeline for plain diffusers as well, and the sparse settings beside it."""
        from dit_sparse.integrations.diffusers import profile_of

        super().save_pretrained(path, *args, **options)  # type: ignore[misc]
        settings = profile_of(self)
        if settings is not None:
            (Path(path) / SETTINGS).write_text(settings.to_toml(), encoding="utf-8")

    def to_json_string(self) -> str:
        """Return the configuration under diffusers' own class name."""
        config = json.loads(super().to_json_string())  # type: ignore[misc]
        config["_class_name"] = self.host_name
        return json.dumps(config, indent=2, sort_keys=True) + "\n"


def drop_in(module: str, pipelines: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a module's `__getattr__` that makes its drop-in classes when first asked for.

    pipelines: our class name -> diffusers' class name. Late, so that rows can be read without
    importing diffusers.
    """
    made: dict[str, type] = {}

    def getattr_(name: str) -> type:
        if name not in pipelines:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        if name not in made:
            try:
                import diffusers
            except ImportError as error:
                raise MissingDependencyError(f"{name} needs diffusers >= 0.35") from error
            host = getattr(diffusers, pipelines[name])
            text = f"{host.__name__} with sparse attention: see `from_pretrained`."
            body = {"host_name": host.__name__, "__module__": module, "__doc__": text}
            made[name] = type(name, (Sparse, host), body)
        return made[name]

    return getattr_


def _split(known: set[str], options: dict[str, Any]) -> dict[str, Any]:
    """Take the parameters of the method out of `options`, and refuse near misses of their names."""
    params = {key: options.pop(key) for key in list(options) if key in known}
    for key in options.keys() - HOST:
        near = get_close_matches(key, known, n=1, cutoff=0.7)
        if near:
            raise ArgumentError(f"{key}={options[key]!r} is no option; did you mean {near[0]!r}?")
    return params
