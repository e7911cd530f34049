"""Audio-seconds trained per second, the share of each part of a step, and the ratio to plain conv1d
layers in fp32.

    python benchmarks/training.py --preset dac-44khz-small --batch 4
    python benchmarks/training.py --preset dac-44khz --batch 72 --device cuda --adversarial

Both sides run the same trainer with the same losses, optimizer and batch, in turns, in this
process. The plain side has layers as transformers writes them, for causal presets with the padding
on the left; its training in fp32 is what one gets without codecplus. Medians over rounds, the first
left out. What the codec's convolutions need, forward and back, is set against what one
wide convolution in bf16 reaches on the same device, measured here too; discriminators, losses and
the optimizer count as time and not as work.
"""

import argparse
import copy
import os
import statistics
import time
from collections import defaultdict
from dataclasses import replace

import torch
from accelerate import Accelerator
from speed import macs_per_second
from torch.nn import functional as F

from codecplus.acceleration.training import use_training_layers
from codecplus.configuration import preset_names
from codecplus.modeling_dac.layers_dac import DacConv1d, DacConvTranspose1d, Snake1d
from codecplus.training.data import Batch
from codecplus.training.initialization import new_model
from codecplus.training.loop import Trainer
from codecplus.training.recipe import Recipe


class PlainConv1d(DacConv1d):
    def forward(self, x, lengths=None, residual=None):
        if self.kernel_size[0] > 1:
            x = F.pad(x, self.pads)
        y = F.conv1d(x, self.weight, self.bias, self.stride, 0, self.dilation)
        return y if residual is None else y + residual


class PlainConvTranspose1d(DacConvTranspose1d):
    def forward(self, x, lengths=None):
        y = F.conv_transpose1d(x, self.weight, self.bias, self.stride, 0)
        start = 0 if self.padding.causal else self.padding[0]
        return y[..., start : start + self.output_length(x.shape[-1])]


class PlainSnake1d(Snake1d):
    def forward(self, x):
        return x + (self.alpha + 1e-9).reciprocal() * torch.sin(self.alpha * x).pow(2)


def plain_model(model):
    """The same net with layers as transformers writes them.

    Not transformers' own model, whose quantizer lacks what the trainer asks of ours.
    """
    plain = copy.deepcopy(model)
    kinds = {
        DacConv1d: PlainConv1d,
        DacConvTranspose1d: PlainConvTranspose1d,
        Snake1d: PlainSnake1d,
    }
    for module in plain.modules():
        module.__class__ = kinds.get(type(module), type(module))
    return plain


class Noise:
    """Batches of noise that fades in and out as speech does."""

    def __init__(self, batch, samples, sample_rate):
        generator = torch.Generator().manual_seed(0)
        envelope = torch.sin(torch.linspace(0, 9.0, samples)).square()
        self.audio = 0.1 * envelope * torch.randn(batch, samples, generator=generator)
        self.bandwidth = torch.full((batch,), sample_rate / 2)

    def __next__(self):
        return Batch(self.audio, self.bandwidth, [], {})

    def state_dict(self):
        return {}


class Stopwatch:
    """Seconds spent in parts of a trainer's step, by a clock that waits for what the device has
    still to do.
    """

    def __init__(self, trainer, clock):
        self.seconds, self.trainer, self.clock = defaultdict(float), trainer, clock
        for name in ("encoder", "quantizer", "decoder"):
            module = getattr(trainer.model, name)
            module.forward = self.timed(f"{name} forward", module.forward)
        trainer._output_gradient = self.timed("losses", trainer._output_gradient)
        for name, loss in trainer.losses.items():
            trainer.losses[name] = self.timed("losses", loss)
        if trainer.adversary is not None:
            trainer.adversary.losses = self.timed(
                "discriminators forward", trainer.adversary.losses
            )
        trainer.accelerator.backward = self.timed("backward", trainer.accelerator.backward)
        trainer._update = self.timed("optimizer and average", trainer._update)
        trainer._train_codebooks = self.timed("codebooks", trainer._train_codebooks)

    def timed(self, part, function):
        def call(*args, **kwargs):
            start = self.clock()
            result = function(*args, **kwargs)
            self.seconds[part] += self.clock() - start
            return result

        return call

    def step(self):
        self.seconds.clear()
        start = self.clock()
        self.trainer.step()
        total = self.clock() - start
        return total, {**self.seconds, "other": total - sum(self.seconds.values())}


