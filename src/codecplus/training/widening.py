"""Widens parts of a codec without changing their outputs, for further training."""

import torch
from torch import Tensor

from codecplus.errors import InputError
from codecplus.modeling_dac import DacModel
from codecplus.training.initialization import initialize_weights


def with_wider_encoder(model: DacModel, encoder_hidden_size: int, seed: int = 0) -> DacModel:
    """Return a copy of a codec whose encoder has more channels and gives the same latents.

    New channels read all others through random weights; the weights from new to old channels are
    zero (as in Net2Net, Chen et al. 2016, but without copies of channels, which training would have
    to tell apart). Decoder and codebooks are those of `model`.

    Args:
        model: the codec; weight norm is folded in the copy.
        encoder_hidden_size: channels of the encoder's first layer; they double with every block.
        seed: of the random weights of new channels.

    Raises:
        InputError: if the encoder has that many channels already.
    """
    return _widened(model, "encoder", encoder_hidden_size, seed)


def with_wider_decoder(model: DacModel, decoder_hidden_size: int, seed: int = 0) -> DacModel:
    """Return a copy of a codec whose decoder has more channels and gives the same audio.

    Encoder and codebooks are those of `model`: codes stay valid. New channels begin as
    `with_wider_encoder` says.

    Args:
        model: the codec; weight norm is folded in the copy.
        decoder_hidden_size: channels of the decoder's first layer; every block halves them.
        seed: of the random weights of new channels.

    Raises:
        InputError: if the decoder has that many channels already, or cannot halve them so often.
    """
    halvings = 2 ** len(model.config.downsampling_ratios)
    if decoder_hidden_size % halvings:
        raise InputError(
            f"expected a multiple of {halvings} as the width of the decoder, whose "
            f"{len(model.config.downsampling_ratios)} blocks halve it, got {decoder_hidden_size}"
        )
    return _widened(model, "decoder", decoder_hidden_size, seed)


@torch.no_grad()
def _widened(model: DacModel, part: str, width: int, seed: int) -> DacModel:
    """Return a copy of a codec with `width` channels in the first layer of a part."""
    config = model.config
    field = f"{part}_hidden_size"
    if width <= getattr(config, field):
        raise InputError(
            f"expected the {part} wider than its {getattr(config, field)} channels, got {width}"
        )
    # The width of the latents is among the fields, and stays.
    fields = {**config.to_dict(), field: width}
    wide = type(model)(type(config).from_dict(fields))
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        initialize_weights(wide)
    old = model.folded_state_dict()
    for name, tensor in wide.state_dict().items():
        _fill(name, tensor, old[name])
    return wide


def _fill(name: str, wide: Tensor, old: Tensor) -> None:
    """Write an old parameter into the first channels of a wide one.

    A kernel is (C', C, k), that of a transposed convolution (C, C', k), with zeros from new to old
    channels. The α of a snake is (1, C, 1), and 1 in new channels. A bias is (C',).
    """
    if wide.shape == old.shape:
        wide.copy_(old)
    elif name.endswith("alpha"):
        wide.fill_(1)
        wide[:, : old.shape[1]] = old
    elif old.ndim == 1:
        wide[: len(old)] = old
    elif name.endswith("conv_t1.weight"):
        wide[:, : old.shape[1]] = 0
        wide[: len(old), : old.shape[1]] = old
    else:
        wide[: len(old)] = 0
        wide[: len(old), : old.shape[1]] = old
