"""Reads and writes checkpoints of the original implementation, `.pth` files. It knows their names
and their weight norm.
"""

import zipfile
from pathlib import Path

import torch
from torch import Tensor

from codecplus.checkpoints.untrusted import check_elements, check_file
from codecplus.errors import CheckpointError
from codecplus.modeling_dac import CausalDacConfig, DacConfig, DacModel
from codecplus.system.paths import atomic_path

_MAX_PICKLE_BYTES = 1 << 26  # more than the names and shapes of any model take

# Position in the original nn.Sequential -> name in ours, for residual units, encoder blocks and
# decoder blocks.
_UNIT = {0: "snake1", 1: "conv1", 2: "snake2", 3: "conv2"}
_ENCODER_BLOCK = {0: "res_unit1", 1: "res_unit2", 2: "res_unit3", 3: "snake1", 4: "conv1"}
_DECODER_BLOCK = {0: "snake1", 1: "conv_t1", 2: "res_unit1", 3: "res_unit2", 4: "res_unit3"}

# Argument of the original class -> field of the configuration.
_ARGUMENTS = {
    "encoder_dim": "encoder_hidden_size",
    "encoder_rates": "downsampling_ratios",
    "latent_dim": "hidden_size",
    "decoder_dim": "decoder_hidden_size",
    "n_codebooks": "n_codebooks",
    "codebook_size": "codebook_size",
    "codebook_dim": "codebook_dim",
    "quantizer_dropout": "quantizer_dropout",
    "sample_rate": "sampling_rate",
}


def module_names(blocks: int) -> dict[str, str]:
    """Return our module name for every original one, of an encoder and a decoder of `blocks`."""
    names = {"encoder.block.0": "encoder.conv1", "decoder.model.0": "decoder.conv1"}
    for i in range(1, blocks + 1):
        encoder_block = f"encoder.block.{i}.block"
        decoder_block = f"decoder.model.{i}.block"
        names |= _block_names(encoder_block, f"encoder.block.{i - 1}", _ENCODER_BLOCK)
        names |= _block_names(decoder_block, f"decoder.block.{i - 1}", _DECODER_BLOCK)
    for theirs, ours in (("encoder.block", "encoder"), ("decoder.model", "decoder")):
        names[f"{theirs}.{blocks + 1}"] = f"{ours}.snake1"
        names[f"{theirs}.{blocks + 2}"] = f"{ours}.conv2"
    return names


def _block_names(theirs: str, ours: str, block: dict[int, str]) -> dict[str, str]:
    names = {}
    for i, part in block.items():
        if not part.startswith("res_unit"):
            names[f"{theirs}.{i}"] = f"{ours}.{part}"
            continue
        for j, layer in _UNIT.items():
            names[f"{theirs}.{i}.block.{j}"] = f"{ours}.{part}.{layer}"
    return names


