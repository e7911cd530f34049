"""Sounds as links: a small .dacp file in the part of a URL that no server sees."""

import base64
import binascii

from codecplus.errors import InputError

MAX_BYTES = 6000
"""The largest file that becomes a link: 8,000 characters, which chats still take."""


def link_text(data: bytes) -> str | None:
    """Write a file in the letters of URLs, without padding; None if it is too large for a link.

    >>> link_text(b"sound")
    'c291bmQ'
    """
    if len(data) > MAX_BYTES:
        return None
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def file_of(text: str) -> bytes:
    """Return the file that `link_text` wrote; raises InputError for a text that is none.

    >>> file_of("c291bmQ")
    b'sound'
    """
    if len(text) > 2 * MAX_BYTES:
        raise InputError(f"Expected a link to at most {MAX_BYTES} bytes of sound, got more.")
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(
            "The sound in this link is damaged; perhaps it was cut off: ask for it again."
        ) from error
    return data
