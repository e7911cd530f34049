"""What a maintainer checks before a release, as far as it can be checked from the files."""

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

import codecplus
import codecplus.errors
from codecplus.checkpoints import identity
from codecplus.cli import build_parser
from codecplus.cli.model_options import embedded_name
from codecplus.errors import CheckpointError, InputError
from codecplus.system import workers

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
HOME = "https://github.com/codecplus/codecplus"
RAW = "https://raw.githubusercontent.com/codecplus/codecplus/main"
SITE = "https://codecplus.github.io/codecplus/"


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def site_pages() -> set[str]:
    """The pages of the site, by the addresses that mkdocs gives them."""
    navigation = re.findall(r"[\w/-]+\.md", text("mkdocs.yml").split("\nnav:")[1].split("\n\n")[0])
    return {"" if page == "index.md" else page.removesuffix(".md") + "/" for page in navigation}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_one_address_stands_in_every_file():
    import tomllib

    urls = tomllib.loads(text("pyproject.toml"))["project"]["urls"]
    assert (urls["Homepage"], urls["Documentation"]) == (HOME, SITE)
    assert tomllib.loads(text("weights/pyproject.toml"))["project"]["urls"]["Homepage"] == HOME
    site = yaml.safe_load(text("mkdocs.yml").split("\nplugins:")[0])
    assert (site["repo_url"], site["site_url"]) == (HOME, SITE)
    citation = yaml.safe_load(text("CITATION.cff"))
    assert (citation["repository-code"], citation["url"]) == (HOME, SITE)


def test_the_citation_names_the_version_of_the_package():
    assert yaml.safe_load(text("CITATION.cff"))["version"] == codecplus.__version__


def test_links_of_the_readme_are_absolute_and_lead_somewhere():
    targets = re.findall(r"\]\(([^)]+)\)", text("README.md"))
    assert len(targets) > 10
    for target in targets:
        assert target.startswith("https://"), target
        path = target.split("#")[0]
        for start in (f"{RAW}/", f"{HOME}/blob/main/", f"{HOME}/tree/main/"):
            if path.startswith(start):
                assert (ROOT / path.removeprefix(start)).exists(), target
        if path.startswith(SITE):
            assert path.removeprefix(SITE) in site_pages(), target
    for path in re.findall(rf"{RAW}/([\w./-]+)", text("README.md")):  # in commands, too
        assert (ROOT / path).exists(), path


def test_every_page_is_on_the_site():
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert {page.removesuffix(".md") + "/" for page in pages} <= site_pages()


def test_every_public_name_is_in_the_reference():
    reference = "".join(path.read_text() for path in (ROOT / "docs" / "reference").glob("*.md"))
    for name in set(codecplus.__all__) - {"__version__"}:
        assert f"::: codecplus.{name}\n" in reference, name
    assert "::: codecplus.errors" in reference


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_and_rights_are_few(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {}
    assert all(
        "permissions" in job and "timeout-minutes" in job for job in workflow["jobs"].values()
    )
    used = re.findall(r"uses: (\S+)(.*)", path.read_text())
    assert used
    for action, comment in used:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action), action
        assert re.match(r" # v\d+\.\d+\.\d+$", comment), "say which version the hash is"


def test_workflows_call_targets_that_the_makefile_has():
    targets = set(re.findall(r"^([\w-]+):", text("Makefile"), flags=re.MULTILINE))
    for path in WORKFLOWS:
        assert set(re.findall(r"run: make ([\w-]+)", path.read_text())) <= targets


def test_the_versions_tested_are_the_versions_claimed():
    claimed = re.findall(r"Python :: (3\.\d+)", text("pyproject.toml"))
    jobs = yaml.safe_load(text(".github/workflows/tests.yml"))["jobs"]
    assert jobs["python"]["strategy"]["matrix"]["python"] == claimed