def waiting_clock():
    """Seconds, once the GPU has done all that it was given."""
    torch.cuda.synchronize()
    return time.perf_counter()


def conv_rate(device, clock):
    """FLOP/s of the best of some wide convolutions in bf16, forward alone."""
    batch, channels, steps, taps = (
        (64, 512, 4096, 7) if device.type == "cuda" else (4, 256, 1024, 7)
    )
    # Channels together, as this package's layers have them.
    x = (
        torch.randn(batch, channels, 1, steps, device=device)
        .bfloat16()
        .to(memory_format=torch.channels_last)
    )
    conv = torch.nn.Conv2d(channels, channels, (1, taps), padding=(0, taps // 2), bias=False).to(
        device, torch.bfloat16
    )
    conv = conv.to(memory_format=torch.channels_last)
    seconds = []
    with torch.inference_mode():
        for _ in range(10):
            start = clock()
            conv(x)
            seconds.append(clock() - start)
    return 2 * batch * steps * conv.weight.numel() / min(seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="dac-44khz-small", choices=preset_names())
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument(
        "--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--cpu-time", action="store_true", help="count seconds of this process, on a busy machine"
    )
    parser.add_argument(
        "--adversarial", action="store_true", help="leave the recipe's discriminators in"
    )
    parser.add_argument("--no-plain", action="store_true", help="our side alone")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    if args.cpu_time and device.type == "cuda":
        parser.error("--cpu-time counts what processors do: leave it out, or --device cuda")
    clock = (
        time.process_time
        if args.cpu_time
        else waiting_clock
        if device.type == "cuda"
        else time.perf_counter
    )

    recipe = Recipe.load(
        args.preset, {"weight_norm": False, "batch": args.batch, "schedule.quantize_at": 0}
    )
    recipe = replace(recipe, codebooks=replace(recipe.codebooks, placed=False, rate_weight=None))
    if not args.adversarial:
        weights = {
            k: v
            for k, v in recipe.objective.weights.items()
            if k not in ("adversarial", "feature_matching")
        }
        recipe = replace(recipe, objective=replace(recipe.objective, weights=weights))
    model = new_model(recipe)
    samples, rate = recipe.crop_samples(model.config), model.config.sampling_rate
    sides = {}
    if not args.no_plain:
        sides["plain fp32"] = (plain_model(model), torch.float32)
        sides["ours fp32"] = (copy.deepcopy(model), torch.float32)
    sides["ours bf16"] = (copy.deepcopy(model), torch.bfloat16)
    accelerator, watches = Accelerator(cpu=device.type == "cpu"), {}
    for name, (net, dtype) in sides.items():
        if name.startswith("ours"):
            use_training_layers(net)
        trainer = Trainer(net, Noise(args.batch, samples, rate), recipe, accelerator, dtype=dtype)
        watches[name] = Stopwatch(trainer, clock)

    found = {name: [] for name in watches}
    for turn in range(args.rounds + 1):
        for name, watch in watches.items():
            row = watch.step()
            if turn:
                found[name].append(row)
    audio = args.batch * samples / rate
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{args.threads} threads"
    print(f"{args.preset}, {args.batch} crops of {samples / rate:.3f} s, {where}")
    flops, peak = (
        6e9 * macs_per_second(model) * audio,
        conv_rate(device, clock),
    )  # gradients take twice the forward
    print(f"one wide convolution in bf16: {peak / 1e9:.0f} GFLOP/s")
    medians = {name: statistics.median(total for total, _ in rows) for name, rows in found.items()}
    for name, seconds in medians.items():
        line = f"{name:<12} {audio / seconds:7.2f} audio-seconds per second"
        if "plain fp32" in medians:
            line += f", {medians['plain fp32'] / seconds:5.2f} x plain"
        line += f", {flops / seconds / peak:4.0%} of that convolution's rate"
        print(line)
    for name, rows in found.items():
        parts = {
            part: statistics.median(row[part] for _, row in rows if part in row)
            for _, r in rows
            for part in r
        }
        total = sum(parts.values())
        shares = sorted(parts.items(), key=lambda item: -item[1])
        print(
            f"{name}: "
            + ", ".join(
                f"{part} {share / total:.0%}" for part, share in shares if share / total > 0.005
            )
        )


if __name__ == "__main__":
    main()
