"""Back from rows of codes to audio files, to listen to."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from codecplus.audio.files import AudioFileWriter
from codecplus.audio.resampling import resampled_length
from codecplus.checkpoints.identity import find_embedded
from codecplus.codec import Codec, Codes, load_codec
from codecplus.errors import CodecPlusError, FileFormatError, InputError, ModelMismatchError
from codecplus.tokenizing.shards import NEW_COLUMNS
from codecplus.tokenizing.sources import load_rows

FORMATS = ("wav", "flac", "ogg", "mp3")


def row_codes(codec: Codec, row: Mapping[str, Any]) -> Codes:
    """The codes of a row, which `codec.decode` decodes to the length and rate of the recording they
    came from.

    Raises InputError for a row without codes, ModelMismatchError for codes of another model,
    FileFormatError for a row that contradicts itself.
    """
    if row.get("codes") is None:
        raise InputError(f"the row has no codes: {row.get('error') or 'they are null'}")
    try:
        codes = np.array(row["codes"])
        samples, rate = int(row["num_samples"]), int(row["sample_rate"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise FileFormatError(
            "expected a row of codes, num_samples and sample_rate; the row is damaged"
        ) from error
    mark = row.get("model_fingerprint")
    if mark is not None and mark != codec.fingerprint.hex():
        made = find_embedded(bytes.fromhex(mark)) if len(mark) == 32 else None
        raise ModelMismatchError(
            f"expected codes of this model ({codec.fingerprint.hex()}), got codes of {made or 'another'} ({mark})"
        )
    channels = codes.shape[0] if codes.ndim == 3 else 1
    frames = -(
        -resampled_length(max(samples, 0), max(rate, 1), codec.model_sample_rate)
        // codec.hop_length
    )
    if codes.ndim not in (2, 3) or codes.shape[-1] != frames:
        raise FileFormatError(
            f"expected {frames} frames for {samples} samples at {rate} Hz, got codes of shape {codes.shape}"
        )
    info = codec.stream_info(rate, channels, n_quantizers=codes.shape[-2])
    return Codes(codes, info, samples)


def detokenize(
    data: Any,
    out: str | os.PathLike[str],
    *,
    codec: Codec | Callable[[str], Codec] | None = None,
    split: str = "train",
    revision: str | None = None,
    streaming: bool = False,
    suffix: str = "wav",
    limit: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Decode a code dataset to a folder of audio files, with the other columns in `metadata.jsonl`.

    The folder is an audio folder as `datasets` and `codecplus tokenize` read it. Files are named by
    the column `path`, if there is one, else by the number of the row; files that are there already
    are kept, so that a run can go on.

    Args: data: a folder that `tokenize` wrote, or a Hub id, or rows in memory. codec: the model, or
        a function that loads one by name; by default the one the data were made with. suffix: of
        the files: wav, flac, ogg or mp3. limit: rows at most. overwrite: decode files that are
        there already once more.

    Returns:
        How many `written`, `kept` and `failed`, and the `failures`: reasons by row number.
    """
    from tqdm import tqdm

    if suffix not in FORMATS:
        raise InputError(f"expected a suffix of {', '.join(FORMATS)}, got {suffix!r}")
    rows, name = load_rows(data, split=split, revision=revision, streaming=streaming)
    root = Path(out)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}") from error
    loaded: Codec | None = codec if isinstance(codec, Codec) else None
    load: Callable[[str], Codec] = (
        load_codec if codec is None or isinstance(codec, Codec) else codec
    )
    result: dict[str, Any] = {"written": 0, "kept": 0, "failed": 0, "failures": {}}
    taken: set[str] = set()
    temporary = root / f".metadata.{os.getpid()}.jsonl"
    total = None if streaming else min(len(rows), limit or len(rows))
    try:
        with temporary.open("w", encoding="utf-8") as metadata:
            for number, row in enumerate(
                tqdm(rows, "detokenising", total, disable=None if progress else True)
            ):
                if number == limit:
                    break
                try:
                    if row.get("codes") is None:
                        raise InputError(f"no codes: {row.get('error') or 'they are null'}")
                    loaded = loaded or load(_maker(row.get("model_fingerprint"), name))
                    file = _file_name(row.get("path"), number, suffix, taken)
                    latents = row_codes(loaded, row)
                    if (root / file).exists() and not overwrite:
                        result["kept"] += 1
                    else:
                        (root / file).parent.mkdir(parents=True, exist_ok=True)
                        _save(loaded.decode(latents), root / file, int(row["sample_rate"]))
                        result["written"] += 1
                    metadata.write(json.dumps({"file_name": file, **dict(_plain(row))}) + "\n")
                except ModelMismatchError:
                    raise
                except CodecPlusError as error:
                    if loaded is None and row.get("codes") is not None:
                        raise  # no model, no row
                    result["failed"] += 1
                    result["failures"][number] = str(error)
        os.replace(temporary, root / "metadata.jsonl")
    finally:
        temporary.unlink(missing_ok=True)
    return result


def _save(audio: np.ndarray, path: Path, sample_rate: int) -> None:
    """Write a file, clipped where its format ends at full scale: a codec overshoots now and then."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        audio = np.atleast_2d(audio)
        with AudioFileWriter(path, sample_rate, len(audio)) as writer:
            writer.write(audio)


def _maker(mark: str | None, name: str) -> str:
    """The name of the model that made the codes."""
    if mark and (embedded := find_embedded(bytes.fromhex(mark))):
        return embedded
    text = None
    try:
        if (Path(name) / "tokenize.json").is_file():
            text = (Path(name) / "tokenize.json").read_text(encoding="utf-8")
        elif name.count("/") == 1 and not Path(name).exists():
            from huggingface_hub import hf_hub_download

            text = Path(hf_hub_download(name, "tokenize.json", repo_type="dataset")).read_text(
                encoding="utf-8"
            )
        said = json.loads(text)["codes"]["model"] if text else None
    except Exception:  # nothing that names it, for whatever reason
        said = None
    if not said:
        raise InputError("nothing says which model made these codes; name it with --model")
    return said


def _file_name(path: Any, number: int, suffix: str, taken: set[str]) -> str:
    """Where a row goes, inside the folder whatever the row says, and nowhere twice."""
    parts = [
        part
        for part in PurePosixPath(str(path or "")).parts
        if part not in ("/", "..", ".") and "\0" not in part
    ]
    parts = [part.replace("\\", "_").replace(":", "_").lstrip(".") or "_" for part in parts]
    name = (
        PurePosixPath(*parts).with_suffix(f".{suffix}").as_posix()
        if parts
        else f"{number:08d}.{suffix}"
    )
    if name in taken:
        name = f"{name.removesuffix('.' + suffix)}-{number:08d}.{suffix}"
    taken.add(name)
    return name


def _plain(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The other columns of a row, as far as JSON can hold them."""
    for key, value in row.items():
        if key not in NEW_COLUMNS and key not in ("path", "file_name"):
            try:
                json.dumps(value)
            except (TypeError, ValueError):
                continue
            yield key, value


__all__ = ["detokenize", "row_codes"]
