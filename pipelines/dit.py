"""DiT, PixArt and Hunyuan-DiT: pictures of few tokens, text in its own cross-attention."""

from dit_sparse.integrations.adapters import Adapter
from dit_sparse.pipelines._adapter import drop_in
from dit_sparse.pipelines._sizes import picture

ADAPTERS = (
    Adapter(
        classes=("DiTTransformer2DModel", "PixArtTransformer2DModel"),
        attention=r"transformer_blocks\.\d+\.attn1",
        sizes=picture,
    ),
    Adapter(
        classes=("HunyuanDiT2DModel",),
        attention=r"blocks\.\d+\.attn1",
        sizes=picture,
    ),
)

PIPELINES = {
    "SparseDiTPipeline": "DiTPipeline",
    "SparsePixArtAlphaPipeline": "PixArtAlphaPipeline",
    "SparsePixArtSigmaPipeline": "PixArtSigmaPipeline",
    "SparseHunyuanDiTPipeline": "HunyuanDiTPipeline",
    "SparseHunyuanDiTControlNetPipeline": "HunyuanDiTControlNetPipeline",
}
__getattr__ = drop_in(__name__, PIPELINES)
