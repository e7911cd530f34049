"""An encoder with more channels that begins as the one it came from, to be trained on beside its
decoder.
"""

import torch
from torch import Tensor

from codecplus.errors import InputError
from codecplus.modeling_dac import DacModel
from codecplus.training.initialization import initialize_weights


@torch.no_grad()
def with_wider_encoder(model: DacModel, encoder_hidden_size: int, seed: int = 0) -> DacModel:
    """A copy of a codec whose encoder has more channels and gives the same latents, until it is
    trained.

    New channels hear all others through random weights, and no old one hears them yet (Net2Net of
    Chen et al. 2016, but without copies of channels that would have to be told apart). Decoder and
    codebooks are those of `model`.

    Args:
        model: the codec; weight norm is folded in the copy.
        encoder_hidden_size: channels of the encoder's first layer; they double with every block.
        seed: of the random weights.

    Raises:
        InputError: if that is no wider than the encoder is.
    """
    config = model.config
    if encoder_hidden_size <= config.encoder_hidden_size:
        raise InputError(
            f"expected an encoder wider than its {config.encoder_hidden_size} channels, got {encoder_hidden_size}"
        )
    fields = {
        **config.to_dict(),
        "encoder_hidden_size": encoder_hidden_size,
    }  # the width of the latents among them
    wide = type(model)(type(config).from_dict(fields))
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        initialize_weights(wide)
    old = model.folded_state_dict()
    for name, tensor in wide.state_dict().items():
        _fill(tensor, old[name])
    return wide


def _fill(wide: Tensor, old: Tensor) -> None:
    """Write what the old parameter holds into the first channels of the wide one, and zero what
    these hear of others.

    A kernel is (C', C, k), the α of a snake (1, C, 1), 1 in new channels, and a bias (C',).
    """
    if wide.shape == old.shape:
        wide.copy_(old)
    elif old.ndim == 3:
        wide[: len(old)] = 1 if len(old) == 1 else 0
        wide[: len(old), : old.shape[1]] = old
    else:
        wide[: len(old)] = old
