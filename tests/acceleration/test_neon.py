"""The NEON kernels, on an emulated processor, give what the layers give.

They are compiled for ARM, and each call of them runs in qemu; all else runs here. Skipped where
there is no cross compiler or no qemu (on Debian: `apt install g++-aarch64-linux-gnu qemu-user`).
"""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
import torch
from tiny import random_weights, tiny_model

from codecplus.acceleration import inference, steps
from codecplus.kernels.compiler import compile_library
from codecplus.kernels.instruction_sets import INSTRUCTION_SETS
from codecplus.modeling_dac.layers_dac import CodebookSearch, DacResidualUnit
from codecplus.streaming import StreamingDecoder, StreamingEncoder

COMPILER = "aarch64-linux-gnu-g++"
EMULATOR = "qemu-aarch64"
ROOT = "/usr/aarch64-linux-gnu"  # where Debian puts the C library of ARM

pytestmark = pytest.mark.skipif(
    not (shutil.which(COMPILER) and shutil.which(EMULATOR)),
    reason=f"needs {COMPILER} and {EMULATOR}",
)


@pytest.fixture(scope="module")
def neon(tmp_path_factory):
    """The folder of the kernels for NEON and of the program that calls them."""
    folder = tmp_path_factory.mktemp("neon")
    target = next(one for one in INSTRUCTION_SETS if one.name == "neon")
    compile_library([COMPILER], target, folder / "kernels.so")
    program = Path(__file__).with_name("emulated.c")
    compiler = COMPILER.replace("g++", "gcc")
    subprocess.run(
        [compiler, "-O1", "-w", str(program), "-ldl", "-o", str(folder / "emulated")], check=True
    )
    return folder


@pytest.fixture
def emulated(neon, monkeypatch):
    """All kernels are those for NEON, emulated; the names of those that ran."""
    ran = []

    def call(kernel, tensors, sizes):
        ran.append(kernel)
        given = [tensor for tensor in tensors if tensor is not None]
        arguments = [0 if tensor is None else tensor for tensor in tensors]
        arguments += [*map(int, sizes), 1]
        written = [struct.pack("<q", len(arguments))]
        for argument in arguments:
            if isinstance(argument, int):
                written.append(struct.pack("<qq", 0, argument))
            else:
                values = argument.numpy().tobytes()
                written.append(struct.pack("<qq", 1, len(values)) + values)
        (neon / "in").write_bytes(b"".join(written))
        command = [EMULATOR, "-L", ROOT, "emulated", "./kernels.so", kernel, "in", "out"]
        subprocess.run(command, cwd=neon, check=True)
        results = (neon / "out").read_bytes()
        for tensor in given:
            size = tensor.numel() * tensor.element_size()
            values = torch.frombuffer(bytearray(results[:size] or b"\0"), dtype=tensor.dtype)
            if size:
                tensor.copy_(values.view(tensor.shape))
            results = results[size:]

    target = next(one for one in INSTRUCTION_SETS if one.name == "neon")
    for module in (inference, steps):
        monkeypatch.setattr(module, "call", call)
        monkeypatch.setattr(module, "usable_set", lambda: target)
    monkeypatch.setattr(inference, "_checksum", lambda part: (id(part), part.shape))
    return ran


@pytest.mark.parametrize(("channels", "dilation", "length"), [(32, 1, 150), (64, 9, 333)])
@torch.inference_mode()
def test_a_unit_in_one_pass(emulated, channels, dilation, length):
    unit = random_weights(DacResidualUnit(channels, dilation))
    x = torch.randn(2, length, channels).transpose(1, 2)
    y = inference.residual_unit(unit, x)
    assert emulated == ["unit_fp32"]
    unit.allow_kernels = unit.snake1.allow_kernels = unit.snake2.allow_kernels = False
    torch.testing.assert_close(y, unit(x), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("halves", [True, False])
@torch.inference_mode()
def test_live_streams(emulated, halves):
    model = tiny_model(causal=True, encoder_hidden_size=16, decoder_hidden_size=64)
    if halves:
        for parameter in model.parameters():
            parameter.data = parameter.data.half().float()
    encoder, decoder = StreamingEncoder(model), StreamingDecoder(model)
    plain = model.allow_kernels(False)
    x = torch.randn(1, 5 * model.config.hop_length) * 0.3
    expected, _ = StreamingEncoder(plain).step(StreamingEncoder(plain).start(), x)
    codes, _ = encoder.step(encoder.start(), x)
    assert torch.equal(codes, expected)
    audio, _ = decoder.step(decoder.start(), codes)
    decoded, _ = StreamingDecoder(plain).step(StreamingDecoder(plain).start(), codes)
    torch.testing.assert_close(audio, decoded, atol=1e-5, rtol=1e-5)
    assert {"convolution_step", "unit_step", "search_step"} <= set(emulated)


@torch.inference_mode()
def test_the_search(emulated):
    model = tiny_model(causal=True, n_codebooks=4, codebook_size=32, codebook_dim=6)
    search = CodebookSearch(model.quantizer, 4)
    rows = torch.randn(1, 20, model.config.hidden_size)
    assert torch.equal(steps.SearchStep(search)(rows, 4), search(rows, 4)[2])
    assert emulated == ["search_step"]
