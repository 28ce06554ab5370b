"""Build the Hopper kernels ahead of time, for machines without such a GPU: run as a script.

Prints one JSON object a variant: what the assembler's input holds.
"""

import inspect
import json

import triton
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon._runtime import GluonASTSource
from triton.experimental.gluon.language import NVMMASharedLayout

from dit_sparse.kernels import _hopper_fp8
from dit_sparse.kernels._hopper import hopper_kernel

# fmt: off
VARIANTS = (
    {"DIM": 128, "BLOCK_N": 128, "BOX": 128, "STAGES": 2, "RINGS": 1, "columns": 0, "tail": True,
     "HAS_SHORT": False, "IS_Q_UNIFORM": True},
    {"DIM": 128, "BLOCK_N": 128, "BOX": 16, "STAGES": 2, "RINGS": 1, "columns": 16, "tail": False,
     "HAS_SHORT": True, "IS_Q_UNIFORM": False, "HAS_ORDER": True},
    {"DIM": 64, "BLOCK_N": 64, "BOX": 64, "STAGES": 4, "RINGS": 2, "columns": None, "tail": False,
     "HAS_SHORT": True, "IS_Q_UNIFORM": True, "IS_CAUSAL": True},
)
FP8_VARIANTS = (
    {"DIM": 128, "BOX": 128, "HAS_SHORT": False, "IS_Q_UNIFORM": True, "IS_CAUSAL": False},
    {"DIM": 64, "BOX": 32, "HAS_SHORT": True, "IS_Q_UNIFORM": False, "IS_CAUSAL": True},
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
    types |= {"order_ptr": "*i64", "q_ptr": "*bf16"}
    constants = {
        "Q_SIZE": 128, "HAS_FENCE": True, "COLUMN_GROUP": columns or 0, "HAS_TAIL": tail,
        "HAS_COLUMNS": columns is not None, "IS_CAUSAL": False, "HAS_ORDER": False, **flags,
    }  # fmt: skip
    return assemble(hopper_kernel, types, constants, 168 if flags["RINGS"] == 1 else 96)


def build_fp8(**flags):
    """Return the kernel in fp8 compiled for compute capability 9.0."""
    dim, box = flags["DIM"], flags["BOX"]
    boxes = {"q": (64, dim), "k": (box, dim), "v": (dim, box)}
    tile = {width: repr(NVMMASharedLayout(width, 8, 4)) for _, width in boxes.values()}
    types = {
        f"{n}_desc": f"tensordesc<fp8e4nv[1, 1, {rows}, {width}],{tile[width]}>"
        for n, (rows, width) in boxes.items()
    }
    types["out_desc"] = f"tensordesc<bf16[1, 1, 64, 64],{NVMMASharedLayout(128, 16, 4)!r}>"
    types["scales_desc"] = f"tensordesc<fp32[1, 32],{NVMMASharedLayout(0, 32, 2)!r}>"
    types |= {"out_ptr": "*bf16", "scale": "fp32"}
    types |= dict.fromkeys(("lse_ptr", "q_scale_ptr", "shift_ptr"), "*fp32")
    constants = {"Q_SIZE": 128, "BLOCK_N": 128, "STAGES": 4, "TERMS": 2, **flags}
    return assemble(_hopper_fp8.hopper_kernel, types, constants, 168)


def assemble(kernel, types, constants, registers):
    """Return `kernel` compiled; types: of parameters that are no int32 or pointers to such."""
    names = list(inspect.signature(kernel.fn).parameters)
    for name in names:
        if name.endswith("_desc") and name not in types:
            constants[name] = None
    signature = {
        n: "constexpr" if n in constants else types.get(n, "*i32" if n.endswith("_ptr") else "i32")
        for n in names
    }
    source = GluonASTSource(
        kernel, signature, {(names.index(n),): value for n, value in constants.items()}
    )
    options = {"num_warps": 4, "maxnreg": registers}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


if __name__ == "__main__":
    kernels = [build(**x) for x in VARIANTS] + [build_fp8(**x) for x in FP8_VARIANTS]
    for made in kernels:
        words = ("wgmma.mma_async", "cp.async.bulk.tensor", "setmaxnreg")
        print(json.dumps({word: made.asm["ptx"].count(word) for word in words}), flush=True)
