"""Settings that a host may change, and limits that share the server among visitors."""

import os
from collections.abc import Mapping
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1]

CLIPS_FOLDER = FOLDER / "clips"
"""Recordings of the demo, with what codecs make of them; see ATTRIBUTION.txt there."""

CHECKPOINTS = os.environ.get("CODECPLUS_CHECKPOINTS", "dac-44khz-small,dac-16khz-live").split(",")
"""What the demo offers: embedded names, Hub ids or folders; the first is chosen."""

LISTENING_TEST = Path(os.environ.get("CODECPLUS_LISTENING_TEST", FOLDER / "listening_test.json"))
"""Items and conditions of the listening test."""

RATINGS = Path(
    os.environ.get("CODECPLUS_RATINGS", "/data" if os.access("/data", os.W_OK) else "ratings")
)
"""Folder of the ratings; /data is the persistent storage of a Space."""

RATINGS_DATASET = os.environ.get("CODECPLUS_RATINGS_DATASET")
"""Dataset repository that ratings are committed to, with the token in HF_TOKEN. Without one the
ratings stay in the folder.
"""

LEADERBOARD = Path(os.environ.get("CODECPLUS_LEADERBOARD", FOLDER / "leaderboard.json"))
"""What `codecplus leaderboard --json` wrote."""

MAX_UPLOAD = 30 * 2**20  # bytes
MAX_SECONDS = 60  # of a clip
MAX_CHANNELS = 2
MAX_RATE = 192_000  # Hz
MAX_LIVE_SECONDS = 120  # of one live call
MAX_LIVE_CALLS = 4  # at the same time
MAX_LIVE_CALLS_EACH = 2  # of one address
MAX_QUEUE = 100  # waiting visitors; the next one is asked to come back
# How long results can be heard and downloaded. The page promises an hour; the shelf is tidied every
# minute.
KEEP_SECONDS = 3600 - 120
KEEP_BYTES = 2 * 2**30


def models() -> list[str]:
    """Return the models on the Hub that the card of this Space names."""
    import yaml

    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    return yaml.safe_load(text.split("---")[1]).get("models") or []


def root_address(headers: Mapping[str, str]) -> str:
    """Return the address of this app as the sender of a request knows it, with a slash at its end;
    "/" where the headers name no host.
    """
    host = os.environ.get("SPACE_HOST")
    if host:
        return f"https://{host}/"
    if "host" not in headers:
        return "/"
    return f"{headers.get('x-forwarded-proto', 'http')}://{headers['host']}/"
