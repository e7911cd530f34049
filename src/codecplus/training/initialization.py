"""Weights to start training from. It knows architectures, nothing of recordings or steps."""

import torch
from torch import nn

from codecplus.modeling_dac import CausalDacModel, DacModel
from codecplus.training.recipe import Recipe


def new_model(recipe: Recipe) -> DacModel:
    """Return a model of the architecture that the recipe names, with weights to start from."""
    config = recipe.config()
    torch.manual_seed(recipe.seed)
    if config.causal:
        model = CausalDacModel(config)
    else:
        model = DacModel(config)
    if recipe.initialization == "pytorch":
        initialize_by_default(model)
    else:
        initialize_weights(model)
    return model


@torch.no_grad()
def initialize_weights(model: DacModel) -> None:
    """Draw the weights of all convolutions anew.

    They keep the level of a signal, residual branches begin small, and the last layer is quiet: a
    loud one begins in the flat part of tanh and does not come out of it. Band gains begin near 0
    dB.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.ConvTranspose1d):
            # An output step sees two inputs.
            nn.init.normal_(module.weight, std=(2 * module.in_channels) ** -0.5)
        elif isinstance(module, nn.Conv1d):
            inputs = module.weight[0].numel()
            nn.init.normal_(module.weight, std=_gain(name) * inputs**-0.5)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@torch.no_grad()
def initialize_by_default(model: DacModel) -> None:
    """Draw all weights anew as PyTorch does, with zeros as the biases of plain convolutions.

    That is how the original implementation begins. It also draws weights of standard deviation
    0.02, but writes them where weight norm replaces them before they are used.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d | nn.Embedding):
            module.reset_parameters()
        if isinstance(module, nn.Conv1d) and module.bias is not None:
            nn.init.zeros_(module.bias)


def _gain(name: str) -> float:
    """Return the level that the convolution of this name gives a signal."""
    if name in ("decoder.conv2", "decoder.gains.decoder.conv3"):
        return 0.03
    if "res_unit" in name and name.endswith("conv2"):
        return 0.1
    return 1.0
