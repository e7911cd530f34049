"""Tiny models of the released geometries, which run in milliseconds."""

from pathlib import Path

import torch

from codecplus import CausalDacConfig, CausalDacModel, DacConfig, DacModel

FIXTURES = Path(__file__).parent / "fixtures"


def tiny_model(causal: bool = False, seed: int = 0, **fields) -> DacModel:
    """A DAC of some ten thousand weights whose activations stay near 1, so that audio and codes are
    lively.
    """
    fields = {
        "encoder_hidden_size": 8,
        "decoder_hidden_size": 16,
        "n_codebooks": 4,
        "codebook_size": 64,
        **fields,
    }
    generator = torch.Generator().manual_seed(seed)
    model = CausalDacModel(CausalDacConfig(**fields)) if causal else DacModel(DacConfig(**fields))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "codebook" in name or "proj" in name:
                parameter.copy_(0.3 * noise)
            elif "conv_t1.weight" in name:
                parameter.copy_(noise / (2 * parameter.shape[0]) ** 0.5)
            elif "weight" in name:
                parameter.copy_(0.5 * noise / parameter[0].numel() ** 0.5)
            elif "alpha" in name:
                parameter.copy_(1 + 0.1 * noise)
            else:
                parameter.copy_(0.02 * noise)
    return model.eval()


def random_weights(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Give a layer random weights that keep the level of signals; return it in eval mode."""
    torch.manual_seed(seed)
    for name, parameter in module.named_parameters():
        if "alpha" in name:
            parameter.data.uniform_(-2, 2)
        else:
            parameter.data.normal_(0, 0.1 if "bias" in name else parameter[0].numel() ** -0.5)
    return module.eval()


# The released strides, an odd one among them, and a small net with two odd ones.
GEOMETRIES = {
    "44khz": {"downsampling_ratios": [2, 4, 8, 8], "sampling_rate": 44100},
    "16khz": {"downsampling_ratios": [2, 4, 5, 8], "sampling_rate": 16000},
    "odd": {"downsampling_ratios": [3, 5], "sampling_rate": 8000},
}

# Fields by geometry and causality, one with band gains among them.
KINDS = {(name, causal): GEOMETRIES[name] for name in GEOMETRIES for causal in (False, True)}
KINDS["gains", True] = {
    **GEOMETRIES["16khz"],
    "hidden_size": 40,
    "gain_size": 8,
    "gain_bands": 6,
    "gain_hidden_size": 16,
}
KINDS["gains", False] = {
    **GEOMETRIES["44khz"],
    "hidden_size": 40,
    "gain_size": 8,
    "gain_bands": 9,
    "gain_hidden_size": 16,
    "gain_linear_hz": 4000,
}
