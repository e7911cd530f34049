"""Numbers, audio and pictures of a run, for a tracker of accelerate and a file of JSON lines."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from codecplus.audio.mel import mel_spectrogram
from codecplus.errors import InputError, MissingExtraError
from codecplus.system.paths import atomic_path

TRACKERS = ("tensorboard", "trackio", "wandb", "none")
_UNREADABLE = 1 << 62  # the step of half a line: the run was killed while it wrote


class Tracker:
    """Writes numbers, audio and pictures of one run, in the main process only.

    Args:
        accelerator: of the run.
        name: one of `TRACKERS`. trackio and W&B keep their own files besides.
        folder: for TensorBoard's files, and for `log.jsonl`, which is written in any case.
        config: the recipe as plain data.
        run: the name of the run in the tracker.
    """

    def __init__(self, accelerator: Any, name: str, folder: Path, config: dict[str, Any], run: str):
        self.accelerator = accelerator
        self.name = name
        self.path = folder / "log.jsonl"
        if name == "none" or not accelerator.is_main_process:
            return
        project = "codecplus"
        options = {"name": run}
        if name == "tensorboard":
            project = "tensorboard"  # its folder
            options = {}
        accelerator.project_configuration.logging_dir = str(folder)
        accelerator.init_trackers(project, init_kwargs={name: options})
        tracker = accelerator.get_tracker(name)
        if name == "tensorboard":
            tracker.writer.add_text("recipe", f"```json\n{json.dumps(config, indent=2)}\n```")
        else:
            tracker.store_init_configuration(config)

    def rewind(self, step: int) -> None:
        """Remove the lines of the step `step` and later ones, which a resumed run writes again."""
        if not self.accelerator.is_main_process or not self.path.exists():
            return
        earlier = ""
        for line in self.path.read_text(encoding="utf-8").splitlines():
            if _step_of(line) < step:
                earlier += f"{line}\n"
        with atomic_path(self.path) as partial:
            partial.write_text(earlier, encoding="utf-8")

    def numbers(self, values: dict[str, float], step: int) -> None:
        """Write numbers by name at a step."""
        if not self.accelerator.is_main_process:
            return
        rounded = {key: round(value, 6) for key, value in values.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **rounded}) + "\n")
        if self.name != "none":
            self.accelerator.get_tracker(self.name).log(values, step=step)

    def clip(self, name: str, audio: np.ndarray, sample_rate: int, step: int) -> None:
        """Write a clip (S,) and its mel spectrogram."""
        if self.name == "none" or not self.accelerator.is_main_process:
            return
        audio = np.nan_to_num(audio).clip(-1, 1)
        image = mel_image(audio, sample_rate)
        tracker = self.accelerator.get_tracker(self.name)
        if self.name == "tensorboard":
            tracker.writer.add_audio(name, audio[None], step, sample_rate)
            tracker.writer.add_image(name, image, step, dataformats="HWC")
            tracker.writer.flush()
        elif self.name == "wandb":
            import wandb  # pyright: ignore[reportMissingImports]

            sound = wandb.Audio(audio, sample_rate=sample_rate)
            tracker.log({f"{name}/audio": sound, f"{name}/mel": wandb.Image(image)}, step=step)
        else:
            import trackio  # pyright: ignore[reportMissingImports]

            sound = trackio.Audio(
                (audio * 32767).astype(np.int16), sample_rate=sample_rate, format="wav"
            )
            tracker.log({f"{name}/audio": sound, f"{name}/mel": trackio.Image(image)}, step=step)

    def close(self) -> None:
        """Finish the tracker's files."""
        for tracker in self.accelerator.trackers:
            tracker.finish()


def check_tracker(name: str) -> None:
    """Raise InputError for an unknown tracker, MissingExtraError if it is not installed."""
    if name not in TRACKERS:
        raise InputError(f"there is no tracker {name!r}; expected one of {', '.join(TRACKERS)}")
    if name == "none":
        return
    from importlib.util import find_spec

    if find_spec(name) is None:
        raise MissingExtraError(
            f"the tracker {name} is not installed: pip install {name}, or choose --tracker none"
        )


def mel_image(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return the log mel spectrogram of audio (S,) as an image (80, frames, 3) of bytes.

    The lowest frequency is at the bottom.
    """
    import torch

    hop = max(128, len(audio) // 800)
    mel = mel_spectrogram(
        torch.from_numpy(audio).float(), sample_rate, n_mels=80, n_fft=1024, hop_length=hop
    )
    decibels = 20 * np.log10(mel.numpy() + 1e-5)
    shade = ((decibels + 80) / 100).clip(0, 1)[::-1]  # -80 dB is black
    try:
        from matplotlib import colormaps

        image = colormaps["magma"](shade)[..., :3]
    except ImportError:
        image = np.repeat(shade[..., None], 3, axis=-1)
    return (255 * image).astype(np.uint8)


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return _UNREADABLE
