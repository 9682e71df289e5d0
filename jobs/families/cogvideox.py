"""CogVideoX 1.0 (2b and 5b), text to video."""

from __future__ import annotations

import math
from collections.abc import Mapping

from jobs.errors import CannotRunHere
from jobs.families.family import (
    Config,
    Diffusion,
    ModelDefaults,
    Shapes,
    always_text_tokens,
    no_flow_shift,
    require,
)
from jobs.geometry import ModelGeometry

#: CogVideoX's pipeline refuses a width or height that is not a multiple of this, in pixels.
_SIZE_MULTIPLE_PX = 8

#: Latent frames that the autoencoder decodes together: diffusers sets this, and no config says it.
DECODE_BATCH_LATENT_FRAMES = 2

_TRANSFORMER = (
    "in_channels",
    "num_attention_heads",
    "attention_head_dim",
    "text_embed_dim",
    "max_text_seq_length",
    "patch_size",
    "sample_width",
    "sample_height",
)
_VAE = ("latent_channels", "layers_per_block", "temporal_compression_ratio", "block_out_channels")


class CogVideoX:
    """`CogVideoXPipeline`: a transformer that sees text and video as one sequence, a causal
    autoencoder that decodes two latent frames at a time, T5.

    Guidance is the same at every step: that is the pipeline's own default (its call's
    ``use_dynamic_cfg`` is off). Prompts are always padded to the tokens that the transformer was
    trained with, since it sees the padding too."""

    name = "cogvideox"
    pipeline = "CogVideoXPipeline"
    marks: Mapping[str, bool] = {}
    denoiser = "transformer"
    classes: Mapping[str, str] = {
        "transformer": "CogVideoXTransformer3DModel",
        "vae": "AutoencoderKLCogVideoX",
    }
    components: tuple[str, ...] = ("transformer", "vae", "text_encoder")
    tokenizer_files: tuple[tuple[str, ...], ...] = (("tokenizer.json",), ("spiece.model",))
    diffusion: Diffusion = "snr_shifted"
    accelerations: tuple[str, ...] = ("slicing", "adaptive", "rehash", "fast_attention")
    batches_branches = True
    joint_text = True
    decodes_in_float32 = False
    defaults = ModelDefaults(
        size=(720, 480),
        fps=8,
        steps=50,
        guidance=(6.0,),
        text_tokens=226,
        window_latent_frames=13,
        overlap_latent_frames=4,
    )

    def refuse(self, index: Config) -> None:
        pass  # image to video, control and editing have pipelines of other names

    def geometry(self, configs: Mapping[str, Config], defaults: ModelDefaults) -> ModelGeometry:
        transformer, vae, text = (configs[name] for name in self.components)
        require(transformer, "transformer/config.json", _TRANSFORMER)
        require(vae, "vae/config.json", _VAE, ("block_out_channels",))
        require(text, "text_encoder/config.json", ("d_model",))
        _check_built(transformer)
        _check_fit(transformer, vae, text)
        if defaults.flow_shift is not None:
            raise CannotRunHere("longtake.json: flow_shift: this family's models have none")
        if defaults.stage_positions or len(defaults.pyramid_steps) > 1:
            raise CannotRunHere(
                "longtake.json: pyramid_steps and stage_positions: a pyramid is not built for "
                "this family"
            )
        scale = 2 ** (len(vae["block_out_channels"]) - 1)
        return ModelGeometry(
            family=self.name,
            latent_channels=transformer["in_channels"],
            spatial_scale=scale,
            temporal_scale=vae["temporal_compression_ratio"],
            size_multiple=math.lcm(_SIZE_MULTIPLE_PX, scale * transformer["patch_size"]),
            window_latent_frames=defaults.window_latent_frames,
            overlap_latent_frames=defaults.overlap_latent_frames,
            decode_context_latent_frames=decode_context(vae),
            experts=1,
            text_tokens=transformer["max_text_seq_length"],
            text_dim=transformer["text_embed_dim"],
            decode_batch_latent_frames=DECODE_BATCH_LATENT_FRAMES,
            refused=(
                no_flow_shift(self.name),
                always_text_tokens(transformer["max_text_seq_length"]),
            ),
        )

    def tensors(self, configs: Mapping[str, Config]) -> dict[str, Shapes]:
        return {}

    def longest_window(self, configs: Mapping[str, Config], stride: int) -> int:
        """Positions are computed for whatever length a window has, counted from its start."""
        return 1 << 20


def decode_context(vae: Config) -> int:
    """Latent frames before a piece that its pixels depend on.

    Key insight: between batches nothing passes but what each causal convolution keeps, the last
    two frames of its own input. So a batch reaches as many batches on as there are convolutions in
    a row: of time width 3, since those of width 1 and the upsamplers keep nothing. Statistics of
    group normalisation are taken over a batch, which makes all its frames depend on each other,
    but on no other batch.
    """
    middle = 2 * 2
    levels = 2 * (vae["layers_per_block"] + 1) * len(vae["block_out_channels"])
    return int((1 + middle + levels + 1) * DECODE_BATCH_LATENT_FRAMES)


def _check_built(transformer: Config) -> None:
    """Raise CannotRunHere for a kind of CogVideoX that is not built."""
    if transformer.get("patch_size_t") is not None:
        found = transformer["patch_size_t"]
        raise CannotRunHere(
            f"transformer: patch_size_t {found} (CogVideoX 1.5) is not built; it must be null, as "
            "in CogVideoX-2b and CogVideoX-5b"
        )
    if transformer.get("ofs_embed_dim"):
        raise CannotRunHere("transformer: ofs_embed_dim (image to video) is not built yet")
    if transformer.get("use_learned_positional_embeddings"):
        raise CannotRunHere(
            "transformer: use_learned_positional_embeddings (image to video) is not built; learned "
            "positions hold for one size and length only"
        )
    rotary = transformer.get("use_rotary_positional_embeddings")
    heads, width = transformer["num_attention_heads"], transformer["attention_head_dim"]
    named = "attention_head_dim" if rotary else "num_attention_heads * attention_head_dim"
    if (divided := width if rotary else heads * width) % 16:
        raise CannotRunHere(
            f"transformer: {named} is {divided}, which positions cannot share out over time, "
            "height and width; it must be a multiple of 16"
        )


def _check_fit(transformer: Config, vae: Config, text: Config) -> None:
    channels = transformer["in_channels"]
    out_channels = transformer.get("out_channels", 16)
    if not channels == out_channels == vae["latent_channels"]:
        raise CannotRunHere(
            f"transformer and vae do not fit: the transformer takes {channels} latent channels "
            f"and gives {out_channels}, the vae has {vae['latent_channels']}. Models that take "
            "more than noise and text (image to video, inpainting) are not built yet"
        )
    if text["d_model"] != transformer["text_embed_dim"]:
        raise CannotRunHere(
            f"text_encoder and transformer do not fit: d_model is {text['d_model']}, "
            f"text_embed_dim is {transformer['text_embed_dim']}"
        )
    ratio, levels = vae["temporal_compression_ratio"], len(vae["block_out_channels"])
    if ratio not in [2**doublings for doublings in range(1, levels)]:
        raise CannotRunHere(
            f"vae: temporal_compression_ratio is {ratio}, but {levels} levels can make only "
            f"{', '.join(str(2**doublings) for doublings in range(1, levels))}"
        )
    said = transformer.get("temporal_compression_ratio") or 4
    if said != ratio:
        raise CannotRunHere(
            f"transformer and vae do not fit: temporal_compression_ratio is {said} and {ratio}"
        )
