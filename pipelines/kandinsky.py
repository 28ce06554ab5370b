"""Kandinsky 5 and 6: latents with channels last, text and sound in attention of their own."""

from dit_sparse.integrations.adapters import Adapter
from dit_sparse.pipelines._adapter import drop_in
from dit_sparse.pipelines._sizes import channels_last

ADAPTERS = (
    Adapter(
        classes=("Kandinsky5Transformer3DModel",),
        attention=r"visual_transformer_blocks\.\d+\.self_attention",
        sizes=channels_last,
        unset=("sparse_params",),
        needs="0.36.0",
        note="in the place of NABLA, where a checkpoint has that",
    ),
    Adapter(
        classes=("Kandinsky6Transformer3DModel",),
        attention=r"visual_transformer_blocks\.\d+\.video_dec_block\.self_attention",
        sizes=channels_last,
        needs="0.42.0",
    ),
)
REFUSED = {
    "Kandinsky6SRTransformer3DModel": "it has sparse attention of its own (NABLA, FlexAttention)"
}

PIPELINES = {
    "SparseKandinsky5T2VPipeline": "Kandinsky5T2VPipeline",
    "SparseKandinsky5I2VPipeline": "Kandinsky5I2VPipeline",
    "SparseKandinsky5T2IPipeline": "Kandinsky5T2IPipeline",
    "SparseKandinsky5I2IPipeline": "Kandinsky5I2IPipeline",
    "SparseKandinsky6TI2VAPipeline": "Kandinsky6TI2VAPipeline",
}
__getattr__ = drop_in(__name__, PIPELINES)
