"""Every tensor that a Wan model must have, by name and shape, as its config files imply. Pure.

The names are those of diffusers' ``WanTransformer3DModel`` and ``AutoencoderKLWan`` and of
transformers' ``UMT5EncoderModel``; tests compare them with the models themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from jobs.errors import CannotRunHere
from jobs.families.family import Config, Shape, Shapes, require
from jobs.families.tensors import EMBED, SHARED

Tensor = tuple[str, Shape]


def expected_tensors(configs: Mapping[str, Config]) -> dict[str, Shapes]:
    """Component -> name -> shape. Raises CannotRunHere for a config that names none."""
    return {
        "transformer": dict(_transformer(configs["transformer"])),
        "vae": dict(_vae(configs["vae"])),
        "text_encoder": dict(_text_encoder(configs["text_encoder"])),
    }


def _whole(config: Config, name: str, default: int) -> int:
    """An optional setting; None stands for the default."""
    value = default if config.get(name) is None else config[name]
    if type(value) is not int or value < 1:
        raise CannotRunHere(f"config.json: {name} cannot be {value!r}")
    return value


def _layer(name: str, *shape: int) -> Iterator[Tensor]:
    """A convolution or a linear layer, with its bias."""
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


# -- the transformer


def _transformer(config: Config) -> Iterator[Tensor]:
    inner = config["num_attention_heads"] * config["attention_head_dim"]
    patch = tuple(config["patch_size"])
    out_channels = config.get("out_channels") or config["in_channels"]
    embedder = "condition_embedder"
    yield from _layer("patch_embedding", inner, config["in_channels"], *patch)
    yield from _layer(f"{embedder}.time_embedder.linear_1", inner, _whole(config, "freq_dim", 256))
    yield from _layer(f"{embedder}.time_embedder.linear_2", inner, inner)
    yield from _layer(f"{embedder}.time_proj", 6 * inner, inner)
    yield from _layer(f"{embedder}.text_embedder.linear_1", inner, config["text_dim"])
    yield from _layer(f"{embedder}.text_embedder.linear_2", inner, inner)
    for index in range(config["num_layers"]):
        yield from _block(f"blocks.{index}", config, inner)
    yield "scale_shift_table", (1, 2, inner)
    yield from _layer("proj_out", out_channels * math.prod(patch), inner)


def _block(name: str, config: Config, inner: int) -> Iterator[Tensor]:
    for attention in (f"{name}.attn1", f"{name}.attn2"):
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            yield from _layer(f"{attention}.{part}", inner, inner)
        yield f"{attention}.norm_q.weight", (inner,)
        yield f"{attention}.norm_k.weight", (inner,)
    if config.get("cross_attn_norm", True):
        yield from _layer(f"{name}.norm2", inner)
    yield from _layer(f"{name}.ffn.net.0.proj", config["ffn_dim"], inner)
    yield from _layer(f"{name}.ffn.net.2", inner, config["ffn_dim"])
    yield f"{name}.scale_shift_table", (1, 6, inner)


# -- the VAE


def _vae(config: Config) -> Iterator[Tensor]:
    if config.get("attn_scales"):
        raise CannotRunHere(f"vae: attn_scales {config['attn_scales']} is not built; it must be []")
    z_dim = config["z_dim"]
    yield from _encoder(config)
    yield from _layer("quant_conv", 2 * z_dim, 2 * z_dim, 1, 1, 1)
    yield from _layer("post_quant_conv", z_dim, z_dim, 1, 1, 1)
    yield from _decoder(config)


def _encoder(config: Config) -> Iterator[Tensor]:
    base, multiples = _whole(config, "base_dim", 96), config["dim_mult"]
    yield from _layer("encoder.conv_in", base, _whole(config, "in_channels", 3), 3, 3, 3)
    width, position = base, 0
    for level, multiple in enumerate(multiples):
        blocks = f"encoder.down_blocks.{level}.resnets" if _residual(config) else ""
        for index in range(_whole(config, "num_res_blocks", 2)):
            name = f"{blocks}.{index}" if blocks else f"encoder.down_blocks.{position}"
            yield from _resnet(name, width, base * multiple)
            width, position = base * multiple, position + 1
        if level < len(multiples) - 1:
            name = f"encoder.down_blocks.{level}.downsampler"
            name = name if blocks else f"encoder.down_blocks.{position}"
            yield from _layer(f"{name}.resample.1", width, width, 3, 3)
            if config["temperal_downsample"][level]:
                yield from _layer(f"{name}.time_conv", width, width, 3, 1, 1)
            position += 1
    yield from _ends("encoder", width, width, 2 * config["z_dim"])


def _decoder(config: Config) -> Iterator[Tensor]:
    base = _whole(config, "decoder_base_dim", _whole(config, "base_dim", 96))
    widths = [base * multiple for multiple in reversed(config["dim_mult"])]
    doublings = [*reversed(config["temperal_downsample"])]
    yield from _layer("decoder.conv_in", widths[0], config["z_dim"], 3, 3, 3)
    entering = widths[0]
    for level, width in enumerate(widths):
        name = f"decoder.up_blocks.{level}"
        for index in range(_whole(config, "num_res_blocks", 2) + 1):
            yield from _resnet(f"{name}.resnets.{index}", width if index else entering, width)
        if level < len(widths) - 1:
            name = f"{name}.upsampler" if _residual(config) else f"{name}.upsamplers.0"
            entering = width if _residual(config) else width // 2
            yield from _layer(f"{name}.resample.1", entering, width, 3, 3)
            if doublings[level]:
                yield from _layer(f"{name}.time_conv", 2 * width, width, 3, 1, 1)
    yield from _ends("decoder", widths[0], widths[-1], _whole(config, "out_channels", 3))


def _residual(config: Config) -> bool:
    return bool(config.get("is_residual"))


def _ends(part: str, middle: int, width: int, out_channels: int) -> Iterator[Tensor]:
    """The middle block, and what follows the last block."""
    yield from _resnet(f"{part}.mid_block.resnets.0", middle, middle)
    yield f"{part}.mid_block.attentions.0.norm.gamma", (middle, 1, 1)
    yield from _layer(f"{part}.mid_block.attentions.0.to_qkv", 3 * middle, middle, 1, 1)
    yield from _layer(f"{part}.mid_block.attentions.0.proj", middle, middle, 1, 1)
    yield from _resnet(f"{part}.mid_block.resnets.1", middle, middle)
    yield f"{part}.norm_out.gamma", (width, 1, 1, 1)
    yield from _layer(f"{part}.conv_out", out_channels, width, 3, 3, 3)


def _resnet(name: str, entering: int, width: int) -> Iterator[Tensor]:
    yield f"{name}.norm1.gamma", (entering, 1, 1, 1)
    yield from _layer(f"{name}.conv1", width, entering, 3, 3, 3)
    yield f"{name}.norm2.gamma", (width, 1, 1, 1)
    yield from _layer(f"{name}.conv2", width, width, 3, 3, 3)
    if entering != width:
        yield from _layer(f"{name}.conv_shortcut", width, entering, 1, 1, 1)


# -- the text encoder


def _text_encoder(config: Config) -> Iterator[Tensor]:
    """What the config does not say is as ``UMT5Config`` has it: transformers may leave it out."""
    require(config, "text_encoder/config.json", ("vocab_size", "d_model", "num_layers"))
    width, heads = config["d_model"], config.get("num_heads", 6)
    inner, buckets = (
        heads * config.get("d_kv", 64),
        config.get("relative_attention_num_buckets", 32),
    )
    hidden = config.get("d_ff", 1024)
    gated = str(config.get("feed_forward_proj", "gated-gelu")).startswith("gated-")
    yield SHARED, (config["vocab_size"], width)
    yield EMBED, (config["vocab_size"], width)
    for index in range(config["num_layers"]):
        attention, dense = (f"encoder.block.{index}.layer.{part}" for part in (0, 1))
        yield f"{attention}.layer_norm.weight", (width,)
        for part in ("q", "k", "v"):
            yield f"{attention}.SelfAttention.{part}.weight", (inner, width)
        yield f"{attention}.SelfAttention.o.weight", (width, inner)
        yield f"{attention}.SelfAttention.relative_attention_bias.weight", (buckets, heads)
        for part in ("wi_0", "wi_1") if gated else ("wi",):
            yield f"{dense}.DenseReluDense.{part}.weight", (hidden, width)
        yield f"{dense}.DenseReluDense.wo.weight", (width, hidden)
        yield f"{dense}.layer_norm.weight", (width,)
    yield "encoder.final_layer_norm.weight", (width,)
