"""What a codec computes on another device than the processor is what it computes on the processor."""

import numpy as np
import pytest
import torch
from other_device import DEVICE, OnDevice, present
from tiny import tiny_model

from codecplus import Codec
from codecplus.acceleration.training import TrainedSnake1d

RATE = 16000


@pytest.fixture
def audio(rng) -> np.ndarray:
    return (0.1 * rng.standard_normal((2, RATE))).astype(np.float32)


@pytest.fixture(params=[False, True], ids=["offline", "causal"])
def codecs(request):
    """The same codec on the processor and on the device."""
    models = [
        tiny_model(request.param, downsampling_ratios=[2, 4, 5, 8], sampling_rate=RATE)
        for _ in range(2)
    ]
    with present():
        yield Codec(models[0]), Codec(models[1].to(DEVICE))


def test_tensors_of_both_devices_do_not_mix():
    with present():
        there = torch.ones(2, device=DEVICE)
        assert isinstance(there + 1, OnDevice)
        assert (there.cpu() + torch.ones(2)).tolist() == [2, 2]
        with pytest.raises(RuntimeError, match="tensors on both devices"):
            there + torch.ones(2)


def test_files_and_codes_are_the_same(codecs, audio):
    here, there = codecs
    codes = here.encode(audio)
    assert np.array_equal(there.encode(audio), codes)
    assert np.allclose(there.decode(codes), here.decode(codes), atol=1e-5)
    data = here.compress(audio, sample_rate=RATE)
    assert there.compress(audio, sample_rate=RATE) == data
    assert np.allclose(there.decompress(data), here.decompress(data), atol=1e-5)


def test_streams_are_the_same(codecs, audio):
    codes, sounds = [], []
    for codec in codecs:
        encoder, decoder = codec.encoder_stream(), codec.decoder_stream()
        parts = [*map(encoder.push, np.array_split(audio[0], 7)), encoder.flush()]
        codes.append(np.concatenate(parts, axis=-1))
        sounds.append(np.concatenate([*map(decoder.push, parts), decoder.flush()], axis=-1))
    assert np.array_equal(*codes)
    assert np.allclose(*sounds, atol=1e-5)


def test_batches_are_the_same(codecs, audio):
    batch = {
        "audio": [
            {"array": audio[0], "sampling_rate": RATE},
            {"array": audio[1, :5000], "sampling_rate": RATE},
        ]
    }
    here, there = (codec.encode_batch(batch)["codes"] for codec in codecs)
    assert all(map(np.array_equal, here, there))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_snake_trains_the_same_and_keeps_only_its_input_in_memory(dtype):
    found, kept = [], []
    x, weights = torch.randn(2, 6, 50, dtype=dtype), torch.randn(2, 6, 50)
    for device in ("cpu", DEVICE):
        snake = TrainedSnake1d(6)
        with (
            present(),
            torch.autograd.graph.saved_tensors_hooks(
                lambda x: kept.append(x.numel()) or x, lambda x: x
            ),
        ):
            snake.to(device)
            there = x.to(device, copy=True).requires_grad_()
            out = snake(there)
            (out.float() * weights.to(device)).sum().backward()
            found.append([tensor.cpu() for tensor in (out.detach(), there.grad, snake.alpha.grad)])
    tolerance = 1e-5 if dtype == torch.float32 else 0.01
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, atol=tolerance, rtol=tolerance)
    assert (
        sum(count >= x.numel() for count in kept) <= 2 * 2
    )  # on each device, and the loss keeps its weights


@pytest.mark.slow
def test_codes_are_searched_and_refined_there(codecs, audio):
    for codec in codecs:
        plain, refined = (
            codec.decompress(codec.compress(audio, sample_rate=RATE, effort=effort))
            for effort in (0, 3)
        )
        assert refined.shape == plain.shape
        assert np.isfinite(refined).all()
