"""Transformer classes of diffusers that sparse attention does not fit, and why."""

from dit_sparse.integrations.adapters import Adapter

ADAPTERS: tuple[Adapter, ...] = ()

AUDIO = "it makes sound: its tokens form no grid of rows and columns"
PART = "it is a part of a U-Net with few tokens, not a transformer of its own"

REFUSED = {
    "OmniGenTransformer2DModel": "text, pictures and result share one causal sequence, whose mask "
    "differs from token to token",
    "SanaTransformer2DModel": "its self-attention is linear, so there is nothing to leave out",
    "SanaWMLTX2RefinerTransformer3DModel": "it refines a few frames at a time, in a sliding window "
    "of kept keys",
    "PriorTransformer": "it makes one embedding from a few tokens",
    "AceStepTransformer1DModel": AUDIO,
    "LongCatAudioDiTTransformer": AUDIO,
    "MiniMaxMusic3RVQDepthDecoder": AUDIO,
    "MiniMaxMusic3Transformer1DModel": AUDIO,
    "StableAudioDiTModel": AUDIO,
    "StableAudio3DiTModel": AUDIO,
    "T5FilmDecoder": AUDIO,
    "RFD4ProteinaTransformer": "it makes proteins: its attention has a bias for every pair",
    "Transformer2DModel": PART,
    "DualTransformer2DModel": PART,
    "TransformerTemporalModel": PART,
    "TransformerSpatioTemporalModel": PART,
    "DreamLiteTransformer2DModel": PART,
    "UVit2DModel": "it makes pictures of a few hundred tokens",
}
