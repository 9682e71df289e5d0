"""Makes the embedded demo model: trains its parts, and puts them into one diffusers folder.

    python -m training.demo_model --out workers/demo_model --vae-steps 5000 --wan-steps 6000
    python -m training.demo_model --kind animatediff --out FOLDER

Parts that were trained already go on from where they were; with zero steps they are only put
together, and parts that were never trained get fresh weights.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    AutoencoderKLWan,
    DiffusionPipeline,
    UNetMotionModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import AutoTokenizer, CLIPTextModel, UMT5EncoderModel

from training import animatediff
from training.draws import NoiseRecipe
from training.trainer import NOISE_FILE, Recipe
from training.vae import VaeRecipe, new_vae
from training.vae import train as train_vae
from training.wan import WanStudent, new_model, new_trainer

LARGEST_FOLDER_BYTES = 20_000_000


def render_defaults(recipe: Recipe, noise: NoiseRecipe) -> dict[str, object]:
    """What a renderer should use where the person says nothing, of weights that were trained with
    this noise: `longtake.json`."""
    shared = {"format": 1, "fps": 12, "size": [96, 96], **_pyramid(noise)}
    return shared | {
        "window_latent_frames": recipe.window_latent_frames,
        "overlap_latent_frames": 3,
        "steps": 14,
        "guidance": 4.0,
        "text_tokens": WanStudent.text_tokens,
        "flow_shift": noise.flow_shift,
    }


def animatediff_defaults(noise: NoiseRecipe) -> dict[str, object]:
    """The same of an AnimateDiff model."""
    shared = {"format": 1, "fps": 12, "size": [96, 96], **_pyramid(noise)}
    return shared | {
        "window_latent_frames": animatediff.WINDOW_FRAMES,
        "overlap_latent_frames": 4,
        "steps": 20,
        "guidance": 4.0,
        "stage_positions": False,  # its motion modules count a window's own frames
    }


def _pyramid(noise: NoiseRecipe) -> dict[str, object]:
    if noise.stages == 1:
        return {}
    return {"pyramid_steps": [1] * noise.stages, "stage_positions": noise.stage_positions}


def assemble(runs: Path, out: Path, recipe: Recipe) -> None:
    """Put the parts of `runs` into `out`, replacing the parts that are there.

    The transformer, by far the largest part, is stored in bfloat16; all others in float32.
    """
    wan, vae = _trained_or_fresh(runs, recipe)
    noise = _noise_of(wan)
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
    write_folder(pipeline, out, render_defaults(recipe, noise))


def assemble_animatediff(run: Path, vae: Path, out: Path) -> None:
    """The same of an AnimateDiff model, from its training's folder and its autoencoder's."""
    pipeline = AnimateDiffPipeline(
        tokenizer=AutoTokenizer.from_pretrained(run / "tokenizer"),
        text_encoder=CLIPTextModel.from_pretrained(run / "text_encoder"),
        unet=UNetMotionModel.from_pretrained(run / "unet", torch_dtype=torch.bfloat16),
        vae=AutoencoderKL.from_pretrained(vae),
        motion_adapter=None,
        scheduler=animatediff.SCHEDULER,
    )
    write_folder(pipeline, out, animatediff_defaults(_noise_of(run)))


def _noise_of(run: Path) -> NoiseRecipe:
    told = run / NOISE_FILE
    return NoiseRecipe(**json.loads(told.read_text())) if told.exists() else NoiseRecipe()


def write_folder(
    pipeline: DiffusionPipeline, out: Path, sidecar: Mapping[str, object], *, ships: bool = True
) -> None:
    """Put a pipeline's parts into ``out``, replacing the parts that are there. Raises ValueError
    if the folder becomes too large to ship, where it ``ships``."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        pipeline.save_pretrained(folder)
        _tidy(Path(folder))
        for path in Path(folder).iterdir():
            if path.is_dir():
                shutil.rmtree(out / path.name, ignore_errors=True)
            shutil.move(path, out / path.name)
    (out / "longtake.json").write_text(json.dumps(sidecar, indent=2) + "\n")
    size_bytes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    if ships and size_bytes > LARGEST_FOLDER_BYTES:
        raise ValueError(f"{out} holds {size_bytes} bytes; at most {LARGEST_FOLDER_BYTES} may ship")


def _tidy(folder: Path) -> None:
    """Take out what the parts remember of this machine; name the tokenizer's class as
    transformers 4 and 5 both know it."""
    portable = "PreTrainedTokenizerFast"
    for path in folder.rglob("*.json"):
        settings = json.loads(path.read_text())
        if path.name == "model_index.json":
            for name in {"tokenizer", "tokenizer_2"} & settings.keys():
                settings[name] = ["transformers", portable]
        elif path.name == "tokenizer_config.json":
            settings["tokenizer_class"] = portable
        for remembered in ("_name_or_path", "backend", "is_local", "local_files_only"):
            settings.pop(remembered, None)
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def _trained_or_fresh(runs: Path, recipe: Recipe) -> tuple[Path, AutoencoderKLWan]:
    wan, trained = runs / "wan", (runs / "vae" / "config.json").exists()
    if not (wan / "transformer").exists():
        tokenizer, model = new_model(recipe.seed)
        model.save(wan, tokenizer)
    elif not trained:
        raise SystemExit(f"{runs}/vae is missing: the autoencoder that {wan} was trained with")
    return wan, AutoencoderKLWan.from_pretrained(runs / "vae") if trained else new_vae(recipe.seed)


def main() -> None:
    """Command line that makes the demo model."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kind", choices=("wan", "animatediff"), default="wan")
    parser.add_argument("--out", type=Path, help="default: the folder that ships, of the Wan model")
    parser.add_argument("--runs", type=Path, default=Path("training/runs"))
    parser.add_argument("--picture-vae", type=Path, help="AnimateDiff's; default: in --runs")
    parser.add_argument("--vae-steps", type=int, default=0)
    parser.add_argument("--wan-steps", type=int, default=0)
    parser.add_argument("--stages", type=int, default=1, help="of a temporal pyramid")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if options.kind == "animatediff":
        runs, vae = options.runs, options.picture_vae or options.runs / "picture_vae"
        if options.out is None or options.vae_steps or options.wan_steps:
            parser.error("--kind animatediff needs --out, and only puts parts together")
        assemble_animatediff(runs / "animatediff", vae, options.out)
        return
    recipe = Recipe(seed=options.seed, noise=NoiseRecipe(stages=options.stages))
    if options.vae_steps:
        vae_recipe = VaeRecipe(seed=options.seed)
        train_vae(options.runs / "vae", vae_recipe, options.vae_steps, options.device)
    if options.wan_steps:
        vae = AutoencoderKLWan.from_pretrained(options.runs / "vae").to(options.device).eval()
        trainer = new_trainer(recipe, vae, options.runs / "wan", compiled=True)
        trainer.resume()
        trainer.train(options.wan_steps)
    assemble(options.runs, options.out or Path("workers/demo_model"), recipe)


if __name__ == "__main__":
    main()
