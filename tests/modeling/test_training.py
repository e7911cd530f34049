"""Training by others' loops: transformers' Trainer, accelerate, gradient checkpointing, forks."""

import copy
import os
import signal
import subprocess
import sys
import warnings

import pytest
import torch
from tiny import tiny_model
from torch import nn

from codecplus import DacFeatureExtractor


def tiny():
    return tiny_model(downsampling_ratios=[2, 4], encoder_hidden_size=8, n_codebooks=2)


class Clips(torch.utils.data.Dataset):
    """Eight clips, as a map-style data set gives them."""

    def __init__(self):
        self.clips = torch.randn(8, 1, 160, generator=torch.Generator().manual_seed(0)) * 0.3

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, i):
        return {"input_values": self.clips[i]}


def trainer(folder, model, steps: int):
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=2,
        save_steps=2,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
        seed=1,
    )
    return Trainer(model, arguments, train_dataset=Clips())


def same_weights(one, other, atol: float):
    ours, theirs = one.folded_state_dict(), other.folded_state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], atol=atol, rtol=0)


@pytest.mark.parametrize("weight_norm", [False, True])
def test_a_resumed_trainer_goes_on_as_one_that_was_not_interrupted(tmp_path, weight_norm):
    def fresh():
        model = tiny().train()
        if weight_norm:
            model.apply_weight_norm()
        return model

    whole = fresh()
    start = copy.deepcopy(whole)
    trainer(tmp_path / "whole", whole, 4).train()
    trainer(tmp_path / "part", fresh(), 2).train()
    resumed = fresh()
    trainer(tmp_path / "part", resumed, 4).train(str(tmp_path / "part" / "checkpoint-2"))
    # A folded weight does not tell the length of its direction, on which the next steps depend a
    # little: 4 steps of 1e-3 are a hundred times as large as what that makes.
    same_weights(resumed, whole, 4e-5 if weight_norm else 1e-6)
    moved = (whole.encoder.conv1.weight - start.encoder.conv1.weight).abs().max()
    assert moved > 1e-3


def test_accelerate_saves_and_loads_a_weight_normed_run_exactly(tmp_path):
    accelerate = pytest.importorskip("accelerate")

    def step(model, optimizer, accelerator):
        for clips in Clips().clips.split(4):
            output = model(clips)
            accelerator.backward(output.loss + output.audio_values.square().mean())
            optimizer.step()
            optimizer.zero_grad()

    accelerator = accelerate.Accelerator(cpu=True)
    model = tiny().train()
    model.apply_weight_norm()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model, optimizer = accelerator.prepare(model, optimizer)
    step(model, optimizer, accelerator)
    accelerator.save_state(str(tmp_path))
    step(model, optimizer, accelerator)
    after = copy.deepcopy(accelerator.unwrap_model(model))
    accelerator.load_state(str(tmp_path))
    step(model, optimizer, accelerator)
    same_weights(accelerator.unwrap_model(model), after, 0)


