"""Makes the embedded demo model: trains its parts, and puts them into one diffusers folder.

    python -m training.demo_model --out workers/demo_model --vae-steps 5000 --wan-steps 6000

Parts that were trained already go on from where they were; with zero steps they are only put
together, and parts that were never trained get fresh weights.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import AutoTokenizer, UMT5EncoderModel

from training.draws import NoiseRecipe
from training.vae import VaeRecipe, new_vae
from training.vae import train as train_vae
from training.wan import NOISE_FILE, Trainer, WanRecipe, new_model, save_model

LARGEST_FOLDER_BYTES = 40_000_000
PARTS = ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")


def render_defaults(recipe: WanRecipe, noise: NoiseRecipe) -> dict[str, object]:
    """What a renderer should use where the person says nothing, of weights that were trained with
    this noise: `longtake.json`."""
    pyramid: dict[str, object] = {}
    if noise.stages > 1:
        pyramid["pyramid_steps"] = [1] * noise.stages
        pyramid["stage_positions"] = noise.stage_positions
    return {
        "format": 1,
        "window_latent_frames": recipe.window_latent_frames,
        "overlap_latent_frames": 3,
        "fps": 12,
        "size": [96, 96],
        "steps": 14,
        "guidance": 4.0,
        "text_tokens": recipe.text_tokens,
        "flow_shift": noise.flow_shift,
        **pyramid,
    }


def assemble(runs: Path, out: Path, recipe: WanRecipe) -> None:
    """Put the parts of `runs` into `out`, replacing the parts that are there.

    The transformer, by far the largest part, is stored in bfloat16; all others in float32.
    """
    wan, vae = _trained_or_fresh(runs, recipe)
    told = wan / NOISE_FILE
    noise = NoiseRecipe(**json.loads(told.read_text())) if told.exists() else NoiseRecipe()
    pipeline = WanPipeline(
        tokenizer=AutoTokenizer.from_pretrained(wan / "tokenizer"),
        text_encoder=UMT5EncoderModel.from_pretrained(wan / "text_encoder"),
        transformer=WanTransformer3DModel.from_pretrained(
            wan / "transformer", torch_dtype=torch.bfloat16
        ),
        vae=vae,
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=noise.flow_shift,
        ),
    )
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        pipeline.save_pretrained(folder)
        _tidy(Path(folder))
        for part in PARTS:
            shutil.rmtree(out / part, ignore_errors=True)
            shutil.move(Path(folder) / part, out / part)
        shutil.move(Path(folder) / "model_index.json", out / "model_index.json")
    (out / "longtake.json").write_text(json.dumps(render_defaults(recipe, noise), indent=2) + "\n")
    size_bytes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    if size_bytes > LARGEST_FOLDER_BYTES:
        raise ValueError(f"{out} holds {size_bytes} bytes; at most {LARGEST_FOLDER_BYTES} may ship")


def _tidy(folder: Path) -> None:
    """Take out what the parts remember of this machine; name the tokenizer's class as
    transformers 4 and 5 both know it."""
    portable = "PreTrainedTokenizerFast"
    for path in folder.rglob("*.json"):
        settings = json.loads(path.read_text())
        if path.name == "model_index.json":
            settings["tokenizer"] = ["transformers", portable]
        elif path.name == "tokenizer_config.json":
            settings["tokenizer_class"] = portable
        for remembered in ("_name_or_path", "backend", "is_local", "local_files_only"):
            settings.pop(remembered, None)
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def _trained_or_fresh(runs: Path, recipe: WanRecipe) -> tuple[Path, AutoencoderKLWan]:
    wan = runs / "wan"
    if not (wan / "transformer").exists():
        save_model(wan, *new_model(recipe.seed))
    trained = (runs / "vae" / "config.json").exists()
    return wan, AutoencoderKLWan.from_pretrained(runs / "vae") if trained else new_vae(recipe.seed)


def main() -> None:
    """Command line that makes the demo model."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("workers/demo_model"))
    parser.add_argument("--runs", type=Path, default=Path("training/runs"))
    parser.add_argument("--vae-steps", type=int, default=0)
    parser.add_argument("--wan-steps", type=int, default=0)
    parser.add_argument("--stages", type=int, default=1, help="of a temporal pyramid")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    recipe = WanRecipe(seed=options.seed, noise=NoiseRecipe(stages=options.stages))
    if options.vae_steps:
        vae_recipe = VaeRecipe(seed=options.seed)
        train_vae(options.runs / "vae", vae_recipe, options.vae_steps, options.device)
    if options.wan_steps:
        vae = AutoencoderKLWan.from_pretrained(options.runs / "vae").to(options.device).eval()
        trainer = Trainer(recipe, vae, options.runs / "wan", compiled=True)
        trainer.resume()
        trainer.train(options.wan_steps)
    assemble(options.runs, options.out, recipe)


if __name__ == "__main__":
    main()
