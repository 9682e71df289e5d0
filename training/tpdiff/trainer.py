"""The loop of stage-wise training, and what it takes to go on after a stop.

Shapes: B batch, C latent channels, T latent frames of a clip, F frames of the stage.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor, nn

from accel.pyramid import lay_stages
from jobs.errors import BadJob
from jobs.files import replace_file, sync_files, sync_folder
from jobs.pyramid import split_steps
from training.stages import draw_pair, draw_times, noisy
from training.tpdiff.batches import MicroBatch, MicroBatches, refuse
from training.tpdiff.settings import Settings
from training.tpdiff.texts import Texts
from training.tpdiff.trainee import Trainee
from training.tpdiff.videos import Damaged, Track, Video, untracked
from workers.contact_sheet import Row, sheet_of
from workers.decoding import NotFinite

SETTINGS = "tpdiff.json"

#: A line of {"step": ..., "loss": ...} for each step; of two of one step, around a stop, the later
#: one counts.
LOSSES = "losses.jsonl"


class Interrupted(Exception):
    """The person asked to stop; what was trained is kept."""


class Trainer:
    """A model, its optimiser, and what it takes to go on after a stop."""

    def __init__(
        self,
        trainee: Trainee,
        videos: list[Video],
        settings: Settings,
        out: Path,
        accelerator: Accelerator,
        say: Callable[[str], None],
        track: Track = untracked,
        *,
        skip_damaged: bool = False,
    ) -> None:
        """``skip_damaged``: go on without videos that turn out to be damaged inside."""
        self.trainee, self.videos, self.settings = trainee, videos, settings
        self.out, self.accelerator, self.say = out, accelerator, say
        self.step = self._saved = 0
        self._met = self._skip if skip_damaged else refuse
        self._skipped: set[Path] = set()
        self.stages = lay_stages(trainee.path, settings.stages, settings.coarse)
        self.origin = _origin(trainee, videos, accelerator.num_processes)
        self.no_text = trainee.info.defaults.negative
        info = trainee.info
        self.texts = Texts(out / "texts", info.identity, info.defaults.text_tokens, trainee.dtype)
        with accelerator.main_process_first():  # it encodes, and all others find what it wrote
            prompts = [self.no_text, *(video.caption for video in videos)]
            self.texts.encode(prompts + list(settings.sample_prompts), trainee.embed, track)
        trainee.forget_text()
        trainee.denoiser.requires_grad_(True)
        if settings.lora_rank:
            trainee.denoiser.requires_grad_(False)
            trainee.add_lora(settings.lora_rank)
        if settings.checkpointing:
            trainee.denoiser.enable_gradient_checkpointing()
        trainee.denoiser.train()
        self._weights = [p for p in trainee.denoiser.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(self._weights, lr=settings.rate, weight_decay=0.01)
        # Not prepared: accelerate would step it once for every process.
        self.rates = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / max(1, settings.warmup_steps))
        )
        accelerator.register_for_checkpointing(self.rates)
        if settings.lora_rank:
            accelerator.register_save_state_pre_hook(_leave_out_what_is_frozen)
        self.model, self.optimizer = accelerator.prepare(trainee.denoiser, optimizer)

    # -- going on

    def resume(self) -> None:
        """Go on from the state in the folder. Raises BadJob if it is of other settings."""
        kept = self.out / SETTINGS
        if not kept.exists():
            return
        said = json.loads(kept.read_text())
        self._check_same(said["settings"] | said["origin"])
        if said["step"]:
            state = self.out / "state" / str(said["step"])
            self._check_whole(state)
            # What is frozen is in no state of an adapter: it is as the model has it.
            self.accelerator.load_state(str(state), strict=not self.settings.lora_rank)
            self.step = self._saved = int(said["step"])
            self.say(f"going on from step {self.step}")

    def _check_same(self, theirs: dict) -> None:
        free = {
            "checkpointing",
            "steps",
            "save_every",
            "sample_every",
            "sample_steps",
            "sample_prompts",
        }
        ours = json.loads(json.dumps(asdict(self.settings))) | self.origin
        other = [name for name in ours if name not in free and ours[name] != theirs.get(name)]
        if other:
            said = ", ".join(f"{name} {theirs.get(name)} (now {ours[name]})" for name in other)
            raise BadJob(f"{self.out} was begun with {said}; use the same, or another --out")

    def _check_whole(self, state: Path) -> None:
        """That a state has all that is trained: accelerate goes on without what it lacks."""
        every = self.trainee.denoiser.named_parameters()  # not wrapped, as accelerate keeps it
        trained = {name for name, weight in every if weight.requires_grad}
        with safe_open(state / "model.safetensors", "pt") as kept:
            missing = sorted(trained - set(kept.keys()))
        if missing:
            raise BadJob(
                f"{state} lacks {len(missing)} of the {len(trained)} tensors that are trained, "
                f"{missing[0]} among them; begin again with another --out"
            )

    def save(self) -> None:
        """The state to go on from; the one before it is deleted after. Raises BadJob for weights
        that have blown up: they take no state's place."""
        if not all(p.isfinite().all() for p in self._weights):
            raise BadJob(self._blown_up("some weights are no numbers after", self.step))
        state = self.out / "state" / str(self.step)
        self.accelerator.save_state(str(state))
        # A state is whole when all processes have written theirs.
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            sync_files(state)
            said = {"step": self.step, "settings": asdict(self.settings), "origin": self.origin}
            replace_file(self.out / SETTINGS, json.dumps(said))
            sync_folder(self.out)
            for other in state.parent.iterdir():
                if other != state:
                    shutil.rmtree(other)
        self.accelerator.wait_for_everyone()
        self._saved = self.step

    def _keep(self) -> None:
        """Before an end that comes too early. Several processes would have to agree on the step:
        they have what was saved last."""
        if self.accelerator.num_processes == 1 and self.step > self._saved:
            # What was accumulated for the next step is not kept; its batches are drawn again.
            self.accelerator.step = self.step * self.settings.accumulate
            self.save()

    # -- training

    def train(
        self, on_step: Callable[[int, float], None], stopped: Callable[[], bool] = lambda: False
    ) -> None:
        """Train up to the settings' number of steps, counted from the first start. Raises Damaged,
        BadJob where weights blow up, and Interrupted once ``stopped`` says so."""
        settings, accelerator = self.settings, self.accelerator
        rank, ranks = accelerator.process_index, accelerator.num_processes
        geometry = self.trainee.info.geometry
        batches = MicroBatches(
            self.videos, settings, geometry, self.trainee.path, rank, ranks, self._met
        )
        left = range(self.step * settings.accumulate, settings.steps * settings.accumulate)
        drawn = batches.ahead(left)
        while self.step < settings.steps:
            try:
                if stopped():
                    raise Interrupted
                loss = self._take_step(drawn)
            except (Damaged, Interrupted):
                self._keep()
                raise
            self.step += 1
            self._note(loss)
            on_step(self.step, loss)
            last = self.step == settings.steps
            if last or self.step % settings.save_every == 0:
                self.save()
            if settings.sample_every and (last or self.step % settings.sample_every == 0):
                self.draw_samples()

    def _take_step(self, drawn: Iterator[MicroBatch]) -> float:
        """The mean loss of a step's micro-batches. An end in their midst changes no weight."""
        losses = []
        for _ in range(self.settings.accumulate):
            batch = next(drawn)
            with self.accelerator.accumulate(self.model):
                losses.append(self._micro_step(batch))
        return float(np.mean(losses))

    def _skip(self, damaged: Damaged) -> None:
        if damaged.path not in self._skipped:
            self._skipped.add(damaged.path)
            # Each process reads its own clips, so that each tells what it met.
            say = self.say if self.accelerator.is_main_process else _say_aloud
            say(f"skipped where it is damaged: {damaged}")

    def _note(self, loss: float) -> None:
        if self.accelerator.is_main_process:
            with (self.out / LOSSES).open("a") as file:
                file.write(json.dumps({"step": self.step, "loss": loss}) + "\n")

    def _micro_step(self, drawn: MicroBatch) -> float:
        loss = self.loss(drawn)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise BadJob(self._blown_up("the loss is not a number in", self.step + 1))
        self.accelerator.backward(loss)
        if self.accelerator.sync_gradients:
            self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        if self.accelerator.sync_gradients:
            self.rates.step()
        self.optimizer.zero_grad()
        return value

    def _blown_up(self, what: str, step: int) -> str:
        return (
            f"{what} step {step}: no model is written; begin again with a lower --rate (it is "
            f"{self.settings.rate:g}) and another --out"
        )

    def loss(self, drawn: MicroBatch) -> Tensor:
        """The squared error of what is predicted for a stage's own diffusion."""
        trainee, settings, device = self.trainee, self.settings, self.accelerator.device
        stage, rng = self.stages[drawn.stage], np.random.default_rng(drawn.noise_seed)
        x_BCTHW = trainee.encode(drawn.frames_BFHWC).cpu()
        leads = trainee.info.geometry.first_alone and not drawn.starts
        pair = draw_pair(
            stage, x_BCTHW[:, :, 1:] if leads else x_BCTHW, rng, drawn.frames,
            starts=drawn.starts, second=drawn.second, alignment=settings.alignment,
        )  # fmt: skip
        times_B = draw_times(trainee.path, rng, len(x_BCTHW), stage, trainee.flow_shift)
        told = trainee.predict(
            self.model,
            noisy(trainee.path, times_B, *pair).to(device),
            torch.from_numpy(times_B.astype(np.float32)).to(device),
            trainee.padded([self.texts[self._prompt(n)] for n in drawn.captions]).to(device),
            stage.stride if settings.stage_positions else 1,
        )
        return (told.float() - trainee.target(times_B, *pair).to(device)).square().mean()

    def _prompt(self, number: int) -> str:
        return self.no_text if number < 0 else self.videos[number].caption

    # -- what comes of it

    def draw_samples(self, count: int = 2) -> None:
        """A picture of clips of the person's prompts, or of the first captions, rendered with the
        pyramid as it is now."""
        if not self.accelerator.is_main_process:
            return
        settings, trainee = self.settings, self.trainee
        steps = split_steps(settings.sample_steps, settings.step_shares or (1,) * settings.stages)
        trainee.denoiser.eval()
        clips, rows = [], []
        for asked in settings.sample_prompts or [video.caption for video in self.videos[:count]]:
            shot = trainee.shot(
                asked, pixel_frames=settings.pixel_frames, size=settings.size,
                stage_steps=steps, positions=settings.stage_positions,
            )  # fmt: skip
            told = {
                name: trainee.padded([self.texts[prompt]]).to(self.accelerator.device)
                for name, prompt in (("cond", asked), ("uncond", self.no_text))
            }
            try:
                clips.append(trainee.sample(shot, told))
            except NotFinite as error:
                self.say(f"no sample of {asked!r}: {error}")
                continue
            first = sum(len(clip) for clip in clips[:-1])
            rows.append(Row(asked, first, first + len(clips[-1])))
        trainee.denoiser.train()
        if clips:
            self._keep_samples(np.concatenate(clips), rows)

    def _keep_samples(self, frames: NDArray[np.uint8], rows: list[Row]) -> None:
        folder = self.out / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        picture = folder / f"step_{self.step:06}.png"
        sheet = sheet_of(frames, rows)
        assert sheet is not None, "there are clips"
        sheet.save(picture)
        self.say(f"samples: {picture}")


def _say_aloud(text: str) -> None:
    print(text, file=sys.stderr)


def _leave_out_what_is_frozen(
    models: list[nn.Module], states: list[dict[str, Tensor]], folder: str
) -> None:
    """A state of an adapter is as small as the adapter, whatever its base weighs."""
    for model, state in zip(models, states, strict=True):
        trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
        for name in state.keys() - trained:
            del state[name]


def _origin(trainee: Trainee, videos: list[Video], processes: int) -> dict[str, object]:
    """What a training must go on with, beside its settings."""
    told = hashlib.sha256()
    for video in videos:
        told.update(f"{video.path.name}\0{video.caption}\0{video.seconds:.3f}\n".encode())
    return {
        "model": trainee.info.identity[:12],
        "videos": told.hexdigest()[:12],
        "processes": processes,
    }
