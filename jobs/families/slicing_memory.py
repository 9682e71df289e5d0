"""How much memory a sliced model needs, from its config alone. Pure.

Every group of operators that slicing cuts (``accel.slicing``) holds some features whole and makes
intermediates that shrink with the slices; a model's peak is that of its worst group. Sizes are in
elements, of all guidance branches together. Counted are tensors, as ``accel.memory`` does: weights
come on top, and the allocator's rounding and workspaces inside operators.

What a slice's intermediates come to, in copies of its features, is read off diffusers' blocks: at
the product in a gated feed-forward live the projection to eight times the width, its two halves'
results, and four or five copies of what stands before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from jobs.attention_plan import AttentionPlan, Branch, is_windowed, shares_branches
from jobs.errors import CannotRunHere
from jobs.families.decoding_memory import Piece
from jobs.families.family import DTYPE_BYTES, Config
from jobs.families.hunyuan_video_memory import refining_bytes
from jobs.families.slicing_causal_memory import cogvideox_decoder, hunyuan_video_decoder
from jobs.families.slicing_groups import IN_AND_OUT, NOTHING_WHOLE, Group, Size, Whole
from jobs.families.slicing_ltx_memory import ltx_decoder
from jobs.families.slicing_wan_memory import wan_decoder
from jobs.families.unet_memory import blocks_of, levels_of

#: Copies of its features that live inside a slice, by what the group computes.
_SPATIAL_TRANSFORMER = 21
_MOTION_MODULE = 20
_TEMPORAL_RESNET = 10
_DECODER_RESNET = 4
_PICTURE_DECODER = 6
_LTX_TOKENS = 11
_JOINT_TOKENS = 10
_HALF_TOKENS = 8  # of a transformer over tokens in half precision, if its feed-forward has no more

#: Live copies of a transformer's tokens while fast attention computes a layer's attention of the
#: whole: the block's input, queries, keys, values and what they give. What it keeps of that counts
#: with what goes with the tile.
_WHOLE = 5

#: More of them while it is windowed: blocks of keys and values with their masks, of which fake
#: tensors count 1.1 to 1.7. FlexAttention on a GPU has 3 to 3.8, by its code: queries, keys and
#: values in order of boxes, and places that are empty.
_WINDOW = 2.6

#: And where the text has padding: all without it, and what they give.
_WITHOUT_PADDING = 4

#: What Stable Video Diffusion's transformer holds: input and output, and the features between.
_TRANSFORMER_WHOLE = 3

#: More slices than this are never looked for: a frame or a few tokens each.
MOST_SLICES = 1024


def _unet(
    config: Config, latent_size: Size, branches: int, dtype: str, text_tokens: int, whole: Whole
) -> Iterator[Group]:
    """Skip connections gather on the way down and go on the way up; a block's input lives as long
    as the block."""
    frames, height, width = latent_size
    levels = levels_of(config, branches * frames, height * width)
    sizes = levels.sizes
    motion = config["_class_name"] == "UNetMotionModel"

    def group(held: float, level: int, attends: bool) -> Group:
        whole = _TRANSFORMER_WHOLE if attends and not motion else IN_AND_OUT
        inside = _SPATIAL_TRANSFORMER if attends else _MOTION_MODULE
        if not (attends or motion):
            inside = _TEMPORAL_RESNET
        where = levels.shares[level], levels.lengths[level]
        return Group(held + whole * sizes[level], inside * sizes[level], *where)

    for skips, level, attends, rises in blocks_of(levels):
        below = sizes[min(level + 1, len(sizes) - 1)] if rises else 0  # upsampled slice by slice
        yield group(skips + below, level, attends)


def _wan(
    config: Config, latent_size: Size, branches: int, dtype: str, text_tokens: int, whole: Whole
) -> Iterator[Group]:
    """A block holds its input and output, keys and values, the text with its keys and values, and
    every token's rotary embedding. In half precision its slices are computed in float32 between
    its large products; and the last norm, which is not cut, holds its input once as it is and twice
    in float32. Keys and values of the text are not cut either. Wan 2.2's 5B takes no more than the
    others: a time that all tokens share is told once."""
    frames, height, width = latent_size
    _, patch_height, patch_width = config["patch_size"]
    tokens = frames * (height // patch_height) * (width // patch_width)
    features = config["num_attention_heads"] * config["attention_head_dim"]
    size = branches * tokens * features
    half = DTYPE_BYTES[dtype] < 4
    rotary = 2 * tokens * config["attention_head_dim"] * (2 if half else 1)
    text = branches * text_tokens * features
    inside = branches * tokens * (2 * config["ffn_dim"] + 2 * features)
    inside = max(_HALF_TOKENS * size, inside) if half else inside
    yield Group(4 * size + rotary + 3 * text, inside, lengths=(tokens,))
    yield _text_keys(3 * size + rotary, text, dtype)
    yield Group(whole.copies * size + rotary + text, 0)
    if half:
        yield Group(5 * size + rotary + text, 0)


def _text_keys(held: float, text: float, dtype: str) -> Group:
    """Cross-attention's keys and values, beside what is held of the video: the text, both, and the
    keys while they are normalised, in float32 whatever the dtype."""
    copies = 4 if DTYPE_BYTES[dtype] == 4 else 8
    return Group(held + copies * text, 0)


def _ltx(
    config: Config, latent_size: Size, branches: int, dtype: str, text_tokens: int, whole: Whole
) -> Iterator[Group]:
    """As Wan's block; the rotary embedding is as wide as the features, twice, in float32."""
    frames, height, width = latent_size
    patch, patch_frames = config.get("patch_size") or 1, config.get("patch_size_t") or 1
    tokens = branches * (frames // patch_frames) * (height // patch) * (width // patch)
    features = config["num_attention_heads"] * config["attention_head_dim"]
    size, text = tokens * features, branches * text_tokens * features
    rotary = 2 * size * (4 / DTYPE_BYTES[dtype])
    lengths = (tokens // branches,)
    yield Group(4 * size + rotary + 3 * text, _LTX_TOKENS * size, lengths=lengths)
    yield _text_keys(3 * size + rotary, text, dtype)
    yield Group(whole.copies * size + rotary + text, 0)


def _cogvideox(
    config: Config, latent_size: Size, branches: int, dtype: str, text_tokens: int, whole: Whole
) -> Iterator[Group]:
    """As Wan's block, of video and text as one sequence. The text is a slice of its own."""
    frames, height, width = latent_size
    patch, patch_frames = config["patch_size"], config.get("patch_size_t") or 1
    tokens = (frames // patch_frames) * (height // patch) * (width // patch)
    features = branches * config["num_attention_heads"] * config["attention_head_dim"]
    held = 4 * features * (tokens + config["max_text_seq_length"])
    yield Group(held / 4 * whole.copies, 0)
    yield Group(held, _JOINT_TOKENS * features * tokens, lengths=(tokens,))
    yield Group(held, _JOINT_TOKENS * features * config["max_text_seq_length"])


def _hunyuan_video(
    config: Config, latent_size: Size, branches: int, dtype: str, text_tokens: int, whole: Whole
) -> Iterator[Group]:
    """As CogVideoX's block; a slice's intermediates are those of feed-forward beside attention. The
    rotary embedding of every token is in float32. Before the blocks the text is refined, whole."""
    frames, height, width = latent_size
    patch, patch_frames = config["patch_size"], config["patch_size_t"]
    tokens = (frames // patch_frames) * (height // patch) * (width // patch)
    features = branches * config["num_attention_heads"] * config["attention_head_dim"]
    rotary = 2 * tokens * config["attention_head_dim"] * (4 / DTYPE_BYTES[dtype])
    held = 4 * features * (tokens + text_tokens) + rotary
    without_padding = _WITHOUT_PADDING if whole.windowed else 0
    copies = whole.copies + without_padding
    yield Group(copies * features * (tokens + text_tokens) + rotary, 0)
    inside = (2 * config.get("mlp_ratio", 4.0) + 2) * features
    yield Group(held, inside * tokens, lengths=(tokens,))
    yield Group(held, inside * text_tokens)
    refining = branches * refining_bytes(config, tokens, text_tokens, dtype)
    yield Group(refining / DTYPE_BYTES[dtype], 0)


def _temporal_decoder(
    config: Config, latent_size: Size, branches: int, dtype: str, text_tokens: int, whole: Whole
) -> Iterator[Group]:
    """The finest level, after the input that it upsamples."""
    frames, height, width = latent_size
    widths = config["block_out_channels"]
    scale = 4 ** (len(widths) - 1)
    levels = levels_of(config, frames, height * width * scale)
    for level, size in enumerate(levels.sizes):
        before = levels.sizes[min(level + 1, len(widths) - 1)]
        held = before + IN_AND_OUT * size
        where = levels.shares[level], levels.lengths[level]
        yield Group(held, _DECODER_RESNET * size, *where)


def _decoder(
    config: Config, latent_size: Size, branches: int, dtype: str, text_tokens: int, whole: Whole
) -> Iterator[Group]:
    """From end to end one group over frames."""
    frames, height, width = latent_size
    widths = config["block_out_channels"]
    pixels = frames * height * width * 4 ** (len(widths) - 1)
    # what comes up from the level below has its width, at this level's size
    wide = max(max(widths[level : level + 2]) / 4**level for level in range(len(widths)))
    colours = pixels * config.get("out_channels", 3)
    yield Group(colours, _PICTURE_DECODER / 2 * wide * pixels, lengths=(frames,))


def _ltx_decoder(
    config: Config, latent_size: Size, branches: int, dtype: str, text_tokens: int, whole: Whole
) -> Iterator[Group]:
    """Of a whole shot."""
    return ltx_decoder(config, Piece(*latent_size), dtype)


_GROUPS: dict[str, Callable[[Config, Size, int, str, int, Whole], Iterator[Group]]] = {
    "AutoencoderKL": _decoder,
    "AutoencoderKLCogVideoX": cogvideox_decoder,
    "AutoencoderKLHunyuanVideo": hunyuan_video_decoder,
    "AutoencoderKLLTXVideo": _ltx_decoder,
    "AutoencoderKLTemporalDecoder": _temporal_decoder,
    "AutoencoderKLWan": wan_decoder,
    "CogVideoXTransformer3DModel": _cogvideox,
    "HunyuanVideoTransformer3DModel": _hunyuan_video,
    "LTXVideoTransformer3DModel": _ltx,
    "UNetMotionModel": _unet,
    "UNetSpatioTemporalConditionModel": _unet,
    "WanTransformer3DModel": _wan,
}


#: Autoencoders whose decoding slicing cuts in a render; a last kind decodes pictures one by one.
DECODERS = (
    "AutoencoderKLCogVideoX",
    "AutoencoderKLHunyuanVideo",
    "AutoencoderKLLTXVideo",
    "AutoencoderKLTemporalDecoder",
    "AutoencoderKLWan",
)


def sliced_bytes(
    config: Config,
    latent_size: Size,
    dtype: str,
    slices: int,
    *,
    text_tokens: int,
    branches: int = 2,
    weights_bytes: int = 0,
    whole: Whole = NOTHING_WHOLE,
) -> int:
    """Estimate of a model's peak while it runs in ``slices`` (2 or more): its weights and what it
    makes. ``config`` is its config.json, ``latent_size`` (frames, height, width) of a tile;
    ``branches`` go through it as one batch, each with ``text_tokens`` (0: a model without text; how
    many CogVideoX takes, its config says). ``whole``: as ``whole_attention`` gives it, where there
    is fast attention; what that keeps is not counted. Raises CannotRunHere for a model that slicing
    does not know."""
    groups = _GROUPS.get(config["_class_name"])
    if groups is None:
        raise CannotRunHere(
            f"slicing does not know {config['_class_name']}; it knows: {', '.join(sorted(_GROUPS))}"
        )
    found = groups(config, latent_size, branches, dtype, text_tokens, whole)
    return weights_bytes + _bytes(found, dtype, slices)


def sliced_decoding_bytes(config: Config, piece: Piece, dtype: str, slices: int) -> int:
    """The same of what decoding a piece makes: ``decoding_bytes`` of a decoder that runs in slices.
    ``config``: of one of ``DECODERS``."""
    if config["_class_name"] == "AutoencoderKLLTXVideo":  # which reads what is around a piece, too
        return _bytes(ltx_decoder(config, piece, dtype), dtype, slices)
    size = piece.frames, piece.height, piece.width
    return sliced_bytes(config, size, dtype, slices, text_tokens=0, branches=1)


def _bytes(groups: Iterator[Group], dtype: str, slices: int) -> int:
    return int(max(group.elements(slices) for group in groups) * DTYPE_BYTES[dtype])


def whole_attention(plan: AttentionPlan, step: int, branches: Collection[Branch]) -> Whole:
    """Of a plan's step: nothing where all is left to the slices. A full layer counts as whole if
    the plan changes anything, and as windowed if it has windows: its residual may be kept."""
    strategies = {strategy for row in plan.rows for strategy in row}
    row = set(plan.rows[step]) - {"share_steps"}
    if strategies == {"full"} or not row:
        return NOTHING_WHOLE
    windowed = any(map(is_windowed, strategies))
    more = _WHOLE - 1 + (_WINDOW if windowed else 0)
    parts = (2 if "both" in branches and shares_branches(strategy) else 1 for strategy in row)
    return Whole(1 + more / min(parts), windowed)


def fewest_slices(peak_bytes: Callable[[int], int], budget_bytes: int) -> int | None:
    """The fewest slices, 2 or more, whose peak fits into a byte budget; None where none does.
    ``peak_bytes`` gives it for a number of slices, as ``sliced_bytes`` does."""
    for count in range(2, MOST_SLICES + 1):
        if peak_bytes(count) <= budget_bytes:
            return count
    return None
