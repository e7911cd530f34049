"""The shape of the package: imports point downwards, the model folder stands alone, the public
names are these.
"""

import ast
import re
from pathlib import Path

import pytest

import codecplus

PACKAGE = Path(codecplus.__file__).parent
ROOT = Path(__file__).parents[1]

FLOORS = {
    "errors": 0,
    "system": 0,
    "_version": 0,
    "_lazy": 0,
    "_auto_classes": 7,
    "modeling_dac": 1,
    "kernels": 1,
    "audio": 1,
    "acceleration": 2,
    "bitstream": 2,
    "checkpoints": 2,
    "configuration": 2,
    "losses": 2,
    "recordings": 2,
    "encoding": 3,
    "inference": 3,
    "streaming": 3,
    "codec": 4,
    "compression": 4,
    "dataset_rows": 4,
    "decompression": 4,
    "eval": 5,
    "export": 5,
    "tokenizing": 5,
    "training": 5,
    "hub": 6,
    "utils": 7,
    "cli": 7,
    "__init__": 7,
    "__main__": 7,
}
# Parts that share a floor may use each other, but for these.
STRANGERS = {"eval", "training", "export", "tokenizing", "bitstream"}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, for_types: bool = True):
    """Names of the parts of codecplus that a file imports, lazily or not, with the line."""
    package = ("codecplus", *path.relative_to(PACKAGE).parent.parts)
    tree = ast.parse(path.read_text())
    if not for_types:
        tree.body = [node for node in tree.body if not is_type_checking(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "codecplus" and len(parts) > 1:
                yield (parts[1] if parts[1] in FLOORS else "__init__"), node.lineno


def is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


FILES = sorted(p for p in PACKAGE.rglob("*.py"))


def test_every_part_has_a_floor():
    assert {part_of(path) for path in FILES} <= FLOORS.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_point_downwards(path):
    part = part_of(path)
    for other, line in imports(path):
        if other == part:
            continue
        assert FLOORS[other] <= FLOORS[part], (
            f"line {line}: {part} imports {other}, which is above it"
        )
        assert not (FLOORS[other] == FLOORS[part] and {part, other} & STRANGERS), (
            f"line {line}: {part} imports {other}"
        )


def test_contributing_shows_the_same_floors():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    shown = {
        name: int(floor)
        for floor, cell in re.findall(r"^\| (\d) \| (.+?) \|", page, flags=re.MULTILINE)
        for name in re.findall(r"`([a-z_]+)/?(?:\.py)?`", cell)
    }
    private = {"_version", "_lazy", "_auto_classes"}
    assert shown == {name: floor for name, floor in FLOORS.items() if name not in private}


def test_no_part_imports_itself_through_others():
    below: dict[str, set[str]] = {name: set() for name in FLOORS}
    for path in FILES:
        others = {other for other, _ in imports(path, for_types=False)}
        below[part_of(path)] |= others - {part_of(path), "__init__"}
    while below:
        leaves = [name for name, others in below.items() if not others & below.keys()]
        assert leaves, f"a circle among {sorted(below)}"
        for name in leaves:
            del below[name]


@pytest.mark.parametrize(
    ("package", "decorators"),
    [
        ("losses", {"loss"}),
        ("eval/metrics", {"metric", "metric_family", "set_metric"}),
        ("eval/codecs", {"codec_adapter"}),
    ],
)
def test_a_file_that_registers_something_is_imported_by_its_package(package, decorators):
    opening = (PACKAGE / package / "__init__.py").read_text()
    registering = []
    for path in (PACKAGE / package).glob("[!_]*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and decorators & {a.name for a in node.names}:
                registering.append(path.stem)
    assert registering
    for name in registering:
        assert re.search(rf"\b{name} (import|as) ", opening), f"name {name} in __init__.py"


def test_the_model_folder_is_what_the_hub_receives():
    for path in (PACKAGE / "modeling_dac").glob("*_dac.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1, f"{path.name}: only siblings"
                assert (path.parent / f"{node.module}.py").exists()
            elif isinstance(node, ast.Import):
                assert not any(alias.name.startswith("codecplus") for alias in node.names)
            assert not isinstance(node, ast.Try) or not any(
                isinstance(n, ast.ImportFrom) for n in node.body
            )
        # transformers finds relative imports by a pattern that also matches in docstrings
        for name in re.findall(
            r"^\s*from\s+\.(\S+)\s+import", path.read_text(), flags=re.MULTILINE
        ):
            assert (path.parent / f"{name}.py").exists()


def test_the_public_names_are_these_and_all_can_be_had():
    assert set(codecplus.__all__) == {
        "CausalDacConfig",
        "CausalDacModel",
        "Codec",
        "DacConfig",
        "DacFeatureExtractor",
        "DacModel",
        "Codes",
        "CompressionOptions",
        "__version__",
        "load_codec",
    }
    for name in codecplus.__all__:
        assert getattr(codecplus, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        codecplus.nonsense  # noqa: B018


@pytest.mark.parametrize("name", ["modeling_dac", "configuration", "eval"])
def test_the_links_at_the_root_point_into_the_package(name):
    link = ROOT / name
    if not link.is_symlink():
        pytest.skip("a checkout without symlinks still installs; the links are for readers")
    assert link.resolve() == (PACKAGE / name).resolve()


def test_no_page_names_a_folder_of_somebodys_machine():
    pages = [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "model_cards").glob("*.md"),
    ]
    for page in pages:
        assert not re.search(r"\.\./shared|/(home|root|work)/", page.read_text()), page
