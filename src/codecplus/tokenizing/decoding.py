"""Decodes rows of codes to audio files."""

import json
import os
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from codecplus.audio.arrays import check_rate
from codecplus.audio.files import AudioFileWriter
from codecplus.audio.resampling import resampled_length
from codecplus.checkpoints.identity import find_embedded
from codecplus.codec import Codec, Codes, load_codec
from codecplus.decompression import MAX_SECONDS, check_length
from codecplus.errors import (
    CodecPlusError,
    FileFormatError,
    InputError,
    ModelMismatchError,
    first_line,
)
from codecplus.recordings.tables import load_dataset
from codecplus.system.paths import atomic_path, explain_os_error
from codecplus.system.progress import progress_bar
from codecplus.tokenizing.shards import NEW_COLUMNS

FORMATS = ("wav", "flac", "ogg", "mp3")
METADATA = "metadata.jsonl"


def row_codes(
    codec: Codec, row: Mapping[str, Any], *, max_seconds: float | None = MAX_SECONDS
) -> Codes:
    """Return the codes of a row; `codec.decode` gives them the recording's length and rate.

    Args:
        codec: the model that made the codes.
        row: with `codes`, `num_samples` and `sample_rate`.
        max_seconds: audio that a row may become; None for no limit.

    Raises:
        InputError: for a row without codes, of a rate that the codec does not have, and beyond
            `max_seconds`.
        ModelMismatchError: for codes of another model.
        FileFormatError: for a row that contradicts itself.
    """
    if row.get("codes") is None:
        raise InputError(f"the row has no codes: {row.get('error') or 'they are null'}")
    try:
        codes = np.array(row["codes"])
        samples = int(row["num_samples"])
        rate = int(row["sample_rate"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise FileFormatError(
            "expected a row of codes, num_samples and sample_rate; the row is damaged"
        ) from error
    _check_fingerprint(codec, row.get("model_fingerprint"))
    if samples < 1:
        raise FileFormatError(f"expected num_samples of 1 at least, got {samples}")
    check_rate(rate)
    check_length(samples / rate, max_seconds)
    model_samples = resampled_length(samples, rate, codec.model_sample_rate)
    frames = -(-model_samples // codec.hop_length)
    if codes.ndim not in (2, 3) or codes.shape[-1] != frames:
        raise FileFormatError(
            f"expected {frames} frames for {samples} samples at {rate} Hz, "
            f"got codes of shape {codes.shape}"
        )
    highest = codec.codebook_size - 1
    if codes.dtype.kind not in "iu" or codes.min() < 0 or codes.max() > highest:
        raise FileFormatError(f"expected codes from 0 to {highest}, got others; the row is damaged")
    channels = 1
    if codes.ndim == 3:
        channels = codes.shape[0]
    info = codec.stream_info(rate, channels, n_quantizers=codes.shape[-2])
    return Codes(codes, info, samples)


def _check_fingerprint(codec: Codec, fingerprint: Any) -> None:
    """Raise ModelMismatchError for codes of another model."""
    if fingerprint is None or fingerprint == codec.fingerprint.hex():
        return
    model = _embedded_model(fingerprint) or "another"
    raise ModelMismatchError(
        f"expected codes of this model ({codec.fingerprint.hex()}), "
        f"got codes of {model} ({str(fingerprint)[:32]})"
    )


def _embedded_model(fingerprint: Any) -> str | None:
    """Return the name of the embedded model of a fingerprint in hexadecimal digits, None for any
    other value: it comes out of a stranger's file.
    """
    try:
        return find_embedded(bytes.fromhex(fingerprint))
    except (TypeError, ValueError):
        return None


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
    max_seconds: float | None = MAX_SECONDS,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Decode a code dataset to a folder of audio files, with the other columns in `metadata.jsonl`.

    The folder is an audio folder as `datasets` and `codecplus tokenize` read it. Files are named by
    the column `path`, if there is one, else by the number of the row. Existing files are kept, so
    that a run can be continued.

    Args:
        data: a folder that `tokenize` wrote, or a Hub id, or rows in memory.
        out: the folder to write to.
        codec: the model, or a function that loads one by name; by default the model that the data
            were made with.
        split: of the dataset; a slice such as `"train[:100]"` is a split too.
        revision: branch, tag or commit of a dataset on the Hub.
        streaming: decode while downloading.
        suffix: format of the files: wav, flac, ogg or mp3.
        limit: number of rows to decode, at most.
        max_seconds: audio that a row may become, a day by default; None for no limit.
        overwrite: decode existing files again.
        progress: show a progress bar on stderr.

    Returns:
        How many files were `written`, `kept` and `failed`, how many of the last are `refused`
        although they have codes, and the `failures`: reasons by row number.

    Raises:
        InputError: for data without codes, a folder that cannot be written to, and codes of an
            unknown model.
        ModelMismatchError: for codes of another model.
    """
    if suffix not in FORMATS:
        raise InputError(f"expected a suffix of {', '.join(FORMATS)}, got {suffix!r}")
    rows, name = _load_rows(data, split=split, revision=revision, streaming=streaming)
    total = limit
    if not streaming:
        total = len(rows)
        if limit is not None:
            total = min(total, limit)
    models = _Models(codec, name)
    writer = _FolderWriter(_make_folder(out), suffix, overwrite, max_seconds)
    bar = progress_bar(islice(rows, limit), shown=progress, total=total, desc="detokenising")
    with atomic_path(writer.root / METADATA) as path, path.open("w", encoding="utf-8") as metadata:
        for number, row in enumerate(bar):
            if row.get("codes") is None:
                writer.skip(number, row)
                continue
            codec_of_row = models.codec_for(row)  # an error here ends the run: it is every row's
            file_name = writer.write(number, row, codec_of_row)
            if file_name is not None:
                line = {"file_name": file_name, **dict(_json_columns(row))}
                metadata.write(json.dumps(line) + "\n")
    return writer.summary()


@dataclass
class _Models:
    """The codec of a dataset, loaded when its first row needs it.

    Attributes:
        codec: the codec, or a function that loads one by name; None for `load_codec`.
        data: the folder or Hub id of the dataset, which may hold a job description.
    """

    codec: Codec | Callable[[str], Codec] | None
    data: str | None

    def codec_for(self, row: Mapping[str, Any]) -> Codec:
        """Return the codec for a row. Raises InputError if nothing names the model."""
        if not isinstance(self.codec, Codec):
            load = self.codec or load_codec
            self.codec = load(_model_name(row.get("model_fingerprint"), self.data))
        return self.codec


@dataclass
class _FolderWriter:
    """Decodes rows to files of a folder, and keeps account of them.

    Attributes:
        root, suffix, overwrite, max_seconds: see `detokenize`.
        written, kept: how many files were decoded, and how many were there already.
        refused: how many rows have codes that could not be decoded or written.
        failures: why rows have no file, by their number.
    """

    root: Path
    suffix: str
    overwrite: bool
    max_seconds: float | None
    written: int = 0
    kept: int = 0
    refused: int = 0
    failures: dict[int, str] = field(default_factory=dict)
    _names: set[str] = field(default_factory=set)

    def skip(self, number: int, row: Mapping[str, Any]) -> None:
        """Note a row without codes."""
        self.failures[number] = f"no codes: {row.get('error') or 'they are null'}"

    def write(self, number: int, row: Mapping[str, Any], codec: Codec) -> str | None:
        """Decode a row to a file, unless the file exists; return its name, or None if that failed.

        Raises ModelMismatchError for codes of another model.
        """
        try:
            return self._write(number, row, codec)
        except ModelMismatchError:
            raise
        except CodecPlusError as error:
            self.failures[number] = str(error)
        except OSError as error:
            self.failures[number] = explain_os_error(error)
        except Exception as error:  # one row does not keep the others from being decoded
            self.failures[number] = f"{type(error).__name__}: {first_line(error)}"
        self.refused += 1
        return None

    def _write(self, number: int, row: Mapping[str, Any], codec: Codec) -> str:
        name = _file_name(row.get("path"), number, self.suffix, self._names)
        codes = row_codes(codec, row, max_seconds=self.max_seconds)
        path = self.root / name
        if path.exists() and not self.overwrite:
            self.kept += 1
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            _save(codec.decode(codes), path, int(row["sample_rate"]))
            self.written += 1
        return name

    def summary(self) -> dict[str, Any]:
        """Return what `detokenize` returns."""
        return {
            "written": self.written,
            "kept": self.kept,
            "failed": len(self.failures),
            "refused": self.refused,
            "failures": self.failures,
        }


def _make_folder(out: str | os.PathLike[str]) -> Path:
    root = Path(out)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}") from error
    return root


def _load_rows(
    data: Any, *, split: str, revision: str | None, streaming: bool
) -> tuple[Any, str | None]:
    """Return rows of codes as `datasets` gives them, and their folder or Hub id.

    The second is None for rows in memory. Errors are those of `load_dataset`.
    """
    if hasattr(data, "column_names"):
        return data, None
    name = str(data)
    rows, _ = load_dataset(name, split=split, revision=revision, streaming=streaming)
    columns = rows.column_names or []
    if "codes" not in columns:
        raise InputError(f"{data} has no column 'codes' among {', '.join(columns)}")
    return rows, name.removeprefix("hf://datasets/")


def _save(audio: np.ndarray, path: Path, sample_rate: int) -> None:
    """Write a file without a warning of clipping: decoded audio may exceed full scale."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        audio = np.atleast_2d(audio)
        with AudioFileWriter(path, sample_rate, len(audio)) as writer:
            writer.write(audio)


def _model_name(fingerprint: str | None, data: str | None) -> str:
    """Return the name of the model that made the codes.

    It is the embedded model of that fingerprint, or else the model in the job description of the
    dataset. Raises InputError if there is neither.
    """
    embedded = _embedded_model(fingerprint)
    if embedded is not None:
        return embedded
    try:
        job = _job_description(data)
        name = job and json.loads(job)["codes"]["model"]
    except Exception:  # no job description, for whatever reason
        name = None
    if not name:
        raise InputError("nothing says which model made these codes; name it with --model")
    return name


def _job_description(data: str | None) -> str | None:
    """Return the text of the `tokenize.json` of a folder or of a dataset on the Hub."""
    if data is None:
        return None
    path = Path(data) / "tokenize.json"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    if data.count("/") != 1 or Path(data).exists():
        return None
    from huggingface_hub import hf_hub_download

    file = hf_hub_download(data, "tokenize.json", repo_type="dataset")
    return Path(file).read_text(encoding="utf-8")


def _file_name(path: Any, number: int, suffix: str, taken: set[str]) -> str:
    """Return a new name for a row's file; whatever `path` is, the file lies inside the folder."""
    names = []
    for name in PurePosixPath(str(path or "")).parts:
        if name in ("/", "..", ".") or "\0" in name:
            continue
        name = name.replace("\\", "_").replace(":", "_").lstrip(".")
        names.append(name or "_")
    if names:
        file_name = PurePosixPath(*names).with_suffix(f".{suffix}").as_posix()
    else:
        file_name = f"{number:08d}.{suffix}"
    if _on_any_disk(file_name) in taken:
        file_name = f"{file_name.removesuffix('.' + suffix)}-{number:08d}.{suffix}"
    taken.add(_on_any_disk(file_name))
    return file_name


def _on_any_disk(name: str) -> str:
    """Return what two names have in common that are one file on some disks: those of macOS and
    Windows know no case, or no forms of accents.
    """
    return unicodedata.normalize("NFC", name).casefold()


def _json_columns(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the other columns of a row that JSON can hold."""
    for key, value in row.items():
        if key in NEW_COLUMNS or key in ("path", "file_name"):
            continue
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            continue
        yield key, value


__all__ = ["detokenize", "row_codes"]
