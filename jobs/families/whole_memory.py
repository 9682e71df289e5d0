"""How much memory an unsliced denoiser needs, from its config alone. Pure.

A model's peak falls on one of a few moments of its block, which of them its shape and dtype decide.
Each is what lives at once then, read off diffusers' code, in elements of the denoiser's dtype and
of all guidance branches together. Sliced models run other code (``accel.slicing``), and have groups
of their own: ``slicing_memory``. Counted are tensors, as ``accel.memory`` does, with attention
fused: weights come on top, and the allocator's rounding and workspaces inside operators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from jobs.families.family import DTYPE_BYTES, Config, float32_elements
from jobs.families.hunyuan_video_memory import refining_bytes
from jobs.families.slicing_groups import Size
from jobs.families.unet_memory import unet_moments


def whole_bytes(
    config: Config, latent_size: Size, dtype: str, *, text_tokens: int, branches: int = 2
) -> int:
    """Estimate of what a denoiser makes at its peak while it runs as diffusers has it. ``config``
    is its config.json, ``latent_size`` (frames, height, width) of a tile; ``branches`` go through
    it as one batch, each with ``text_tokens``, of which a UNet holds next to nothing."""
    moments = _MOMENTS[config["_class_name"]]
    elements = max(moments(config, latent_size, branches, dtype, text_tokens))
    return int(elements * DTYPE_BYTES[dtype])


def _normed(dtype: str) -> int:
    """Copies of what a root-mean-square norm makes beside its input: that scaled, and with weights;
    in half precision its input in float32, too, and all in that."""
    return 2 if float32_elements(dtype) == 1 else 3 * float32_elements(dtype)


def _turned(dtype: str) -> int:
    """Copies of what turning queries or keys by their places makes beside them: their halves
    changed over, both products and, of those in float32, the sum or what it takes."""
    return 1 + 3 * float32_elements(dtype)


#: Features of a token's own time: those that the last norm takes, and six that every block takes,
#: which it adds to its own in float32.
_TIMES, _TIMES_OF_BLOCK = 7, 6


def _wan(
    config: Config, latent_size: Size, branches: int, dtype: str, text_tokens: int
) -> Iterator[float]:
    """In feed-forward: a block's input, both attentions' result, that normalised. In attention:
    what it normalised, queries, keys and values; what self-attention gave lives on in that to the
    text. Queries and keys are normalised over all heads. Of Wan 2.2's 5B every token has times of
    its own, which take most of it."""
    frames, height, width = latent_size
    _, patch_height, patch_width = config["patch_size"]
    tokens = branches * frames * (height // patch_height) * (width // patch_width)
    features = config["num_attention_heads"] * config["attention_head_dim"]
    size, text = tokens * features, branches * text_tokens * features
    held = text + 2 * tokens / branches * config["attention_head_dim"] * float32_elements(dtype)
    normed = _normed(dtype)
    if config.get("expand_timesteps"):
        in_float32 = _TIMES_OF_BLOCK * float32_elements(dtype) * size
        held += _TIMES * size + in_float32
        yield held + size + (in_float32 if float32_elements(dtype) > 1 else 0)  # before they add up
    yield held + 4 * size + 2 * tokens * config["ffn_dim"]
    yield held + (6 + 1.5 * float32_elements(dtype)) * size  # queries and keys turned, by halves
    yield held + (5 + normed) * size + 2 * text  # queries to the text, beside its keys and values
    yield held + 5 * size + (2 + normed) * text  # its keys


def _ltx(
    config: Config, latent_size: Size, branches: int, dtype: str, text_tokens: int
) -> Iterator[float]:
    """As Wan's. The rotary embedding is as wide as the features, twice."""
    frames, height, width = latent_size
    patch, patch_frames = config.get("patch_size") or 1, config.get("patch_size_t") or 1
    tokens = branches * (frames // patch_frames) * (height // patch) * (width // patch)
    features = config["num_attention_heads"] * config["attention_head_dim"]
    size, text = tokens * features, branches * text_tokens * features
    held = text + 2 * size * float32_elements(dtype)
    normed = _normed(dtype)
    yield held + (4 + 2 * 4) * size
    yield held + (5 + _turned(dtype)) * size
    yield held + (5 + normed) * size + 2 * text
    yield held + 5 * size + (2 + normed) * text


def _cogvideox(
    config: Config, latent_size: Size, branches: int, dtype: str, text_tokens: int
) -> Iterator[float]:
    """Video and text are one sequence, which feed-forward takes to four times its width and back.
    Only the video's queries and keys are turned, where positions are rotary."""
    frames, height, width = latent_size
    patch, patch_frames = config["patch_size"], config.get("patch_size_t") or 1
    tokens = (frames // patch_frames) * (height // patch) * (width // patch)
    features = branches * config["num_attention_heads"] * config["attention_head_dim"]
    video, both = features * tokens, features * (tokens + config["max_text_seq_length"])
    rotary = 0
    if config.get("use_rotary_positional_embeddings"):
        rotary = 2 * tokens * config["attention_head_dim"] * float32_elements(dtype)
        yield rotary + 5 * both + (1 + _turned(dtype)) * video
    yield rotary + (4 + 2 * 4) * both


def _hunyuan_video(
    config: Config, latent_size: Size, branches: int, dtype: str, text_tokens: int
) -> Iterator[float]:
    """Video and text are one sequence. In a block of one stream feed-forward's result waits while
    attention runs; then both are joined and projected. Before the blocks the text is refined."""
    frames, height, width = latent_size
    patch, patch_frames = config["patch_size"], config["patch_size_t"]
    tokens = branches * (frames // patch_frames) * (height // patch) * (width // patch)
    features = config["num_attention_heads"] * config["attention_head_dim"]
    video, both = features * tokens, features * (tokens + branches * text_tokens)
    rotary = 2 * tokens / branches * config["attention_head_dim"] * float32_elements(dtype)
    inside = config.get("mlp_ratio", 4.0)
    yield rotary + (inside + 7) * both + _turned(dtype) * video
    yield rotary + (inside + (inside + 1) + 7) * both
    refining = branches * refining_bytes(config, tokens // branches, text_tokens, dtype)
    yield refining / DTYPE_BYTES[dtype]


_MOMENTS: dict[str, Callable[[Config, Size, int, str, int], Iterator[float]]] = {
    "CogVideoXTransformer3DModel": _cogvideox,
    "HunyuanVideoTransformer3DModel": _hunyuan_video,
    "LTXVideoTransformer3DModel": _ltx,
    "UNetMotionModel": unet_moments,
    "UNetSpatioTemporalConditionModel": unet_moments,
    "WanTransformer3DModel": _wan,
}
