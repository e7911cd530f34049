"""Chromium for tests, playwright's own or the system's."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def chromium(*options: str) -> Iterator[Any]:
    """Launch Chromium without a window; skip the test where playwright or Chromium is missing."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="browser tests need playwright: pip install playwright"
    )
    with playwright.sync_playwright() as driver:
        installed = Path(driver.chromium.executable_path)
        system = Path("/usr/bin/chromium")
        if not installed.exists() and not system.exists():
            pytest.skip(
                "there is no Chromium; install it with `playwright install chromium` or from the "
                "system"
            )
        path = None if installed.exists() else str(system)
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", *options])
        yield browser
        browser.close()
