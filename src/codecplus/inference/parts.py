"""A part of a file, given in seconds: its samples, and the frames that must be decoded for it."""

import math
from dataclasses import dataclass

from codecplus.bitstream import Header
from codecplus.errors import InputError

_RESAMPLER_FRAMES = 16  # that a resampler may look at around a sample, with room to spare


@dataclass(frozen=True)
class Part:
    """A part of a file: its samples, and the frames that they depend on.

    Neither the network nor the resampler can tell that the frames were cut out of more.
    """

    first_sample: int
    num_samples: int
    first_frame: int
    stop_frame: int
    samples_per_frame: float
    """At the original rate; it need not be whole."""
    origin: int
    """The sample at which `first_frame` begins."""
    until: int
    """The sample up to which audio is decoded."""

    @classmethod
    def of(
        cls, header: Header, start: float, duration: float | None, context_frames: int
    ) -> "Part":
        """The part of a file that begins and lasts these seconds.

        Raises InputError if the file does not have it.
        """
        first_sample, num_samples = _part_samples(header, start, duration)
        samples_per_frame = header.hop_length * header.original_sample_rate / header.sample_rate
        margin = context_frames + _RESAMPLER_FRAMES
        first_frame = max(0, int(first_sample / samples_per_frame) - margin)
        last_frame = int((first_sample + num_samples) / samples_per_frame)
        stop_frame = min(header.num_frames, last_frame + 1 + margin)
        # Resampled audio can only be cut where the grids of both rates meet.
        grid = header.sample_rate // math.gcd(header.sample_rate, header.original_sample_rate)
        first_frame -= first_frame % (grid // math.gcd(grid, header.hop_length))
        origin = first_frame * header.hop_length * header.original_sample_rate
        reaches_end = stop_frame == header.num_frames
        return cls(
            first_sample=first_sample,
            num_samples=num_samples,
            first_frame=first_frame,
            stop_frame=stop_frame,
            samples_per_frame=samples_per_frame,
            origin=origin // header.sample_rate,
            until=header.num_samples if reaches_end else first_sample + num_samples,
        )


def _part_samples(header: Header, start: float, duration: float | None) -> tuple[int, int]:
    """First sample and number of samples of a part given in seconds."""
    rate = header.original_sample_rate
    total = header.num_samples
    first = round(start * rate)
    if not 0 <= first <= total or (duration is not None and duration < 0):
        raise InputError(
            f"expected a part within the {total / rate:.3f} s of the file, "
            f"got start={start}, duration={duration}"
        )
    if duration is None:
        return first, total - first
    return first, min(total - first, round(duration * rate))
