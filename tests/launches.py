"""Count what a call would launch on a GPU: Triton kernels, and torch ops that compute something."""

from collections import Counter
from contextlib import contextmanager
from unittest import mock

from torch.utils._python_dispatch import TorchDispatchMode

# memory and views of it: no launch
FREE = {
    "empty", "empty_strided", "new_empty", "new_empty_strided", "view", "_unsafe_view", "expand",
    "slice", "select", "unsqueeze", "squeeze", "t", "transpose", "permute", "as_strided", "detach",
    "alias", "promote_types", "unbind", "split", "_reshape_alias", "lift_fresh", "view_as",
}  # fmt: skip


class _Ops(TorchDispatchMode):
    """Counts ops, but not what Triton's interpreter does to its copies of the tensors."""

    def __init__(self):
        super().__init__()
        self.found, self.inside = Counter(), False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if not self.inside and func.namespace == "aten" and name not in FREE:
            self.found[f"aten {name}"] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def launches():
    """Count the launches inside the block by name; Triton's interpreter runs the kernels."""
    from triton.runtime.interpreter import GridExecutor

    ops, real = _Ops(), GridExecutor.__call__

    def launch(self, *args, **kwargs):
        ops.found[self.fn.__name__] += 1
        ops.inside = True
        try:
            return real(self, *args, **kwargs)
        finally:
            ops.inside = False

    # what only the CPU's tensors are asked
    values = mock.patch("dit_sparse.kernels.attention.check_values")
    with values, mock.patch.object(GridExecutor, "__call__", launch), ops:
        yield ops.found
