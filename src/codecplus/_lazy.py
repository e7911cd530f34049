"""Names that are imported when they are first used, so that light parts of a package need none of
its heavy ones.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazy_names(package: str, homes: dict[str, str]) -> Callable[[str], Any]:
    """Return a module's `__getattr__` (PEP 562): `homes` says in which submodule of `package` each
    public name lives.
    """

    def getattr_(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f".{homes[name]}", package), name)

    return getattr_
