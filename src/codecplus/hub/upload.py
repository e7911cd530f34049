"""Checkpoints and the demo to the Hub: the folder that a repository receives, and the upload, one
commit for all of it.

Knows files and what lies in a checkpoint's folder; how results become a card is known by
`codecplus.eval`.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from codecplus._version import __version__
from codecplus.checkpoints import embedded_names, fingerprint, load_model
from codecplus.checkpoints.identity import EMBEDDED_FOLDER
from codecplus.checkpoints.remote import explain
from codecplus.errors import CheckpointError, CodecPlusError, HubError, InputError
from codecplus.modeling_dac import DacFeatureExtractor, DacModel

PathLike = str | os.PathLike[str]

SAMPLES_MARK = "<!-- audio samples -->"  # where a card wants them; they are made when it is pushed
_PACKAGE = Path(__file__).parents[1]
_ROOT = _PACKAGE.parents[1]  # of the repository, if the package is used from one
_CLIP = _PACKAGE / "assets" / "demo.flac"
# What goes to the Hub beside weights and configuration, and nothing else: a folder may hold private
# things.
_EXTRAS = ("entropy*", "LICENSE*", "training/recipe.json")
_DISCRIMINATORS = "training/discriminators.safetensors"
_CARD_EXTRAS = ("assets/*.png", "assets/*.svg", ".eval_results/*.yaml")
_PACKAGE_REFUSED = ("__pycache__", "spaces_demo", "model_cards")
_SPACE_REFUSED = ("*.pyc", "*.db", "*.sqlite*", ".*", "__pycache__", "ratings", "flagged")


def push(
    source: PathLike,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    discriminators: bool = False,
) -> str:
    """Upload a checkpoint with all that belongs to it, in one commit; return the commit's address.

    The same again uploads nothing, and one that was interrupted goes on with the files that are
    missing.

    Args: source: an embedded name, a folder that `load_codec` reads, or a `.safetensors` or
        official `.pth` file. repo: `OWNER/NAME`, made if it does not exist; `NAME` alone belongs to
        whoever is logged in. private: make it a private repository. revision: branch to push to,
        made from `main` if it does not exist. discriminators: upload the discriminators that
        training left in the folder, too.

    Raises: CheckpointError, InputError: for a source that is none, or a card that belongs to other
        weights. HubError: if the Hub cannot be reached, or refuses.
    """
    _check_source(source)
    with tempfile.TemporaryDirectory() as place, _explained(repo):
        repo = _full_name(repo, revision)
        site = f"{_endpoint()}/{repo}/resolve/{revision or 'main'}"
        folder = export_folder(
            source, Path(place) / "export", discriminators=discriminators, site=site
        )
        _make_repo(repo, "model", private, revision)
        return _commit(
            folder,
            repo,
            "model",
            revision,
            f"Upload {Path(source).name} with codecplus {__version__}",
        )


def push_space(repo: str, *, private: bool = False) -> str:
    """Upload the demo as a Gradio Space, see `export_space`; return the commit's address.

    Arguments and errors as of `push`.
    """
    with tempfile.TemporaryDirectory() as place, _explained(repo):
        repo = _full_name(repo)
        folder = export_space(Path(place) / "space")
        _make_repo(repo, "space", private)
        return _commit(folder, repo, "space", None, f"Upload the demo of codecplus {__version__}")


def export_space(folder: PathLike) -> Path:
    """Write the demo into an empty folder that runs wherever it lies, and return it.

    The package goes along, weights and all, and requirements.txt names what both need: a Space
    installs its requirements before its files are there, and could not install the package from one
    of them.
    """
    source, package = _space_source(), _PACKAGE
    refused = shutil.ignore_patterns(*_SPACE_REFUSED)
    with _new_folder(folder) as place:
        shutil.copytree(
            source,
            place,
            ignore=lambda at, names: {*refused(at, names), "codecplus"},
            dirs_exist_ok=True,
        )
        shutil.copytree(
            package, place / "codecplus", ignore=shutil.ignore_patterns(*_PACKAGE_REFUSED)
        )
        shutil.copy(_licence(), place / "LICENSE")
    return Path(folder)


def export_folder(
    source: PathLike, folder: PathLike, *, discriminators: bool = False, site: str | None = None
) -> Path:
    """Write what a repository receives into an empty folder, and return it.

    Configuration, weights, model code for `trust_remote_code=True`, feature extractor, entropy
    tables, card with its pictures, `.eval_results`, licence; and audio samples, if the card has a
    place for them. `site` is the address that the card's players load from; links alone if it is
    not given. Otherwise as of `push`.
    """
    _check_source(source)
    model, place = load_model(source), _folder_of(source)
    with _new_folder(folder) as new:
        model.save_pretrained(new)
        _feature_extractor(model, place).save_pretrained(new)
        if place is not None:
            _keep_stored_weights(place / "model.safetensors", new / "model.safetensors")
            _copy(_matching(place, _EXTRAS), new, place)
            if discriminators:
                found = list(_matching(place, (_DISCRIMINATORS,)))
                if not found:
                    raise InputError(
                        f"{place} holds no {_DISCRIMINATORS}; codecplus train writes it, or leave it out"
                    )
                _copy(found, new, place)
        elif discriminators:
            raise InputError(
                f"discriminators lie in the folder that training writes; {source} is none"
            )
        _add_card(source, place, model, new, site)
        shutil.copy(
            _licence(), new / ("LICENSE" if str(source) in embedded_names() else "LICENSE-CODE")
        )
    return Path(folder)


# ---- cards


def in_repository() -> bool:
    """Whether the package is used from a checkout of its repository."""
    return (_ROOT / "model_cards" / "template.md").is_file()


def cards_folder() -> Path:
    """Where the template and the cards of the embedded checkpoints lie: in the repository, or in
    the package.
    """
    return _ROOT / "model_cards" if in_repository() else _PACKAGE / "model_cards"


def card_path(source: PathLike) -> Path:
    """Where the card of a checkpoint lies: `model_cards/NAME.md` of an embedded one, else README.md
    in its folder.
    """
    if str(source) in embedded_names():
        return cards_folder() / f"{source}.md"
    folder = _folder_of(source)
    if folder is None:
        raise InputError(
            f"expected an embedded name or a folder, got {source}; only those have a card"
        )
    return folder / "README.md"


def render_card(model: DacModel, name: str, *, embedded: bool = False, **parts: Any) -> str:
    """The card of a model by the template of `model_cards/`, as Markdown with metadata.

    `parts` are what is known of it: `facts` (written by hand), `evaluation`, `training`,
    `eval_results`; without them the card says that nothing was measured.
    """
    import jinja2
    from huggingface_hub import ModelCardData

    config, facts = model.config, parts.get("facts") or {}
    causal = config.model_type == "causal_dac"
    tags = [
        "audio",
        "audio-codec",
        "neural-codec",
        "dac",
        *(["causal"] if causal else []),
        *facts.get("tags", []),
    ]
    metadata = ModelCardData(
        license=facts.get("licence"),
        library_name="codecplus",
        pipeline_tag="audio-to-audio",
        tags=tags,
        model_name=name,
        eval_results=parts.get("eval_results") or None,
        base_model=facts.get("base_model"),
        codecplus_fingerprint=fingerprint(model).hex(),
    )
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    text = environment.from_string(
        (cards_folder() / "template.md").read_text(encoding="utf-8")
    ).render(
        metadata=metadata.to_yaml(),
        name=name,
        embedded=embedded,
        kind=type(model).__name__,
        causal=causal,
        config=config,
        kbps=[
            _short(n * config.frame_rate * config.bits_per_codebook / 1000)
            for n in (1, config.n_codebooks)
        ],
        parameters=f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M",
        latency=f"{1000 * model.latency_samples / config.sampling_rate:.0f}",
        samples_mark=SAMPLES_MARK,
        facts=facts,
        evaluation=parts.get("evaluation"),
        training=parts.get("training"),
    )
    return re.sub(r"\n{3,}", "\n\n", text)


def _short(number: float) -> str:
    return f"{number:.2f}".rstrip("0").rstrip(".")


def _add_card(
    source: PathLike, place: Path | None, model: DacModel, folder: Path, site: str | None
) -> None:
    name = (place or Path(source).with_suffix("")).resolve().name
    path = card_path(source) if place is not None else None
    if path is not None:
        extras = [
            f
            for f in _matching(path.parent, _CARD_EXTRAS)
            if path.name == "README.md" or _is_of(f, name)
        ]
        _copy(extras, folder, path.parent)
    if path is not None and path.is_file():
        text = path.read_text(encoding="utf-8")
        measured = re.search(
            r"^codecplus_fingerprint: ['\"]?([0-9a-f]{32})", text, flags=re.MULTILINE
        )
        if measured and measured.group(1) != fingerprint(model).hex():
            raise InputError(
                f"the card {path} belongs to other weights ({measured.group(1)}; these are "
                f"{fingerprint(model).hex()}); evaluate these and run codecplus card --model {source} --results RESULTS"
            )
    else:
        text = render_card(model, name, embedded=str(source) in embedded_names())
    if SAMPLES_MARK in text:
        text = text.replace(SAMPLES_MARK, _samples(model, folder / "assets", name, site))
    (folder / "README.md").write_text(text, encoding="utf-8")


def _is_of(file: Path, name: str) -> bool:
    return file.name.startswith(f"{name}-")


def _samples(model: DacModel, folder: Path, name: str, site: str | None) -> str:
    """Send the bundled clip through the model at three rates; return the list of samples as
    Markdown.
    """
    from codecplus.audio.files import load_audio, save_audio
    from codecplus.codec import Codec

    folder.mkdir(exist_ok=True)
    audio, rate = load_audio(_CLIP)
    codec = Codec(model, rate)
    shutil.copy(_CLIP, folder / f"{name}-original.flac")
    found = [("original", f"{name}-original.flac")]
    codes, top = np.asarray(codec.encode(audio)), model.config.n_codebooks
    for n in sorted({max(1, top // 4), max(1, top // 2), top}, reverse=True):
        file = f"{name}-{n}-codebooks.flac"
        decoded = codec.decode(codes[:n])[: len(audio)]
        save_audio(
            np.clip(decoded, -1, 1), folder / file, rate
        )  # FLAC holds no more than full scale
        found.append((f"{_short(codec.bitrates[n - 1])} kbit/s", file))
    lines = []
    for label, file in found:
        player = (
            f' <audio controls preload="none" src="{site}/assets/{file}"></audio>' if site else ""
        )
        lines.append(f"- [{label}](assets/{file}){player}")
    return "\n".join(lines)


# ---- parts of the folder


@contextmanager
def _new_folder(folder: PathLike) -> Iterator[Path]:
    """A place to write a folder that is empty or not there yet; it gets its name when all of it is
    written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            f"expected an empty folder, or the name of a new one, got {folder}, which holds something"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        place.chmod(0o755)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}") from error
    try:
        yield place
        place.replace(folder)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _space_source() -> Path:
    """The demo's folder: in the repository, or in the package."""
    places = [_ROOT / "spaces_demo", _PACKAGE / "spaces_demo"]
    found = next((place for place in places if (place / "app.py").is_file()), None)
    if found is None:
        raise InputError(
            f"the demo is not part of this installation: there is no {places[1]}; install codecplus again"
        )
    return found


