"""The verb `export` of the command line. Light to import: the work is imported when it is done."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_verbs(verbs: Any) -> None:
    """Add the verb to an argparse subparsers object; it sets `run`, a function of the parsed
    arguments.
    """
    verb = verbs.add_parser(
        "export",
        help="write a model for other runtimes",
        description="Write a model as two ONNX graphs, which run without torch: load_codec('OUT') does.",
    )
    verb.add_argument("model", metavar="NAME", help="embedded name, folder, .pth or Hub id")
    verb.add_argument("--format", choices=("onnx",), default="onnx", help="default: %(default)s")
    verb.add_argument(
        "--precision", choices=("fp32", "fp16", "int8"), default="fp32", help="default: %(default)s"
    )
    verb.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="a folder, or NAME.onnx"
    )
    verb.add_argument(
        "--calibration",
        type=Path,
        metavar="DIR",
        help="for int8: recordings of the kind to be coded",
    )
    verb.add_argument(
        "--stateful", action="store_true", help="graphs for live streams, of a causal model"
    )
    verb.add_argument("-f", "--force", action="store_true", help="overwrite existing files")
    verb.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from transformers.utils import logging

    from codecplus.checkpoints import load_model
    from codecplus.export.onnx import export_onnx

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    model = load_model(args.model)
    recordings = None
    if args.calibration is not None:
        from codecplus.export.calibration import calibration_audio

        recordings = calibration_audio(args.calibration, model.config.sampling_rate)
    paths = export_onnx(
        model,
        args.output,
        precision=args.precision,
        stateful=args.stateful,
        calibration=recordings,
        overwrite=args.force,
    )
    for path in paths:
        print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0
