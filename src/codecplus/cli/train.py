"""The verb `train` of the command line. Light to import: the work is imported when it is done."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

# Of the gradient at the output, for recipes that are balanced.
_ADVERSARIAL_SHARES = {
    "objective.weights.adversarial": 0.1,
    "objective.weights.feature_matching": 0.2,
}


def add_verbs(verbs: Any) -> None:
    """Add the verb to an argparse subparsers object; it sets `run`, a function of the parsed
    arguments.
    """
    verb = verbs.add_parser(
        "train",
        help="train a codec, or go on training one, on recordings",
        description="Train a codec on recordings; OUT becomes a checkpoint. A stopped run goes on with --resume.",
    )
    what = verb.add_argument_group("what to train")
    what.add_argument(
        "--preset", metavar="NAME", help="architecture and recipe by name, or a JSON file of either"
    )
    what.add_argument(
        "--init-from",
        metavar="CHECKPOINT",
        help="fine-tune this: embedded name, folder, .pth or Hub id",
    )
    what.add_argument("--encoder-width", type=int, metavar="N",
                      help="widen its encoder to N channels in the first layer, without effect at first")  # fmt: skip
    what.add_argument("--new-codebooks", action="store_true",
                      help="place its codebooks anew, for your recordings, instead of keeping them")  # fmt: skip
    what.add_argument("--resume", action="store_true", help="go on where the run in OUT last saved")
    what.add_argument(
        "--output", "-o", required=True, metavar="OUT", help="folder of the checkpoint"
    )
    what.add_argument(
        "--steps", type=int, metavar="N", help="steps; the recipe's course is stretched to them"
    )
    what.add_argument(
        "--batch", type=int, metavar="N", help="crops per step, of all processes together"
    )
    what.add_argument("--lr", type=float, help="learning rate")
    what.add_argument(
        "--seed", type=int, help="of weights, crops and everything else that is random"
    )
    what.add_argument("--adversarial", action=argparse.BooleanOptionalAction, default=None,
                      help="train against discriminators, or not, whatever the recipe does")  # fmt: skip
    what.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
                      help="any setting of the recipe, such as objective.weights.mel=20; may be repeated")  # fmt: skip

    data = verb.add_argument_group("recordings")
    data.add_argument("--data", required=True, nargs="+", metavar="DATA",
                      help="folders of audio, parquet files, a saved data set, or a data set's Hub id")  # fmt: skip
    data.add_argument(
        "--validation",
        nargs="+",
        metavar="DATA",
        help="to validate with; default: a little of DATA",
    )
    data.add_argument("--split", default="train", help="of a data set (default: %(default)s)")
    data.add_argument("--config", metavar="NAME", help="configuration of a data set on the Hub")
    data.add_argument(
        "--audio-column", default="audio", metavar="NAME", help="default: %(default)s"
    )
    data.add_argument("--revision", help="branch, tag or commit of a data set on the Hub")
    data.add_argument(
        "--streaming",
        action="store_true",
        help="read a data set in order, without downloading it first",
    )
    data.add_argument(
        "--workers", type=int, metavar="N", help="processes that read ahead (default: up to 4)"
    )

    how = verb.add_argument_group("how")
    how.add_argument(
        "--precision",
        choices=("auto", "bf16", "no"),
        default="auto",
        help="default: bf16 where it is fast",
    )
    how.add_argument(
        "--accumulate", type=int, default=1, metavar="N", help="do a step's batch in N parts"
    )
    how.add_argument("--cpu", action="store_true", help="leave the GPU alone")
    how.add_argument(
        "--save-every", type=int, default=500, metavar="STEPS", help="default: %(default)s"
    )
    how.add_argument("--validate-every", type=int, default=1000, metavar="STEPS",
                     help="default: %(default)s; 0: never")  # fmt: skip
    how.add_argument(
        "--log-every", type=int, default=10, metavar="STEPS", help="default: %(default)s"
    )
    how.add_argument(
        "--tracker", default="tensorboard", help="tensorboard (default), trackio, wandb or none"
    )
    how.add_argument(
        "--run-name", metavar="NAME", help="of the run in the tracker (default: OUT's name)"
    )
    how.add_argument("--quiet", action="store_true", help="no progress bar")
    verb.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from transformers.utils import logging

    from codecplus.training.run import RunOptions, train
    from codecplus.training.sources import TableOptions

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    data = args.data if len(args.data) > 1 else args.data[0]
    model = train(
        _recipe(args),
        data,
        args.output,
        init_from=args.init_from,
        encoder_width=args.encoder_width,
        resume=args.resume,
        validation=args.validation,
        table=TableOptions(
            split=args.split,
            config=args.config,
            column=args.audio_column,
            revision=args.revision,
            streaming=args.streaming,
        ),
        options=RunOptions(
            workers=args.workers,
            accumulate=args.accumulate,
            precision=args.precision,
            cpu=args.cpu,
            save_every=args.save_every,
            validate_every=args.validate_every,
            log_every=args.log_every,
            tracker=args.tracker,
            run_name=args.run_name,
            progress=not args.quiet,
        ),
    )
    if os.environ.get("RANK", "0") == "0":  # one of several that accelerate launched
        print(
            f"{args.output}: a checkpoint of {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M weights"
        )
    return 0


def _recipe(args: argparse.Namespace) -> Any:
    from codecplus.checkpoints import embedded_names
    from codecplus.errors import InputError
    from codecplus.training.recipe import Recipe
    from codecplus.training.run import adjusted

    changes = {"steps": args.steps, "batch": args.batch, "lr": args.lr, "seed": args.seed}
    settings = dict(_setting(text) for text in args.settings)
    if args.new_codebooks:
        settings |= {"codebooks.placed": True, "codebooks.kept": False}
    name = args.preset
    if name is None:
        if args.resume:
            if settings or any(value is not None for value in changes.values()):
                raise InputError(
                    "a run resumes with the settings it began with; leave the others away"
                )
            return None
        if args.init_from is None:
            raise InputError(
                "expected --preset to train from the start, --init-from to fine-tune, or --resume"
            )
        own = Path(args.init_from) / "training" / "recipe.json"
        name = (
            args.init_from
            if args.init_from in embedded_names()
            else own
            if own.is_file()
            else "paper"
        )
        settings = {"codebooks.kept": True, **settings}  # new ones once are not new ones every time
    recipe = Recipe.load(name, settings)
    if args.adversarial is not None and args.adversarial != recipe.objective.adversarial:
        weights = {
            key: value if args.adversarial else 0.0 for key, value in _ADVERSARIAL_SHARES.items()
        }
        recipe = Recipe.load(name, {**settings, **weights})
    return adjusted(recipe, **changes)


def _setting(text: str) -> tuple[str, Any]:
    """A key and its value, which is JSON or else a string."""
    from codecplus.errors import InputError

    key, equals, value = text.partition("=")
    if not key or not equals:
        raise InputError(f"expected --set KEY=VALUE, got {text!r}")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