def _check_source(source: PathLike) -> None:
    if str(source) not in embedded_names() and not Path(source).exists():
        raise CheckpointError(
            f"there is no checkpoint {str(source)!r} here; push takes {', '.join(embedded_names())}, or a folder"
        )


def _folder_of(source: PathLike) -> Path | None:
    """The folder of a checkpoint; None for an official file, whose neighbours may be anything."""
    if str(source) in embedded_names():
        return EMBEDDED_FOLDER / str(source)
    path = Path(source)
    return path if path.is_dir() else path.parent if path.name == "model.safetensors" else None


def _feature_extractor(model: DacModel, place: Path | None) -> DacFeatureExtractor:
    if place is not None and (place / "preprocessor_config.json").is_file():
        return DacFeatureExtractor.from_pretrained(place)
    return DacFeatureExtractor(
        sampling_rate=model.config.sampling_rate, hop_length=model.config.hop_length
    )


def _keep_stored_weights(stored: Path, saved: Path) -> None:
    """Put the stored file in place of the saved one if it has the same tensors: the same bytes, the
    same precision.
    """
    from safetensors import safe_open

    def shapes(path: Path) -> dict[str, list[int]]:
        with safe_open(path, framework="np") as file:
            return {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118

    if stored.is_file() and shapes(stored) == shapes(saved):
        shutil.copy(stored, saved)


def _matching(folder: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    for pattern in patterns:
        yield from sorted(path for path in folder.glob(pattern) if path.is_file())


def _copy(files: Iterable[Path], folder: Path, base: Path) -> None:
    for file in files:
        target = folder / file.relative_to(base)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)


def _licence() -> Path:
    """The licence of the package, which its model code carries along."""
    if in_repository():
        return _ROOT / "LICENSE"
    from importlib.metadata import files

    found = [file for file in files("codecplus") or [] if file.name == "LICENSE"]
    if not found:
        raise InputError("the installed package lacks its LICENSE file; install it again")
    return Path(str(found[0].locate()))


# ---- the upload


def _full_name(repo: str, revision: str | None = None) -> str:
    """OWNER/NAME of what may be NAME alone; refuses what cannot be pushed to before any work is
    done.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(repo)
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        raise InputError(f"expected a branch to push to, got the commit {revision}")
    if get_token() is None:
        raise HubError(
            "pushing needs a login: run `hf auth login`, or set HF_TOKEN to a token that may write"
        )
    return repo if "/" in repo else f"{HfApi().whoami()['name']}/{repo}"


def _make_repo(repo: str, kind: str, private: bool, revision: str | None = None) -> None:
    """Make the repository, and the branch, where they are missing."""
    api = _api()
    sdk = "gradio" if kind == "space" else None
    api.create_repo(repo, repo_type=kind, private=private or None, exist_ok=True, space_sdk=sdk)
    if private and not api.repo_info(repo, repo_type=kind).private:
        raise HubError(
            f"{repo} exists and is public; make it private in its settings first, or push to another"
        )
    if revision not in (None, "main"):
        api.create_branch(repo, branch=str(revision), repo_type=kind, exist_ok=True)


def _commit(folder: Path, repo: str, kind: str, revision: str | None, message: str) -> str:
    """Upload a folder in one commit, which also deletes what older weights left behind."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.hf_api import RepoFile

    api = _api()
    files = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    operations: list[Any] = [CommitOperationAdd(name, path) for name, path in files.items()]
    if kind == "model":
        tree = api.list_repo_tree(repo, recursive=True, revision=revision)
        there = {file.path: file for file in tree if isinstance(file, RepoFile)}
        operations += [CommitOperationDelete(path) for path in _stale(there, files)]
    made = api.create_commit(
        repo, operations, commit_message=message, repo_type=kind, revision=revision
    )
    return str(made.commit_url)


def _stale(there: dict[str, Any], files: dict[str, Path]) -> list[str]:
    """Files of a repository that belong to the weights being replaced, results measured with them
    among them.
    """
    import hashlib

    patterns = ["model*.safetensors", "model.safetensors.index.json", "entropy*"]
    weights, old = files.get("model.safetensors"), there.get("model.safetensors")
    if old is not None and weights is not None:
        same = (
            old.lfs is not None
            and old.lfs.sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
        )
        patterns += [] if same else [".eval_results/*.yaml", "training/*"]
    return [
        path
        for path in there
        if path not in files and any(fnmatch(path, pattern) for pattern in patterns)
    ]


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Turn what the Hub's client raises into one sentence about a repository."""
    try:
        yield
    except CodecPlusError:
        raise
    except Exception as error:
        raise HubError(f"cannot push to {repo!r}: {explain(error, repo)}") from error


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(library_name="codecplus", library_version=__version__)


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


__all__ = [
    "card_path",
    "cards_folder",
    "export_folder",
    "export_space",
    "in_repository",
    "push",
    "push_space",
    "render_card",
]
