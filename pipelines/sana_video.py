"""SANA-WM: most layers are linear recurrences, which are left; the others attend to the video by
softmax, once for the picture and once for the camera. SANA-Video has linear attention alone."""

from dit_sparse.integrations.adapters import Adapter
from dit_sparse.pipelines._adapter import drop_in
from dit_sparse.pipelines._sizes import volume

ADAPTERS = (
    Adapter(
        classes=("SanaWMTransformer3DModel",),
        attention=r"blocks\.\d+\.attn\.(cam_)?attn",
        kind=r"SanaWMSoftmax(Cam)?Attention",
        sizes=volume,
        mask="keys",
        needs="0.42.0",
        note="every fourth layer, as published; the others and the refiner are left as they are",
    ),
)
REFUSED = {
    "SanaVideoTransformer3DModel": "its self-attention is linear, so there is nothing to leave out"
}

PIPELINES = {"SparseSanaWMPipeline": "SanaWMPipeline"}
__getattr__ = drop_in(__name__, PIPELINES)
