"""Stable Video Diffusion: image to video."""

from __future__ import annotations

import math
from collections.abc import Mapping

from jobs.errors import CannotRunHere
from jobs.families.family import (
    Config,
    Diffusion,
    ModelDefaults,
    Shapes,
    no_flow_shift,
    require,
)
from jobs.geometry import ModelGeometry

#: The pipeline refuses a width or height that is not a multiple of this, in pixels.
_SIZE_MULTIPLE_PX = 8

#: The pipeline shows the image encoder pictures of this size, in pixels a side.
_ENCODER_PX = 224

#: What the UNet is told beside the image: frame rate, amount of motion, noise on the image.
_TIME_IDS = 3

#: Fields of a job that it has no use for.
_TEXT = ("prompt", "negative", "text_tokens")
_LAYOUT = ("window_latent_frames", "overlap_latent_frames", "repeated_noise")
_NO_TEXT = "this model reads no text, so it would have no effect"
_ONE_WINDOW = "this model makes each shot as one window, so it would have no effect"


class SVD:
    """`StableVideoDiffusionPipeline`: a `UNetSpatioTemporalConditionModel`, an autoencoder whose
    decoder looks over all frames at once, CLIP's image encoder. Every latent frame is one pixel
    frame. A shot is one window of at most the ``num_frames`` of the UNet's config."""

    name = "svd"
    pipeline = "StableVideoDiffusionPipeline"
    marks: Mapping[str, bool] = {}
    denoiser = "unet"
    classes: Mapping[str, str] = {
        "unet": "UNetSpatioTemporalConditionModel",
        "vae": "AutoencoderKLTemporalDecoder",
    }
    components: tuple[str, ...] = ("unet", "vae", "image_encoder")
    tokenizer_files: tuple[tuple[str, ...], ...] = ()
    diffusion: Diffusion = "edm"
    accelerations: tuple[str, ...] = ("slicing", "adaptive", "rehash")
    batches_branches = True
    joint_text = False
    decodes_in_float32 = False
    defaults = ModelDefaults(
        size=(1024, 576),
        fps=7,
        steps=25,
        guidance=(3.0,),  # of the last frame; the first has 1
        text_tokens=1,
        window_latent_frames=14,
        overlap_latent_frames=0,
    )

    def refuse(self, index: Config) -> None:
        kind = (index.get("unet") or (None, None))[1]
        if kind != "UNetSpatioTemporalConditionModel":
            raise CannotRunHere(
                f"model_index.json: unet is {kind}; it must be a UNetSpatioTemporalConditionModel"
            )

    def geometry(self, configs: Mapping[str, Config], defaults: ModelDefaults) -> ModelGeometry:
        unet, vae = configs["unet"], configs["vae"]
        lists = ("block_out_channels",)
        numbers = ("in_channels", "out_channels", "num_frames", "cross_attention_dim")
        added = ("addition_time_embed_dim", "projection_class_embeddings_input_dim")
        require(unet, "unet/config.json", (*numbers, *added, *lists), lists)
        require(vae, "vae/config.json", ("latent_channels", *lists), lists)
        self._check_fit(unet, vae)
        self._check_encoder(unet, configs["image_encoder"])
        self._check_sidecar(unet, defaults)
        scale = 2 ** (len(vae["block_out_channels"]) - 1)
        return ModelGeometry(
            family=self.name,
            latent_channels=vae["latent_channels"],
            spatial_scale=scale,
            temporal_scale=1,
            size_multiple=math.lcm(_SIZE_MULTIPLE_PX, scale),
            window_latent_frames=unet["num_frames"],
            overlap_latent_frames=0,
            decode_context_latent_frames=0,
            experts=1,
            text_tokens=1,
            text_dim=unet["cross_attention_dim"],
            from_image=True,
            single_window=True,
            refused=(
                *((name, _NO_TEXT) for name in _TEXT),
                *((name, _ONE_WINDOW) for name in _LAYOUT),
                no_flow_shift(self.name),
                ("loras", "adapters of this family's models are not built yet"),
            ),
        )

    def _check_fit(self, unet: Config, vae: Config) -> None:
        latent = vae["latent_channels"]
        if (unet["in_channels"], unet["out_channels"]) != (2 * latent, latent):
            raise CannotRunHere(
                f"unet and vae do not fit: the unet takes {unet['in_channels']} channels and gives "
                f"{unet['out_channels']}; with a vae of {latent} it must take {2 * latent}, noise "
                f"and image, and give {latent}"
            )
        told = _TIME_IDS * unet["addition_time_embed_dim"]
        if unet["projection_class_embeddings_input_dim"] != told:
            raise CannotRunHere(
                "unet: projection_class_embeddings_input_dim is "
                f"{unet['projection_class_embeddings_input_dim']}; frame rate, motion and noise "
                f"need {told}"
            )

    def _check_encoder(self, unet: Config, encoder: Config) -> None:
        # What transformers leaves out of a config is as in CLIP's first model.
        width, side = encoder.get("projection_dim", 512), encoder.get("image_size", 224)
        if width != unet["cross_attention_dim"]:
            raise CannotRunHere(
                f"image_encoder and unet do not fit: projection_dim is {width}, "
                f"cross_attention_dim is {unet['cross_attention_dim']}"
            )
        if side != _ENCODER_PX:
            raise CannotRunHere(
                f"image_encoder: image_size is {side}; the pipeline gives it {_ENCODER_PX} px"
            )

    def _check_sidecar(self, unet: Config, defaults: ModelDefaults) -> None:
        if defaults.flow_shift is not None:
            raise CannotRunHere("longtake.json: flow_shift: this family's models have none")
        if defaults.stage_positions or len(defaults.pyramid_steps) > 1:
            raise CannotRunHere("longtake.json: this family's models have no pyramid")
        frames = unet["num_frames"]
        if defaults.window_latent_frames not in (self.defaults.window_latent_frames, frames):
            raise CannotRunHere(
                f"longtake.json: window_latent_frames must be {frames}, as unet/config.json says"
            )

    def tensors(self, configs: Mapping[str, Config]) -> dict[str, Shapes]:
        return {}

    def longest_window(self, configs: Mapping[str, Config], stride: int) -> int:
        """The UNet compares all frames of its clip, which it was trained with so many of."""
        return int(configs["unet"]["num_frames"])