class Count(nn.Module):
    """Counts bytes that autograd keeps."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.bytes = 0

    def forward(self, audio):
        self.bytes = 0

        def pack(tensor):
            self.bytes += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            return self.model(audio)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients_with_less_memory(reentrant):
    model = tiny_model(downsampling_ratios=[2, 4]).train()
    counted = Count(model)
    audio = torch.randn(2, 1, 800, requires_grad=True)

    def gradients():
        model.zero_grad()
        output = counted(audio)
        (output.loss + output.audio_values.square().mean()).backward()
        return {name: part.grad.clone() for name, part in model.named_parameters()}, counted.bytes

    before, whole = gradients()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers is about to rename it
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    after, less = gradients()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_disable()
    _, again = gradients()
    for name, gradient in before.items():
        torch.testing.assert_close(after[name], gradient, atol=1e-5, rtol=1e-4)
    assert less < 0.6 * whole
    assert again == whole


def test_adapters_train_with_gradient_checkpointing():
    peft = pytest.importorskip("peft")
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model(downsampling_ratios=[2, 4])
        if checkpointing:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                model.gradient_checkpointing_enable({"use_reentrant": True})
        torch.manual_seed(0)
        config = peft.LoraConfig(r=2, target_modules=["conv1"], init_lora_weights=False)
        adapted = peft.get_peft_model(model, config).train()
        adapted(Clips().clips[:2]).audio_values.square().mean().backward()
        parts = {name: p.grad for name, p in adapted.named_parameters() if p.requires_grad}
        assert all(grad is not None for grad in parts.values())
        gradients.append(parts)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-3, rtol=1e-2)


def test_audio_comes_by_either_keyword(model):
    hop = model.config.hop_length
    clips = [torch.randn(hop), torch.randn(3 * hop)]
    extractor = DacFeatureExtractor(sampling_rate=16000, hop_length=hop)
    features = extractor(audio=clips, sampling_rate=16000, return_tensors="pt")
    same = extractor(clips, sampling_rate=16000, return_tensors="pt")
    assert torch.equal(features["input_values"], same["input_values"])
    mask = features["padding_mask"]
    with torch.no_grad():
        expected = model(**features)
        output = model(audio=features["input_values"], padding_mask=mask)
        codes = model.encode(audio=features["input_values"], padding_mask=mask).audio_codes
    assert torch.equal(output.audio_values, expected.audio_values)
    assert torch.equal(codes, expected.audio_codes)
    for wrong in ({}, {"audio": clips[0], "input_values": clips[0]}):
        with pytest.raises(TypeError, match="as input_values or as audio, got neither or both"):
            model(**wrong)
    with pytest.raises(TypeError, match="unexpected keyword argument 'sound'"):
        model(sound=clips[0])
    with pytest.raises(ValueError, match="as raw_audio or as audio"):
        extractor(sampling_rate=16000)


FORK = """
import os, sys
import torch
torch.set_num_threads(4)
sys.path.insert(0, sys.argv[1])
from tiny import tiny_model
model = tiny_model(encoder_hidden_size=64, decoder_hidden_size=1024)
audio = torch.randn(1, 1, 20480)
codes = model(audio).audio_codes
reader, writer = os.pipe()
child = os.fork()
if not child:
    with torch.no_grad():
        same = torch.equal(model(audio).audio_codes, codes)
    os.write(writer, b"same" if same else b"other")
    os._exit(0)
os.close(writer)
assert torch.get_num_threads() == 4
print(os.read(reader, 8).decode())
os.waitpid(child, 0)
"""


def run_forking(script: str) -> list[str]:
    """Run a script that forks, on several threads; return the words it prints."""
    here = os.path.dirname(os.path.dirname(__file__))
    process = subprocess.Popen(
        [sys.executable, "-c", script, here],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"},
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # children that wait for ever, too
        pytest.fail("a forked child waits for threads that it does not have")
    assert process.returncode == 0, err
    return out.split()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_computes_where_its_parent_used_several_threads():
    assert run_forking(FORK) == ["same"]


MAP = """
import sys
import numpy as np
import torch
torch.set_num_threads(4)
sys.path.insert(0, sys.argv[1])
from datasets import Dataset, disable_progress_bars
from tiny import tiny_model
from codecplus import Codec
disable_progress_bars()
codec = Codec(tiny_model(encoder_hidden_size=32, decoder_hidden_size=256))
audio = 0.3 * torch.randn(2, 1, 20480)
codec.model(audio)  # with gradients, on all threads
codes = [codec.encode(clip.numpy()) for clip in audio]
cells = [{"array": clip[0].numpy(), "sampling_rate": 16000} for clip in audio]
rows = Dataset.from_dict({"audio": cells})
coded = rows.map(codec.encode_batch, batched=True, batch_size=1, num_proc=2)
assert torch.get_num_threads() == 4
assert coded["error"][:] == [""] * 2, coded["error"][:]
for one, other in zip(coded["codes"], codes, strict=True):
    print("same" if np.array_equal(one, other[0]) else "other")
"""


@pytest.mark.slow  # a child process that imports everything twice; the test above forks in seconds
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_map_of_datasets_forks_where_its_parent_used_several_threads():
    pytest.importorskip("datasets")
    assert run_forking(MAP) == ["same"] * 2
