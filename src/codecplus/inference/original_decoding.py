"""How the original implementation decodes its `.dac` files."""

from collections.abc import Iterator

import numpy as np

from codecplus.audio.arrays import split_blocks
from codecplus.audio.blocks import check_blocks, resample_blocks, take_samples
from codecplus.audio.loudness import integrated_loudness
from codecplus.audio.resampling import resampled_length
from codecplus.bitstream.codes import check_codes
from codecplus.checkpoints import DacFile
from codecplus.errors import FileFormatError
from codecplus.inference.network import Network

_QUIETEST = -70.0  # LUFS; the original measures no less


def decode_official(network: Network, file: DacFile) -> tuple[int, int, Iterator[np.ndarray]]:
    """Decode a `.dac`.

    The file names no model, so only its shapes and lengths can be checked.

    Returns:
        Channels, the sample rate in Hz, and the audio (C, n) in blocks.

    Raises InputError for codes that the network does not have, FileFormatError for lengths that
    contradict each other.
    """
    config = network.config
    codes = check_codes(file.codes, config.n_codebooks, config.codebook_size)
    if file.padding:
        audio = np.concatenate(list(network.decode_blocks([codes])), axis=-1)
    else:
        audio = network.decode_unpadded(codes, file.chunk_length)
    length = resampled_length(file.original_length, file.sample_rate, config.sampling_rate)
    if length > audio.shape[-1] + config.hop_length:
        raise FileFormatError(
            f"the file claims {file.original_length} samples, its codes hold {audio.shape[-1]}; "
            "it is damaged"
        )
    # The original brings every channel back to the loudness measured before encoding, each by its
    # own gain.
    for channel in audio:
        loudness = max(integrated_loudness(channel, config.sampling_rate), _QUIETEST)
        channel *= np.float32(10 ** ((file.input_db - loudness) / 20))
    blocks = resample_blocks(
        check_blocks(split_blocks(audio)), config.sampling_rate, file.sample_rate, len(codes)
    )
    return len(codes), file.sample_rate, take_samples(blocks, file.original_length)
