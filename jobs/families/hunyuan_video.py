"""HunyuanVideo: text to video."""

from __future__ import annotations

import math
from collections.abc import Mapping

from jobs.errors import CannotRunHere
from jobs.families.family import Config, Diffusion, ModelDefaults, Shapes, require
from jobs.geometry import ModelGeometry

#: The decoder's tiles in time, as diffusers has them, in pixel frames of the shot: a tile's length
#: beside its first frame, and how far the next one begins behind it.
TILE_PX_FRAMES, TILE_STRIDE_PX_FRAMES = 16, 12

#: Frame rate of what it was trained with; the pipeline writes none.
_FPS = 24

#: Positions are counted anew for every window, as far as it reaches: this is a job's own limit.
_LONGEST_WINDOW = 4096

_DISTILLED = "guidance is built into this model, which reads no negative prompt for it"


class HunyuanVideo:
    """`HunyuanVideoPipeline`: a causal video autoencoder that decodes tiles in time, a transformer
    with rotary positions, Llama and CLIP.

    A model with ``guidance_embeds`` is told its guidance and runs once a step: a job's guidance is
    the pipeline's ``guidance_scale``. Any other runs twice: then it is ``true_cfg_scale``.
    """

    name = "hunyuan-video"
    pipeline = "HunyuanVideoPipeline"
    marks: Mapping[str, bool] = {}
    denoiser = "transformer"
    classes: Mapping[str, str] = {
        "transformer": "HunyuanVideoTransformer3DModel",
        "vae": "AutoencoderKLHunyuanVideo",
    }
    components: tuple[str, ...] = ("transformer", "vae", "text_encoder", "text_encoder_2")
    tokenizer_files: tuple[tuple[str, ...], ...] = (
        ("tokenizer.json",),
        ("vocab.json", "merges.txt"),
    )
    diffusion: Diffusion = "flow"
    accelerations: tuple[str, ...] = ("slicing", "adaptive", "rehash", "fast_attention")
    batches_branches = False
    joint_text = True
    decodes_in_float32 = False
    defaults = ModelDefaults(
        size=(1280, 720),
        fps=_FPS,
        steps=50,
        guidance=(6.0,),
        text_tokens=256,
        window_latent_frames=33,
        overlap_latent_frames=8,
    )

    def refuse(self, index: Config) -> None:
        kind = (index.get("transformer") or (None, None))[1]
        if kind != "HunyuanVideoTransformer3DModel":
            raise CannotRunHere(
                f"model_index.json: transformer is {kind}; it must be a "
                "HunyuanVideoTransformer3DModel"
            )

    def geometry(self, configs: Mapping[str, Config], defaults: ModelDefaults) -> ModelGeometry:
        transformer, vae = configs["transformer"], configs["vae"]
        numbers = ("in_channels", "out_channels", "patch_size", "patch_size_t")
        widths = ("num_attention_heads", "attention_head_dim")
        text = ("text_embed_dim", "pooled_projection_dim")
        require(transformer, "transformer/config.json", (*numbers, *widths, *text))
        lists = ("block_out_channels",)
        ratios = ("spatial_compression_ratio", "temporal_compression_ratio")
        require(vae, "vae/config.json", ("latent_channels", *ratios, *lists), lists)
        self._check_fit(configs)
        if defaults.stage_positions:
            raise CannotRunHere(
                "longtake.json: stage_positions must be false: this family counts the frames of "
                "each window by themselves"
            )
        r = vae["temporal_compression_ratio"]
        distilled = bool(transformer.get("guidance_embeds", True))
        return ModelGeometry(
            family=self.name,
            latent_channels=vae["latent_channels"],
            spatial_scale=vae["spatial_compression_ratio"],
            temporal_scale=r,
            size_multiple=math.lcm(
                16, vae["spatial_compression_ratio"] * transformer["patch_size"]
            ),
            window_latent_frames=defaults.window_latent_frames,
            overlap_latent_frames=defaults.overlap_latent_frames,
            # A piece begins where a tile's own frames do; the tile before is blended in.
            decode_context_latent_frames=TILE_STRIDE_PX_FRAMES // r + 1,
            decode_ahead_latent_frames=(TILE_PX_FRAMES - TILE_STRIDE_PX_FRAMES) // r,
            decode_stride_latent_frames=TILE_STRIDE_PX_FRAMES // r,
            experts=1,
            text_tokens=defaults.text_tokens,
            text_dim=transformer["text_embed_dim"],
            embedded_guidance=distilled,
            refused=(("negative", _DISTILLED),) if distilled else (),
        )

    def _check_fit(self, configs: Mapping[str, Config]) -> None:
        transformer, vae = configs["transformer"], configs["vae"]
        channels = transformer["in_channels"], transformer["out_channels"], vae["latent_channels"]
        if transformer.get("image_condition_type") or len(set(channels)) != 1:
            raise CannotRunHere(
                "transformer and vae do not fit: the transformer takes {} latent channels and "
                "gives {}, the vae has {}. Models that take more than noise and text (image to "
                "video) are not built yet".format(*channels)
            )
        if transformer["patch_size_t"] != 1 or vae["temporal_compression_ratio"] != 4:
            raise CannotRunHere(
                f"patch_size_t {transformer['patch_size_t']} and temporal_compression_ratio "
                f"{vae['temporal_compression_ratio']} are not built; only 1 and 4 are"
            )
        pairs = (
            ("text_encoder", "text_embed_dim", 4096),
            ("text_encoder_2", "pooled_projection_dim", 512),
        )
        for encoder, name, plain in pairs:  # transformers leaves plain values out of a config
            width = configs[encoder].get("hidden_size", plain)
            if width != transformer[name]:
                raise CannotRunHere(
                    f"{encoder} and transformer do not fit: hidden_size is {width}, {name} is "
                    f"{transformer[name]}"
                )

    def tensors(self, configs: Mapping[str, Config]) -> dict[str, Shapes]:
        return {}

    def longest_window(self, configs: Mapping[str, Config], stride: int) -> int:
        return _LONGEST_WINDOW
