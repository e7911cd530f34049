"""Tiny recipes of both kinds, and recordings to train on."""

from codecplus.training.recipe import Recipe

RATE = 8000
CONFIG = {
    "model_type": "causal_dac",
    "encoder_hidden_size": 8,
    "decoder_hidden_size": 32,
    "downsampling_ratios": [4, 4],
    "n_codebooks": 3,
    "codebook_size": 16,
    "sampling_rate": RATE,
}
ADVERSARY = {
    "periods": [2, 3],
    "fft_sizes": [64],
    "period_channels": [4, 8],
    "stft_channels": 4,
    "lr": 1e-3,
}

# Like those of the embedded checkpoints: phases, balanced gradients, codebooks as means, Muon.
PHASED = {
    "preset": "config.json",
    "schedule": {
        "steps": 8,
        "warmup": 2,
        "quantize_at": 2,
        "adversary_at": 3,
        "freeze_at": 6,
        "decay_at": 5,
    },
    "objective": {
        "balanced": True,
        "weights": {
            "relative_mel": 0.6,
            "compressed_stft": 0.3,
            "relative_waveform": 0.1,
            "adversarial": 0.2,
            "feature_matching": 0.2,
        },
        "mel_bands": {"64": 8},
        "stft_windows": [64],
        "commitment": 0.03,
        "latent_scale": 0.1,
        "unread": 0.03,
    },
    "codebooks": {
        "learning": "means",
        "placed": True,
        "placement_vectors": 100,
        "placement_floor": 0.05,
        "revive_below": 0.04,
        "rate_weight": 0.02,
        "searched": 0.5,
    },
    "adversary": ADVERSARY,
    "batch": 4,
    "seconds": 0.018,
    "optimizer": "muon",
    "lr": 1e-2,
    "quantized_encoder_lr": 0.5,
    "clip": None,
    "weight_norm": False,
    "quantizer_dropout": 0.5,
}

# As in the paper.
PAPER = {
    "preset": "config.json",
    "schedule": {"steps": 8, "warmup": 1, "gamma": 0.99},
    "objective": {
        "weights": {"mel": 15, "feature_matching": 2, "adversarial": 1},
        "mel_bands": {"64": 8, "32": 5},
        "stft_windows": [64],
    },
    "adversary": ADVERSARY,
    "batch": 4,
    "seconds": 0.018,
    "lr": 1e-3,
}


def tiny_recipe(fields: dict, preset, **settings) -> Recipe:
    return Recipe.from_dict({**fields, "preset": str(preset), **settings})
