"""Widens the encoder of a codec without changing its latents, for further training."""

import torch
from torch import Tensor

from codecplus.errors import InputError
from codecplus.modeling_dac import DacModel
from codecplus.training.initialization import initialize_weights


@torch.no_grad()
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

    A kernel is (C', C, k), with zeros from new to old channels. The α of a snake is (1, C, 1), and
    1 in new channels. A bias is (C',).
    """
    if wide.shape == old.shape:
        wide.copy_(old)
        return
    is_kernel = old.ndim == 3 and len(old) > 1
    if is_kernel:
        wide[: len(old)] = 0
        wide[: len(old), : old.shape[1]] = old
    elif old.ndim == 3:
        wide.fill_(1)
        wide[:, : old.shape[1]] = old
    else:
        wide[: len(old)] = old
