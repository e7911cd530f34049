"""The build hook of wheels: where the weights come from, and the compiled kernels.

A wheel that is built from a checkout holds the weights of the embedded checkpoints: nothing has to
be found on an index. The sdist leaves them out, and a wheel that is built from it, as a release is,
depends on the distribution codecplus-weights instead (`weights/pyproject.toml`).

A wheel with kernels is for one platform and needs no compiler. Where there is none when the wheel
is built, or with `CODECPLUS_PURE_WHEEL=1`, the wheel is for any platform; it compiles what it needs
at first use, or does without.
"""

import os
import platform
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# The codes of a checkpoint change with the first number: files need the weights that made them.
WEIGHTS_REQUIREMENT = "codecplus-weights>=1,<2"


class WheelBuildHook(BuildHookInterface):
    """Adds the weights or the requirement of them, and kernels as `codecplus/kernels/prebuilt`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add weights, libraries and the platform; an editable install finds all in its folder."""
        weights = Path(self.root) / "weights" / "codecplus_weights"
        if not weights.is_dir():
            build_data["dependencies"].append(WEIGHTS_REQUIREMENT)
        elif version != "editable":
            for checkpoint in sorted(weights.glob("*/config.json")):
                name = checkpoint.parent.name
                inside = f"codecplus/checkpoints/embedded/{name}"
                build_data["force_include"][str(checkpoint.parent)] = inside
        if version == "editable" or os.environ.get("CODECPLUS_PURE_WHEEL") == "1":
            return
        if sys.platform not in ("linux", "darwin"):
            return
        sys.path.insert(0, str(Path(self.root) / "src"))
        from codecplus.kernels.compiler import KernelError, compile_library, find_compiler
        from codecplus.kernels.instruction_sets import INSTRUCTION_SETS, library_name, machine

        self.folder = tempfile.mkdtemp()
        libraries = {}
        try:
            compiler = find_compiler()
            for target in INSTRUCTION_SETS:
                if target.machine == machine():
                    name = library_name(target)
                    compile_library(compiler, target, Path(self.folder) / name)
                    libraries[str(Path(self.folder) / name)] = f"codecplus/kernels/prebuilt/{name}"
        except KernelError as error:
            self.app.display_warning(f"a wheel without compiled kernels: {error}")
            return
        if libraries:
            build_data["force_include"].update(libraries)
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform_tag()}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was compiled: the wheel has it."""
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)


def platform_tag() -> str:
    """Return the platform that libraries built here run on: this one, and later ones of glibc."""
    tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    library, release = platform.libc_ver()
    if tag.startswith("linux_") and library == "glibc":
        major, minor = release.split(".")[:2]
        return tag.replace("linux_", f"manylinux_{major}_{minor}_", 1)
    return tag
