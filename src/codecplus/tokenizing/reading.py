"""Processes that decode and resample recordings while the device computes. They load no network.

A process that dies on a file is replaced, and the recording is tried once more before it counts as
unreadable. Run as a module, this is such a process.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from codecplus.errors import CodecPlusError, first_line
from codecplus.recordings.cells import DecodedAudio, read_cell
from codecplus.system.workers import (
    Message,
    Reserve,
    Worker,
    WorkerDied,
    WorkerPool,
    WorkerStopped,
    WorkerTimeout,
    serve,
)

MAX_SECONDS = 600.0  # of a recording that is passed on in one piece
_DECODING_SECONDS = 600.0  # of processor time for one recording, imports included
_BUFFER_BYTES = 1 << 29  # of decoded audio that waits to be encoded

Item = TypeVar("Item")


def read_ordered(
    items: Iterable[tuple[Item, Any]], sample_rate: int, channels: int, workers: int
) -> Iterator[tuple[Item, DecodedAudio | str]]:
    """Decode the cells of pairs (item, cell), in their order.

    Args:
        items: iterated ahead of their use, in another thread. Cells are as for `read_cell`.
        sample_rate: of the audio that is returned, in Hz.
        channels: of the audio that is returned.
        workers: processes that decode; with 0 this process does it.

    Yields:
        Each item with its recording, or with the reason why there is none.
    """
    settings = (sample_rate, channels, MAX_SECONDS)
    if workers == 0:
        for item, cell in items:
            yield item, _read(cell, settings)
        return
    hired = [Worker("codecplus.tokenizing.reading", json.dumps(settings)) for _ in range(workers)]
    yield from WorkerPool(hired, _read_pair, _BUFFER_BYTES).run(items)


def _read_pair(
    worker: Worker, pair: tuple[Item, Any], reserve: Reserve
) -> tuple[Item, DecodedAudio | str]:
    item, cell = pair
    return item, _read_elsewhere(worker, cell, reserve)


def _read_elsewhere(worker: Worker, cell: Any, reserve: Reserve) -> DecodedAudio | str:
    """Decode one cell in a worker: the recording, or the reason why there is none."""
    status: int | None = None
    for _ in range(2):  # one death may be the machine's fault
        try:
            worker.send(cell)
            header, audio = worker.receive(_DECODING_SECONDS, reserve)
        except WorkerDied as death:
            status = death.status
        except WorkerTimeout:
            return f"the decoder did not finish it within {_DECODING_SECONDS:.0f} s"
        except WorkerStopped:
            raise
        except Exception as error:
            worker.close()
            return f"the recording cannot be handed to a decoder: {type(error).__name__}"
        else:
            if "error" in header:
                return header["error"]
            return DecodedAudio(audio, header["num_samples"], header["sample_rate"])
    return f"the decoder's process died on it twice, with status {status}"


def _read(cell: Any, settings: tuple[int, int, float]) -> DecodedAudio | str:
    sample_rate, channels, max_seconds = settings
    try:
        return read_cell(cell, sample_rate, channels, max_seconds=max_seconds)
    except (CodecPlusError, OSError) as error:
        return str(error)
    except MemoryError:
        return "the recording needs more memory than there is"
    except Exception as error:  # whatever a library makes of a hostile file: one row, not the run
        return f"the recording cannot be read: {type(error).__name__}: {first_line(error)}"


def _answers(cell: Any, settings: tuple[int, int, float]) -> Iterator[Message]:
    """Yield the one message of a cell: its audio, or the reason why there is none."""
    recording = _read(cell, settings)
    if isinstance(recording, str):
        yield {"error": recording}, None
        return
    header = {"num_samples": recording.num_samples, "sample_rate": recording.sample_rate}
    yield header, recording.audio


def _main() -> None:
    settings = tuple(json.loads(sys.argv[1]))
    serve(lambda cell: _answers(cell, settings))


if __name__ == "__main__":
    _main()
