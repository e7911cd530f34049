"""The fragments in which others call DAC: they get what transformers' or the original class gives."""

import numpy as np
import pytest
import torch
from tiny import tiny_model
from transformers import AutoConfig, AutoModel, DacConfig
from transformers import DacModel as StockModel

from codecplus import DacFeatureExtractor, DacModel

FIELDS = {
    "encoder_hidden_size": 8,
    "decoder_hidden_size": 16,
    "downsampling_ratios": [2, 4],
    "n_codebooks": 9,
    "codebook_size": 1024,
    "sampling_rate": 44100,
}


@pytest.fixture
def pair():
    """Our model, and transformers' with its weights."""
    ours = tiny_model(**FIELDS)
    theirs = StockModel(DacConfig(**FIELDS)).eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def word_tokenizer():
    tokenizers = pytest.importorskip("tokenizers")
    from transformers import PreTrainedTokenizerFast

    model = tokenizers.models.WordLevel({"[PAD]": 0, "hello": 1}, unk_token="[PAD]")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(model), pad_token="[PAD]")


def test_dia_prompts_and_decodes_with_our_model(pair):
    from transformers import DiaFeatureExtractor, DiaProcessor

    extractor = DiaFeatureExtractor(sampling_rate=44100, hop_length=8)
    clips = [np.sin(np.arange(n) / 5).astype(np.float32) * 0.3 for n in (80, 47)]
    outputs = []
    for model in pair:
        processor = DiaProcessor(extractor, word_tokenizer(), audio_tokenizer=model)
        batch = processor(text=["hello", "hello"], audio=clips, sampling_rate=44100)
        prompt = processor.get_audio_prompt_len(batch["decoder_attention_mask"])
        generated = torch.nn.functional.pad(batch["decoder_input_ids"], (0, 0, 0, 16), value=1025)
        codes = batch["decoder_input_ids"]
        audio = processor.batch_decode(torch.cat([codes, generated[:, -16:]], dim=1))
        outputs.append((codes, prompt, audio))
    ours, theirs = outputs
    assert torch.equal(ours[0], theirs[0])
    assert ours[1] == theirs[1]
    for one, other in zip(ours[2], theirs[2], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_parler_tts_encodes_prompts_and_decodes_samples_one_by_one(pair):
    # It wraps DAC as an audio encoder, takes codes with a leading axis of one, and calls
    # `decode(audio_codes=...)` for each sample, cut where padding begins.
    audio = torch.randn(2, 1, 64) * 0.3
    results = []
    for model in pair:
        with torch.no_grad():
            codes = model.encode(audio, n_quantizers=model.config.n_codebooks).audio_codes
            assert model.config.codebook_size == 1024
            assert model.dtype == torch.float32
            values = []
            for sample in codes:
                kept = sample[:, (sample >= 0).all(dim=0)]
                values.append(model.decode(audio_codes=kept[None]).audio_values)
            encoded = model.encode(audio, return_dict=False)
            results.append((codes, torch.stack(values), encoded[2]))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], atol=1e-5, rtol=0)
    assert torch.equal(results[0][2], results[1][2])
    assert AutoModel.from_config(AutoConfig.for_model("dac", **FIELDS)).config.n_codebooks == 9


def test_stable_audio_tools_calls_the_halves_and_the_quantizer(pair):
    # Its bottlenecks take latents, quantize them and decode; latents are what its diffusion sees.
    audio = torch.randn(1, 1, 160) * 0.3
    results = []
    for model in pair:
        with torch.no_grad():
            latents = model.encoder(audio)
            quantized, codes, projected, *_losses = model.quantizer(latents)
            again = model.quantizer.from_latents(projected)[0]
            decoded = model.decoder(model.quantizer.from_codes(codes)[0])
        results.append((latents, quantized, codes, projected, again, decoded))
    for one, other in zip(*results, strict=True):
        if one.dtype == torch.int64:
            assert torch.equal(one, other)
        else:
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_audiocraft_asks_for_sizes_and_codes_with_any_number_of_codebooks(pair):
    # Its wrapper has `encode` give codes (B, K, T), decodes latents of codes, and reads sizes.
    audio = torch.randn(2, 1, 160) * 0.3
    ours, theirs = pair
    for count in (1, 4, 9):
        with torch.no_grad():
            codes = [model.encode(audio, n_quantizers=count).audio_codes for model in pair]
            latents = [model.quantizer.from_codes(codes[0])[0] for model in pair]
            sound = [
                model.decode(quantized_representation=z).audio_values
                for model, z in zip(pair, latents, strict=True)
            ]
        assert torch.equal(*codes)
        torch.testing.assert_close(*sound, atol=1e-5, rtol=0)
    assert ours.config.sampling_rate / ours.config.hop_length == 44100 / 8
    assert ours.quantizer.n_codebooks == theirs.quantizer.n_codebooks == 9
    assert ours.quantizer.codebook_size == 1024


def test_the_example_of_transformers_page_runs(tmp_path):
    model = tiny_model(**FIELDS)
    model.save_pretrained(tmp_path)
    DacFeatureExtractor(sampling_rate=44100, hop_length=8).save_pretrained(tmp_path)
    from transformers import AutoProcessor

    model = DacModel.from_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    inputs = processor(
        raw_audio=np.zeros(160, np.float32),
        sampling_rate=processor.sampling_rate,
        return_tensors="pt",
    )
    encoder_outputs = model.encode(inputs["input_values"])
    audio_values = model.decode(encoder_outputs.quantized_representation).audio_values
    again = model(inputs["input_values"]).audio_values
    assert encoder_outputs.audio_codes.shape == (1, 9, 20)
    torch.testing.assert_close(audio_values, again)
