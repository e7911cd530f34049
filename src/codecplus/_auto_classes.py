"""`causal_dac` for transformers' Auto classes, our cards for its Trainer, and our codes for
`torch.load`, as soon as these are there.

`import codecplus` imports neither transformers nor torch. Where transformers' Auto classes are
imported already they learn of the causal model at once, else when they are: a finder on
`sys.meta_path` sees the import of each, that of the Trainer, and that of torch. It waits until no
part of transformers, torch or our model is half imported, as such parts cannot be used.
"""

import functools
import importlib
import importlib.util
import logging
import sys
import threading
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from pathlib import Path

logger = logging.getLogger(__name__)


def _register_configuration() -> None:
    from transformers import AutoConfig

    from codecplus.modeling_dac import CausalDacConfig

    AutoConfig.register(CausalDacConfig.model_type, CausalDacConfig, exist_ok=True)


def _register_model() -> None:
    from transformers import AutoModel, AutoModelForAudioTokenization

    from codecplus.modeling_dac import CausalDacConfig, CausalDacModel

    for auto_class in (AutoModel, AutoModelForAudioTokenization):
        auto_class.register(CausalDacConfig, CausalDacModel, exist_ok=True)


def _register_feature_extractor() -> None:
    from transformers import AutoFeatureExtractor

    from codecplus.modeling_dac import CausalDacConfig, CausalDacFeatureExtractor

    AutoFeatureExtractor.register(CausalDacConfig, CausalDacFeatureExtractor, exist_ok=True)


def _register_processor() -> None:
    from transformers import AutoProcessor

    from codecplus.modeling_dac import CausalDacConfig, CausalDacFeatureExtractor

    AutoProcessor.register(CausalDacConfig, CausalDacFeatureExtractor, exist_ok=True)


def _complete_cards_of_trainer() -> None:
    from transformers.trainer import Trainer

    create = Trainer.create_model_card

    @functools.wraps(create)
    def create_model_card(trainer, *args, **kwargs):
        create(trainer, *args, **kwargs)
        if trainer.is_world_process_zero():
            _complete_card(trainer)

    Trainer.create_model_card = create_model_card


def _complete_card(trainer) -> None:
    """Complete the card that a Trainer made, if its model is ours: a model has no say in it."""
    from codecplus.modeling_dac.checkpoints_dac import replace_empty_card
    from codecplus.modeling_dac.modeling_dac import DacPreTrainedModel

    model = trainer.accelerator.unwrap_model(trainer.model)
    if isinstance(model, DacPreTrainedModel):
        folder = trainer.args.output_dir
        repo_id = trainer.hub_model_id or trainer.args.hub_model_id or Path(folder).name
        replace_empty_card(folder, repo_id, model)


def _register_codes() -> None:
    importlib.import_module("codecplus.inference.tensors")  # makes them safe for torch.load


# What is not registered yet, by the module that it is registered with.
_pending: dict[str, Callable[[], None]] = {
    "transformers.models.auto.configuration_auto": _register_configuration,
    "transformers.models.auto.modeling_auto": _register_model,
    "transformers.models.auto.feature_extraction_auto": _register_feature_extractor,
    "transformers.models.auto.processing_auto": _register_processor,
    "transformers.trainer": _complete_cards_of_trainer,
    "torch": _register_codes,
}
_WATCHED = ("transformers.", "codecplus.modeling_dac")
_lock = threading.RLock()
_running: set[str] = set()  # parts of both that are being imported, in any thread
_executed: set[str] = set()  # parts whose import was seen to end


class _Watch(MetaPathFinder):
    """Has loaders tell when they begin and when they are done."""

    def __init__(self) -> None:
        self._searching = threading.local()

    def find_spec(self, fullname, path=None, target=None):
        """Return the spec that the other finders find, with a loader that tells."""
        if not (fullname.startswith(_WATCHED) or fullname == "torch") or not _pending:
            return None
        if getattr(self._searching, "name", None) == fullname:
            return None
        before = getattr(self._searching, "name", None)
        self._searching.name = fullname
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._searching.name = before
        if spec is not None and spec.loader is not None:
            spec.loader = _TellingLoader(spec.loader)
        return spec


class _TellingLoader(Loader):
    """A loader of another finder, which tells of its import."""

    def __init__(self, loader: Loader):
        self._loader = loader

    def __getattr__(self, name: str):
        return getattr(self._loader, name)

    def create_module(self, spec):
        """Create what the other loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module) -> None:
        """Execute the module; where nothing else is half done, register."""
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        with _lock:
            _running.add(module.__name__)
        try:
            self._loader.exec_module(module)
        finally:
            with _lock:
                _running.discard(module.__name__)
        _executed.add(module.__name__)
        _register()


def _register() -> None:
    """Register with the Auto classes that are imported, and that were not registered with yet."""
    with _lock:
        if _running:
            return
        ready = [name for name in _pending if _is_imported(name)]
        functions = [_pending.pop(name) for name in ready]
    for function in functions:
        try:
            function()
        except Exception as error:  # somebody's import of transformers must not fail for it
            logger.warning("%s failed: %s", function.__name__.strip("_"), error)


def _is_imported(name: str) -> bool:
    """Return whether a module is imported, and not just being so."""
    if name in _executed:
        return True
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return spec is not None and not getattr(spec, "_initializing", False)


def register_when_imported() -> None:
    """Register with transformers' Auto classes and torch, now or when they are imported."""
    sys.meta_path.insert(0, _Watch())
    _register()
