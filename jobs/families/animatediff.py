"""AnimateDiff: Stable Diffusion 1.x with motion modules, text to video."""

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

#: AnimateDiff's pipeline refuses a width or height that is not a multiple of this, in pixels.
_SIZE_MULTIPLE_PX = 8


#: How a folder comes about of the two that AnimateDiff is published as.
HOW_TO_SAVE = (
    "of a Stable Diffusion 1.x model (BASE) and a motion adapter, one folder is made once: "
    "longtake animatediff BASE ADAPTER FOLDER"
)


class AnimateDiff:
    """`AnimateDiffPipeline` as diffusers saves it: a `UNetMotionModel`, an autoencoder of single
    pictures, CLIP. Every latent frame is one pixel frame."""

    name = "animatediff"
    pipeline = "AnimateDiffPipeline"
    marks: Mapping[str, bool] = {}
    denoiser = "unet"
    classes: Mapping[str, str] = {"unet": "UNetMotionModel", "vae": "AutoencoderKL"}
    components: tuple[str, ...] = ("unet", "vae", "text_encoder")
    tokenizer_files: tuple[tuple[str, ...], ...] = (
        ("tokenizer.json",),
        ("vocab.json", "merges.txt"),
    )
    diffusion: Diffusion = "variance"
    accelerations: tuple[str, ...] = ("slicing", "adaptive", "rehash")
    batches_branches = True
    joint_text = False
    decodes_in_float32 = False
    defaults = ModelDefaults(
        size=(512, 512),
        fps=8,
        steps=25,
        guidance=(7.5,),
        text_tokens=77,
        window_latent_frames=16,
        overlap_latent_frames=4,
    )

    def refuse(self, index: Config) -> None:
        kind = (index.get("unet") or (None, None))[1]
        if kind != "UNetMotionModel":
            raise CannotRunHere(
                f"model_index.json: unet is {kind}; it must be a UNetMotionModel: {HOW_TO_SAVE}"
            )
        if any(index.get("image_encoder") or ()):
            raise CannotRunHere("model_index.json: image_encoder (IP-Adapter) is not built yet")

    def geometry(self, configs: Mapping[str, Config], defaults: ModelDefaults) -> ModelGeometry:
        unet, vae, text = configs["unet"], configs["vae"], configs["text_encoder"]
        lists = ("block_out_channels",)
        require(unet, "unet/config.json", ("in_channels", *lists), lists)
        require(vae, "vae/config.json", ("latent_channels", *lists), lists)
        require(text, "text_encoder/config.json", ("hidden_size", "max_position_embeddings"))
        self._check_fit(unet, vae, text)
        if defaults.flow_shift is not None:
            raise CannotRunHere("longtake.json: flow_shift: this family's models have none")
        if defaults.stage_positions:
            raise CannotRunHere(
                "longtake.json: stage_positions must be false, for this family counts the frames "
                "of each window by themselves"
            )
        scale = 2 ** (len(vae["block_out_channels"]) - 1)
        return ModelGeometry(
            family=self.name,
            latent_channels=unet["in_channels"],
            spatial_scale=scale,
            temporal_scale=1,
            size_multiple=math.lcm(_SIZE_MULTIPLE_PX, scale),
            window_latent_frames=defaults.window_latent_frames,
            overlap_latent_frames=defaults.overlap_latent_frames,
            decode_context_latent_frames=0,
            experts=1,
            text_tokens=text["max_position_embeddings"],
            text_dim=text["hidden_size"],
            refused=(
                no_flow_shift(self.name),
                always_text_tokens(text["max_position_embeddings"]),
            ),
        )

    def _check_fit(self, unet: Config, vae: Config, text: Config) -> None:
        channels = unet["in_channels"], unet.get("out_channels") or 4, vae["latent_channels"]
        if len(set(channels)) != 1:
            raise CannotRunHere(
                "unet and vae do not fit: the unet takes {} latent channels and gives {}, the vae "
                "has {}. Models that take more than noise and text are not built yet".format(
                    *channels
                )
            )
        width = unet.get("cross_attention_dim") or 1280
        if text["hidden_size"] != width:
            raise CannotRunHere(
                f"text_encoder and unet do not fit: hidden_size is {text['hidden_size']}, "
                f"cross_attention_dim is {width}"
            )
        if unet.get("addition_embed_type") or unet.get("time_cond_proj_dim"):
            raise CannotRunHere("unet: SDXL and LCM conditioning is not built yet")

    def tensors(self, configs: Mapping[str, Config]) -> dict[str, Shapes]:
        return {}

    def longest_window(self, configs: Mapping[str, Config], stride: int) -> int:
        """Motion modules have positions for so many frames, counted in each window."""
        return int(configs["unet"].get("motion_max_seq_length") or 32)
