"""A wider encoder that gives the latents of the one it came from, to be trained on."""

import torch
from torch import Tensor

from codecplus.errors import InputError
from codecplus.modeling_dac import DacModel
from codecplus.training.initialization import initialize_weights


@torch.no_grad()
def with_wider_encoder(model: DacModel, encoder_hidden_size: int, seed: int = 0) -> DacModel:
    """Return a copy of a codec whose encoder has more channels and gives the same latents.

    New channels hear all others through random weights, and no old one hears them yet (Net2Net of
    Chen et al. 2016, but without copies of channels that would have to be told apart). Decoder and
    codebooks are those of `model`.

    Args:
        model: the codec; weight norm is folded in the copy.
        encoder_hidden_size: channels of the encoder's first layer; they double with every block.
        seed: of the random weights of new channels.

    Raises:
        InputError: if that is no wider than the encoder is.
    """
    config = model.config
    if encoder_hidden_size <= config.encoder_hidden_size:
        raise InputError(
            f"expected an encoder wider than its {config.encoder_hidden_size} channels, "
            f"got {encoder_hidden_size}"
        )
    # The width of the latents is among the fields, and stays.
    fields = {**config.to_dict(), "encoder_hidden_size": encoder_hidden_size}
    wide = type(model)(type(config).from_dict(fields))
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        initialize_weights(wide)
    old = model.folded_state_dict()
    for name, tensor in wide.state_dict().items():
        _fill(tensor, old[name])
    return wide


def _fill(wide: Tensor, old: Tensor) -> None:
    """Write an old parameter into the first channels of a wide one.

    A kernel is (C', C, k), whose old channels hear nothing of new ones. The α of a snake is
    (1, C, 1), and 1 in new channels. A bias is (C',).
    """
    if wide.shape == old.shape:
        wide.copy_(old)
    elif old.ndim == 3:
        wide[: len(old)] = 1 if len(old) == 1 else 0
        wide[: len(old), : old.shape[1]] = old
    else:
        wide[: len(old)] = old