def test_tags_name_the_version_of_what_they_release():
    sys.path.insert(0, str(ROOT / "tests" / "newcomer"))
    try:
        import tag_version
    finally:
        sys.path.pop(0)
    tag_version.check(f"v{codecplus.__version__}")
    for tag in ("v9.9.9", "weights-v9.9.9", "nonsense"):
        with pytest.raises(SystemExit):
            tag_version.check(tag)


def test_without_the_weights_one_sentence_says_how_to_get_them(monkeypatch, tmp_path):
    from codecplus.checkpoints import load_model, loading

    for module in (identity, loading):
        monkeypatch.setattr(module, "EMBEDDED_FOLDER", tmp_path)
    identity.embedded_fingerprints.cache_clear()
    with pytest.raises(CheckpointError, match="not installed; run `pip install codecplus-weights`"):
        load_model("dac-44khz-small")
    with pytest.raises(InputError, match="run `pip install codecplus-weights`, or name the model"):
        embedded_name(bytes(16))
    monkeypatch.undo()
    identity.embedded_fingerprints.cache_clear()


def test_weights_lie_in_the_package_or_beside_it_or_in_their_distribution(monkeypatch, tmp_path):
    package = tmp_path / "src" / "codecplus" / "checkpoints"
    package.mkdir(parents=True)
    monkeypatch.setattr(identity, "__file__", str(package / "identity.py"))
    site = tmp_path / "site"
    (site / "codecplus_weights").mkdir(parents=True)
    (site / "codecplus_weights" / "__init__.py").touch()
    monkeypatch.syspath_prepend(site)
    assert identity._find_embedded_folder() == site / "codecplus_weights"
    (tmp_path / "weights" / "codecplus_weights").mkdir(parents=True)
    assert identity._find_embedded_folder() == tmp_path / "weights" / "codecplus_weights"
    (package / "embedded").mkdir()
    assert identity._find_embedded_folder() == package / "embedded"


@pytest.mark.parametrize("checkout", [True, False], ids=["checkout", "sdist"])
def test_a_wheel_has_the_weights_inside_or_depends_on_them(checkout, monkeypatch, tmp_path):
    pytest.importorskip("hatchling", reason="packing needs hatchling")
    requirements = pytest.importorskip("packaging.requirements")
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setenv("CODECPLUS_PURE_WHEEL", "1")
    import build_wheel

    root = ROOT if checkout else tmp_path
    hook = build_wheel.WheelBuildHook(str(root), {}, None, None, str(tmp_path), "wheel")
    data = {"force_include": {}, "dependencies": []}
    hook.initialize("standard", data)
    if checkout:
        inside = {f"codecplus/checkpoints/embedded/{name}" for name in identity.embedded_names()}
        assert set(data["force_include"].values()) == inside
        assert data["dependencies"] == []
    else:
        assert data["force_include"] == {}
        (needed,) = map(requirements.Requirement, data["dependencies"])
        source = text("weights/codecplus_weights/__init__.py")
        (version,) = re.findall(r'^__version__ = "(.*)"$', source, flags=re.MULTILINE)
        assert needed.name == identity.WEIGHTS_DISTRIBUTION
        assert version in needed.specifier


def test_a_process_is_ended_where_no_process_groups_are(monkeypatch):
    """As on Windows."""
    killed = []

    class Process:
        pid = 1

        def kill(self):
            killed.append(self.pid)

    monkeypatch.delattr(workers.os, "killpg")
    workers._kill(Process())
    assert killed == [1]


def test_every_verb_has_a_line_of_help():
    (verbs,) = [a for a in build_parser()._actions if a.choices and a.dest != "help"][:1]
    assert all(
        verb.format_help().startswith("usage: codecplus ") for verb in verbs.choices.values()
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_committed_without_outputs(path):
    cells = json.loads(path.read_text())["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is of the extra `dev`")
    pytest.importorskip("ipykernel", reason="ipykernel is of the extra `dev`")
    import nbformat

    source = str(Path(codecplus.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", source)
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": tmp_path}}
    ).execute()
