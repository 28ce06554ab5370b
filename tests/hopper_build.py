"""Build the Hopper kernel ahead of time, for machines without such a GPU: run as a script.

Prints one JSON object a variant: what the assembler's input holds.
"""

import inspect
import json

import triton
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon._runtime import GluonASTSource
from triton.experimental.gluon.language import NVMMASharedLayout

from dit_sparse.kernels._hopper import hopper_kernel

# fmt: off
VARIANTS = (
    {"DIM": 128, "BLOCK_N": 128, "BOX": 128, "STAGES": 2, "RINGS": 1, "columns": 0, "tail": True,
     "HAS_SHORT": False, "IS_Q_UNIFORM": True},
    {"DIM": 128, "BLOCK_N": 128, "BOX": 16, "STAGES": 2, "RINGS": 1, "columns": 16, "tail": False,
     "HAS_SHORT": True, "IS_Q_UNIFORM": False},
    {"DIM": 64, "BLOCK_N": 64, "BOX": 64, "STAGES": 4, "RINGS": 2, "columns": None, "tail": False,
     "HAS_SHORT": True, "IS_Q_UNIFORM": True, "IS_CAUSAL": True},
)
# fmt: on


def build(columns, tail, **flags):
    """Return the kernel compiled for compute capability 9.0; columns: None, 0 for columns that all
    see, or the size of listed groups."""
    block, tile = flags["BLOCK_N"], repr(NVMMASharedLayout(128, 16, 4))
    boxes = {"q": 64, "out": 64, "k": flags["BOX"], "v": flags["BOX"]}
    boxes |= {} if columns is None else dict.fromkeys(("ck", "cv"), columns or block)
    boxes |= {"tail": block} if tail else {}
    types = {f"{n}_desc": f"tensordesc<bf16[1, 1, {rows}, 64],{tile}>" for n, rows in boxes.items()}
    if columns == 0:
        types["terms_desc"] = f"tensordesc<fp32[1, {block}],{NVMMASharedLayout(0, 32, 2)!r}>"
    types |= {"out_ptr": "*bf16", "lse_ptr": "*fp32", "terms_ptr": "*fp32", "scale": "fp32"}
    constants = {
        "Q_SIZE": 128, "HAS_FENCE": True, "COLUMN_GROUP": columns or 0, "HAS_TAIL": tail,
        "HAS_COLUMNS": columns is not None, "IS_CAUSAL": False, **flags,
    }  # fmt: skip
    names = list(inspect.signature(hopper_kernel.fn).parameters)
    for name in names:
        if name.endswith("_desc") and name not in types:
            constants[name] = None
    signature = {
        n: "constexpr" if n in constants else types.get(n, "*i32" if n.endswith("_ptr") else "i32")
        for n in names
    }
    source = GluonASTSource(
        hopper_kernel, signature, {(names.index(n),): value for n, value in constants.items()}
    )
    options = {"num_warps": 4, "maxnreg": 168 if flags["RINGS"] == 1 else 96}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


if __name__ == "__main__":
    for variant in VARIANTS:
        ptx = build(**variant).asm["ptx"]
        words = ("wgmma.mma_async", "cp.async.bulk.tensor", "setmaxnreg")
        print(json.dumps({word: ptx.count(word) for word in words}), flush=True)
