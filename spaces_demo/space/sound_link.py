"""Sounds as links: a small .dacp file in the part of a URL that no server sees."""

import base64
import binascii
import io

from codecplus.errors import InputError

MAX_BYTES = 6000
"""The largest file that becomes a link: 8,000 characters, which chats still take."""


MAX_QR = 2953
"""The most bytes that a QR code holds (version 40, level L)."""


def qr_code(link: str) -> bytes:
    """Draw a link as a QR code: an SVG of black on white, with the margin that readers need.

    Raises InputError for a link that is too long, and without the package segno.
    """
    if not 0 < len(link.encode()) <= MAX_QR:
        raise InputError(f"Expected a link of at most {MAX_QR} bytes for a QR code; send the link.")
    try:
        import segno
    except ImportError as error:
        raise InputError("There are no QR codes here: the package segno is missing.") from error
    file = io.BytesIO()
    code = segno.make_qr(link, error="L", boost_error=False)
    code.save(file, kind="svg", scale=4, border=4, light="white", xmldecl=False)
    return file.getvalue()


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
