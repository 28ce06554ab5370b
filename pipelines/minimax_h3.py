"""MiniMax H3: one sequence of text, conditions, sound and, last, the video, told by positions."""

from collections.abc import Mapping
from typing import Any

from dit_sparse.integrations.adapters import Adapter, Sizes
from dit_sparse.integrations.sequence import REST


def packed_sizes(module: Any, given: Mapping[str, Any]) -> Sizes:
    """Return that the box is the last of the tokens; `position_ids` [S, 3] tell its size."""
    return 1, 1, given["position_ids"].shape[0], REST, 0


ADAPTERS = (
    Adapter(
        classes=("MiniMaxH3Transformer3DModel",),
        attention=r"transformer_blocks\.\d+\.attn",
        sizes=packed_sizes,
        ids="position_ids",
        text="packed",
        needs="0.40.0",
        note="diffusers has a modular pipeline of it; enable its transformer",
    ),
)
