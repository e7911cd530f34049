"""Options of compression. They check themselves, and know no model."""

from dataclasses import dataclass, fields
from typing import Any

from codecplus.errors import InputError

_RATE_CONTROLS = ("cbr", "abr", "vbr")


@dataclass(frozen=True, kw_only=True)
class CompressionOptions:
    """How audio becomes codes, and codes become bytes.

    Args:
        bitrate: kbit/s for all channels together. The number of codebooks with the nearest rate is
            used, all by default. Entropy coding makes a file smaller than that.
        n_quantizers: codebooks to use, instead of a bitrate.
        loudness: LUFS to bring the audio to before encoding (ITU-R BS.1770-4). Decoding undoes it.
        rate_control: `"cbr"` writes the same codebooks for every frame; `"vbr"` the fewest that
            sound alike by `quality`; `"abr"` as many as make the file have `bitrate`, within 2 %.
        quality: 0 to 10, for `"vbr"`; 10 is the quality of all codebooks, 8 the default.
        effort: 0 to 3. The encoder looks for better codes by decoding them and comparing, 3, 10 or
            30 times (docs/bitrate.md). Each time takes about three times as long as decoding.
        entropy_coding: False packs codes as they are.

    Raises InputError for values that are out of range or do not fit together.
    """

    bitrate: float | None = None
    n_quantizers: int | None = None
    loudness: float | None = None
    rate_control: str = "cbr"
    quality: float | None = None
    effort: int = 0
    entropy_coding: bool = True

    def __post_init__(self) -> None:
        mode = self.rate_control
        if mode not in _RATE_CONTROLS:
            raise InputError(f"expected rate_control 'cbr', 'abr' or 'vbr', got {mode!r}")
        if self.effort not in (0, 1, 2, 3):
            raise InputError(f"expected an effort from 0 to 3, got {self.effort!r}")
        if self.quality is not None and (mode != "vbr" or not 0 <= self.quality <= 10):
            raise InputError(
                "expected a quality from 0 to 10, with rate_control='vbr' alone, "
                f"got {self.quality!r}"
            )
        if mode == "abr" and (self.bitrate is None or not self.bitrate > 0):
            raise InputError(f"rate_control='abr' needs a bitrate in kbit/s, got {self.bitrate!r}")
        if mode == "vbr" and self.bitrate is not None:
            raise InputError(
                "rate_control='vbr' goes by quality, got a bitrate; leave it out, or use 'abr'"
            )
        if mode != "cbr" and not self.entropy_coding:
            raise InputError(
                f"rate_control={mode!r} needs entropy coding; leave entropy_coding alone"
            )
        if self.bitrate is not None and self.n_quantizers is not None:
            raise InputError("expected bitrate or n_quantizers, got both; leave one out")

    @classmethod
    def from_settings(
        cls, options: "CompressionOptions | None", settings: dict[str, Any]
    ) -> "CompressionOptions":
        """Options as given, or made of keywords. Raises InputError for both, or unknown names."""
        settings = {name: value for name, value in settings.items() if value is not None}
        if options is not None:
            if settings:
                raise InputError(
                    f"expected options or keywords, got options and {', '.join(settings)}; "
                    "use dataclasses.replace(options, ...)"
                )
            return options
        known = [field.name for field in fields(cls)]
        unknown = [name for name in settings if name not in known]
        if unknown:
            raise InputError(f"unknown option {unknown[0]!r}; expected {', '.join(known)}")
        return cls(**settings)
