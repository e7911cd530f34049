"""The verbs `train`, `gains` and `entropy`: a codec, its band gains, and its entropy model.

Light to import: torch is imported when a verb runs.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from codecplus.cli.model_options import open_codec, quiet_datasets, quiet_transformers
from codecplus.cli.options import (
    add_codec_options,
    add_data_options,
    add_output,
    add_shared,
    add_verb,
    print_progress,
)
from codecplus.errors import InputError, OutputExistsError

# Shares of the gradient at the output, for recipes that balance their losses.
_ADVERSARIAL_SHARES = {
    "objective.weights.adversarial": 0.1,
    "objective.weights.feature_matching": 0.2,
}
_PRECISIONS = {None: "auto", "float32": "no", "bfloat16": "bf16"}  # by --dtype


def add_verbs(verbs: Any) -> None:
    """Add the verbs to an argparse subparsers object."""
    _add_train(verbs)
    _add_gains(verbs)
    _add_entropy(verbs)


def _add_train(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "train",
        train,
        help="train a codec, or fine-tune one, on recordings",
        description="Train a codec on recordings; OUT becomes a checkpoint. "
        "A stopped run goes on with --resume.",
        examples=(
            "codecplus train --model dac-16khz-live --data recordings/ -o my-codec --steps 500",
            "codecplus train --preset dac-44khz-small --data speech/ music/ -o my-codec "
            "--set objective.weights.mel=20",
        ),
    )
    _add_what_to_train(verb.add_argument_group("what to train"))
    _add_recordings(verb.add_argument_group("recordings"))
    _add_how_to_train(verb.add_argument_group("how to train"))


def _add_what_to_train(group: Any) -> None:
    group.add_argument(
        "--preset",
        metavar="NAME",
        help="name of an architecture and its recipe, or a JSON file of either",
    )
    add_shared(group, "model", note="to fine-tune")
    add_shared(group, "revision")
    group.add_argument(
        "--encoder-width",
        type=int,
        metavar="N",
        help="widen the encoder of --model to N channels in the first layer; "
        "the new channels change nothing until they are trained",
    )
    group.add_argument(
        "--decoder-width",
        type=int,
        metavar="N",
        help="widen the decoder of --model to N channels in the first layer; codes stay valid",
    )
    group.add_argument(
        "--new-codebooks",
        action="store_true",
        help="place the codebooks of --model anew, for these recordings",
    )
    group.add_argument(
        "--resume", action="store_true", help="go on where the run in OUT last saved"
    )
    add_output(group, "folder of the checkpoint", required=True)
    group.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="number of steps; the phases of the recipe are stretched to fit",
    )
    group.add_argument(
        "--batch", type=int, metavar="N", help="crops per step, of all processes together"
    )
    group.add_argument("--lr", type=float, metavar="RATE", help="learning rate")
    group.add_argument(
        "--seed", type=int, metavar="N", help="seed of weights, crops and all other random choices"
    )
    group.add_argument(
        "--adversarial",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="train with or without discriminators (default: as the recipe says)",
    )
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="any setting of the recipe, such as objective.weights.mel=20; may be repeated",
    )


def _add_recordings(group: Any) -> None:
    add_shared(group, "data")
    group.add_argument(
        "--validation",
        nargs="+",
        metavar="DATA",
        help="recordings to validate with (default: a small part of --data)",
    )
    group.add_argument(
        "--weights",
        nargs="+",
        metavar="SHARE",
        help="share of each of --data, in its order, or of each kind in its manifest as KIND=SHARE "
        "(default: every second counts the same)",
    )
    group.add_argument(
        "--hold-out",
        choices=("file", "speaker", "folder"),
        default="file",
        help="unit that is kept for validation (default: %(default)s)",
    )
    add_data_options(group)
    add_shared(group, "audio-column")
    add_shared(group, "workers", note="for reading ahead; default: up to 4")


def _add_how_to_train(group: Any) -> None:
    add_shared(group, "device")
    add_shared(group, "dtype", note="default: bfloat16 where it is fast")
    group.add_argument(
        "--accumulate",
        type=int,
        default=1,
        metavar="N",
        help="split the batch of a step into N parts, to save memory",
    )
    group.add_argument(
        "--save-every",
        type=int,
        default=500,
        metavar="STEPS",
        help="steps between two saves (default: %(default)s)",
    )
    group.add_argument(
        "--keep-every",
        type=int,
        default=0,
        metavar="STEPS",
        help="steps between two checkpoints that are kept, as OUT@step-N; 0: none is "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--validate-every",
        type=int,
        default=1000,
        metavar="STEPS",
        help="steps between two validations; 0: never (default: %(default)s)",
    )
    group.add_argument(
        "--log-every",
        type=int,
        default=10,
        metavar="STEPS",
        help="steps between two lines of the log (default: %(default)s)",
    )
    group.add_argument(
        "--tracker",
        default="tensorboard",
        metavar="NAME",
        help="tensorboard, trackio, wandb or none (default: %(default)s)",
    )
    group.add_argument(
        "--run-name", metavar="NAME", help="name of the run in the tracker (default: that of OUT)"
    )
    add_shared(group, "quiet")


def _add_gains(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "gains",
        gains,
        help="give a checkpoint band gains, or fit those it has anew",
        description="Give a checkpoint band gains: some codebooks tell the decoder how loud "
        "each band of a frame was. A checkpoint that has them keeps the places of their "
        "codebooks, and their nets are trained on; do that after its decoder was trained. The new "
        "checkpoint makes other codes, and needs an entropy model of its own.",
        examples=(
            "codecplus gains --model my-codec --data recordings/ -o with-gains",
            "codecplus gains --model my-codec --data recordings/ --gain-codebooks 4 8 "
            "-o with-gains",
        ),
    )
    add_shared(verb, "model", required=True)
    add_shared(verb, "revision")
    add_shared(verb, "data")
    add_output(verb, "folder to write", required=True)
    add_shared(verb, "force", "quiet")
    verb.add_argument(
        "--gain-codebooks",
        type=int,
        nargs="+",
        metavar="N",
        help="numbers of the codebooks that code gains, from 1 on, for a checkpoint without gains; "
        "its finest codebooks give way (default: 6 9 13 of 15, and in proportion)",
    )
    verb.add_argument(
        "--gain-steps",
        type=int,
        default=8000,
        metavar="N",
        help="steps of training by the powers of bands; 0 tunes gains that are there, and fills no "
        "codebooks anew (default: %(default)d)",
    )
    verb.add_argument(
        "--tuning-steps",
        type=int,
        default=3000,
        metavar="N",
        help="steps of training by what is heard, afterwards; 0 leaves them out "
        "(default: %(default)d)",
    )


def _add_entropy(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "entropy",
        entropy,
        help="train the entropy model of a checkpoint, for smaller files",
        description="Train the entropy model of a checkpoint on recordings. "
        "Files that were made with an entropy model can only be read with it.",
        examples=(
            "codecplus entropy --model my-codec --data recordings/",
            "codecplus entropy --model descript/dac_44khz --data recordings/ "
            "-o entropy.safetensors --minutes 60",
        ),
    )
    add_codec_options(verb, required=True)
    add_shared(verb, "data")
    add_output(verb, "file to write (default: entropy.safetensors beside the weights)")
    add_shared(verb, "force", "quiet")
    verb.add_argument(
        "--minutes",
        type=float,
        default=15.0,
        metavar="N",
        help="time to take (default: %(default)g)",
    )


# ---- what the verbs do


def train(args: argparse.Namespace) -> None:
    """Train a codec; print the path of the checkpoint and its size."""
    from codecplus.training.run import RunOptions
    from codecplus.training.run import train as train_codec
    from codecplus.training.sampling import TableOptions

    quiet_datasets(args.quiet)
    quiet_transformers()
    model = train_codec(
        _recipe(args),
        args.data if len(args.data) > 1 else args.data[0],
        args.output,
        init_from=_checkpoint(args),
        encoder_width=args.encoder_width,
        decoder_width=args.decoder_width,
        resume=args.resume,
        validation=args.validation,
        table=TableOptions(
            split=args.split,
            config=args.config,
            column=args.audio_column,
            revision=args.data_revision,
            streaming=args.streaming,
        ),
        weights=_weights(args.weights),
        hold_out=args.hold_out,
        options=RunOptions(
            workers=args.workers,
            accumulate=args.accumulate,
            precision=_precision(args.dtype),
            cpu=_is_cpu(args.device),
            save_every=args.save_every,
            keep_every=args.keep_every,
            validate_every=args.validate_every,
            log_every=args.log_every,
            tracker=args.tracker,
            run_name=args.run_name,
            progress=not args.quiet,
        ),
    )
    if os.environ.get("RANK", "0") != "0":  # one of several processes: the first one reports
        return
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(f"{args.output}: a checkpoint of {millions:.1f} M weights")


def gains(args: argparse.Namespace) -> None:
    """Fit the band gains of a checkpoint, and write the new one."""
    from codecplus.checkpoints import load_model
    from codecplus.training.gains import fit_band_gains

    if not args.force and (args.output / "model.safetensors").exists():
        raise OutputExistsError(
            f"{args.output} holds a checkpoint already; name another folder, or replace it with "
            "--force"
        )
    quiet_datasets(args.quiet)
    quiet_transformers()
    model = fit_band_gains(
        load_model(args.model, revision=args.revision),
        args.data,
        places=args.gain_codebooks,
        steps=args.gain_steps,
        tuning_steps=args.tuning_steps,
        progress=None if args.quiet else print_progress,
    )
    model.save_pretrained(args.output)
    print(args.output)


def entropy(args: argparse.Namespace) -> None:
    """Train an entropy model, write it beside the weights, and print its path."""
    from codecplus.system.paths import atomic_path, check_output
    from codecplus.training.entropy import fit_entropy_model

    if args.output is not None:
        output = args.output
    else:
        output = _checkpoint_folder(args.model) / "entropy.safetensors"
    check_output(output, args.force)
    codec = open_codec(args.model, args)
    progress = None if args.quiet else print_progress
    model = fit_entropy_model(codec, args.data, minutes=args.minutes, progress=progress)
    with atomic_path(output) as temporary:
        temporary.write_bytes(model.to_bytes())
    print(output)


def _checkpoint_folder(name: str) -> Path:
    from codecplus.checkpoints.identity import EMBEDDED_FOLDER, embedded_names

    if name in embedded_names():
        return EMBEDDED_FOLDER / name
    folder = Path(name)
    if not folder.is_dir():
        raise InputError(f"{name} is no folder to put an entropy model into; name a file with -o")
    return folder


def _checkpoint(args: argparse.Namespace) -> str | None:
    """Return the checkpoint to fine-tune; for a revision on the Hub, its folder in the cache."""
    if args.revision is None:
        return args.model
    from codecplus.checkpoints.remote import fetch_checkpoint, is_hub_id

    if args.model is None or Path(args.model).exists() or not is_hub_id(args.model):
        raise InputError(
            f"--revision {args.revision} is for a checkpoint on the Hub; "
            f"got --model {args.model}, leave --revision out"
        )
    return str(fetch_checkpoint(args.model, args.revision))


def _is_cpu(device: str | None) -> bool:
    """Return whether to leave the GPU alone; where no device is named, accelerate chooses."""
    from codecplus.system.devices import resolve_device

    if device is None:
        return False
    if ":" in device:
        raise InputError(
            f"expected --device cpu, cuda or mps for training, got {device}; "
            "choose among several GPUs with CUDA_VISIBLE_DEVICES"
        )
    return resolve_device(device).type == "cpu"


def _precision(dtype: str | None) -> str:
    if dtype not in _PRECISIONS:
        raise InputError(f"expected training in --dtype float32 or bfloat16, got {dtype}")
    return _PRECISIONS[dtype]


def _recipe(args: argparse.Namespace) -> Any:
    """Return the recipe of a run as the options change it; None for a run that is resumed."""
    from codecplus.training.recipe import Recipe
    from codecplus.training.run import adjusted

    changes = {"steps": args.steps, "batch": args.batch, "lr": args.lr, "seed": args.seed}
    settings = dict(_setting(text) for text in args.settings)
    if args.new_codebooks:
        settings |= {"codebooks.placed": True, "codebooks.kept": False}
    name = args.preset
    if name is None and args.resume:
        if settings or any(value is not None for value in changes.values()):
            raise InputError("a run resumes with the settings it began with; leave the others away")
        return None
    if name is None:
        name = _own_recipe(args.model)
        # A checkpoint that once got new codebooks does not get new ones every time.
        settings = {"codebooks.kept": True, **settings}
    recipe = Recipe.load(name, settings)
    if args.adversarial is not None and args.adversarial != recipe.objective.adversarial:
        for key, share in _ADVERSARIAL_SHARES.items():
            settings[key] = share if args.adversarial else 0.0
        recipe = Recipe.load(name, settings)
    return adjusted(recipe, **changes)


def _own_recipe(model: str | None) -> str | Path:
    """Return the recipe that a checkpoint was trained by, or that of the paper if it has none."""
    from codecplus.checkpoints import embedded_names

    if model is None:
        raise InputError(
            "expected --preset to train from the start, --model to fine-tune, or --resume"
        )
    if model in embedded_names():
        return model
    from codecplus.training.run_folder import RunFolder

    own = RunFolder.of_checkpoint(model).recipe
    return own if own.is_file() else "paper"


def _weights(texts: list[str] | None) -> list[float] | dict[str, float] | None:
    """Return the shares of `--weights`, by kind if they name kinds."""
    if texts is None:
        return None
    shares: list[float] = []
    by_kind: dict[str, float] = {}
    for text in texts:
        kind, equals, number = text.rpartition("=")
        try:
            share = float(number)
        except ValueError:
            raise InputError(
                f"expected --weights as numbers or KIND=NUMBER, got {text!r}"
            ) from None
        if equals:
            by_kind[kind] = share
        else:
            shares.append(share)
    if shares and by_kind:
        raise InputError("expected --weights for each of --data or by kind, got some of both")
    return by_kind or shares


def _setting(text: str) -> tuple[str, Any]:
    """Return a key and its value, which is JSON or else a string."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise InputError(f"expected --set KEY=VALUE, got {text!r}")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