def fold_weight_norm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Replace every direction and length by the weight they stand for, `g * v / |v|` over all but
    the first axis.

    Both spellings of torch are understood: `weight_g`, `weight_v` and
    `parametrizations.weight.original0`, `original1`.
    """
    folded = {}
    for key, value in state.items():
        for length, direction in (
            ("weight_g", "weight_v"),
            ("parametrizations.weight.original0", "parametrizations.weight.original1"),
        ):
            if key.endswith("." + length):
                stem = key.removesuffix(length)
                v = state[stem + direction].float()
                norm = v.flatten(1).norm(dim=1).reshape(-1, *[1] * (v.ndim - 1))
                folded[stem + "weight"] = value.float() * v / norm
                break
            if key.endswith("." + direction):
                break
        else:
            folded[key] = value
    return folded


def read_official(path: str | Path) -> DacModel:
    """Read a `.pth` of the original implementation, without running anything it contains.

    Raises:
        CheckpointError: if it is not a PyTorch file, holds objects other than tensors, or is not a
            DAC.
    """
    path = Path(path)
    if path.exists():
        check_file(path, None)
    try:
        # weights_only: a .pth is a pickle, and a pickle from a stranger is a program.
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist") from error
    except Exception as error:
        if _holds_a_model(path):
            raise CheckpointError(
                f"{path} holds a whole pickled model, whose code would run when it is loaded; give "
                "the weights.pth that the original writes beside its package.pth"
            ) from error
        raise CheckpointError(
            f"{path} cannot be read as a PyTorch checkpoint of plain tensors "
            f"({type(error).__name__}); "
            "give a .pth of the original DAC, or a folder written by save_pretrained"
        ) from error
    try:
        kwargs = checkpoint["metadata"]["kwargs"]
        state = fold_weight_norm(checkpoint["state_dict"])
        config = _config(kwargs)
        names = module_names(len(config.downsampling_ratios))
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in DacModel(config).parameters())
        shapes = {key: tuple(value.shape) for key, value in state.items()}
        check_elements(size, shapes, str(path))
        model = DacModel(config)
        model.load_state_dict({_renamed(key, names): value for key, value in state.items()})
    except Exception as error:
        raise CheckpointError(
            f"{path} is a PyTorch file, but not a checkpoint of the original DAC: "
            f"{_shortened(error)}"
        ) from error
    return model.eval()


def _holds_a_model(path: str | Path) -> bool:
    """Return whether a file is a package of torch.package, or a module that torch.save wrote.

    Nothing of it is run: only the names in the archive and in the pickle are read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if any(name.endswith(".data/extern_modules") for name in names):
                return True
            pickles = [name for name in names if name.endswith("/data.pkl")]
            if not pickles or archive.getinfo(pickles[0]).file_size > _MAX_PICKLE_BYTES:
                return False
            data = archive.read(pickles[0])
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError):
        # no archive, or one with a compression or password that PyTorch does not write
        return False
    # Every module pickles this field of its own.
    return b"_forward_pre_hooks" in data


def _config(kwargs: dict) -> DacConfig:
    """Return the configuration that stands for the arguments of the original class."""
    fields = {_ARGUMENTS[name]: value for name, value in kwargs.items() if name in _ARGUMENTS}
    fields["quantizer_dropout"] = float(
        fields.get("quantizer_dropout", 0.0)
    )  # the original also takes a bool
    if isinstance(fields.get("codebook_dim"), (list, tuple)):
        widths = set(fields["codebook_dim"])
        if len(widths) != 1:
            raise ValueError(f"expected codebooks of one width, got {sorted(widths)}")
        fields["codebook_dim"] = widths.pop()
    config = DacConfig(**fields)
    upsampling = kwargs.get("decoder_rates")
    if upsampling is not None and list(upsampling) != config.upsampling_ratios:
        raise ValueError(
            f"expected decoder_rates {config.upsampling_ratios}, the encoder's reversed, got "
            f"{upsampling}"
        )
    return config


def write_official(model: DacModel, path: str | Path) -> None:
    """Write the model as a `.pth` that the original implementation loads, weight norm included.

    Raises:
        CheckpointError: for a causal model, or one with band gains, which the original does not
            have.
    """
    config = model.config
    if config.gain_size:
        raise CheckpointError(
            "the original implementation has no band gains; save_pretrained writes this model"
        )
    if isinstance(config, CausalDacConfig):
        raise CheckpointError(
            "the original implementation has no causal DAC; save_pretrained writes this model"
        )
    names = {ours: theirs for theirs, ours in module_names(len(config.downsampling_ratios)).items()}
    state = {}
    for key, value in model.folded_state_dict().items():
        theirs = _renamed(key, names)
        value = value.detach().float().cpu().contiguous()
        if key.endswith(".weight") and value.ndim == 3:
            norm = value.flatten(1).norm(dim=1).reshape(-1, 1, 1)
            # Filters of zeros still need a direction that can be divided by its length.
            state[f"{theirs}_g"] = norm
            state[f"{theirs}_v"] = value.masked_fill(norm == 0, 1.0)
        else:
            state[theirs] = value
    kwargs = {argument: getattr(config, field) for argument, field in _ARGUMENTS.items()}
    kwargs["encoder_rates"] = list(config.downsampling_ratios)
    kwargs["decoder_rates"] = list(config.upsampling_ratios)
    with atomic_path(path) as temporary:
        torch.save({"state_dict": state, "metadata": {"kwargs": kwargs}}, temporary)


def _renamed(key: str, names: dict[str, str]) -> str:
    module, _, parameter = key.rpartition(".")
    return f"{names.get(module, module)}.{parameter}"


def _shortened(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
