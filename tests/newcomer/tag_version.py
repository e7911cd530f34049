"""Fail unless a tag, `v0.1.0` or `weights-v1.0.0`, names the version of what it releases."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = {
    "v": "src/codecplus/_version.py",
    "weights-v": "weights/codecplus_weights/__init__.py",
}


def check(tag: str) -> None:
    """Raise SystemExit if the tag is not the version in its file."""
    match = re.fullmatch(r"(v|weights-v)(\d.*)", tag)
    if match is None:
        raise SystemExit(f"expected a tag like v0.1.0 or weights-v1.0.0, got {tag}")
    text = (ROOT / FILES[match[1]]).read_text(encoding="utf-8")
    version = re.search(r'__version__ = "(.*)"', text)
    if version is None or version[1] != match[2]:
        raise SystemExit(f"the tag {tag} is not the version in {FILES[match[1]]}")


if __name__ == "__main__":
    check(sys.argv[1])
