"""The verb `export`: a model for other runtimes.

Light to import: torch and onnx are imported when it runs.
"""

import argparse
from pathlib import Path
from typing import Any

from codecplus.cli.model_options import quiet_transformers
from codecplus.cli.options import add_output, add_shared, add_verb
from codecplus.export import PRECISIONS


def add_verbs(verbs: Any) -> None:
    """Add the verb to an argparse subparsers object."""
    verb = add_verb(
        verbs,
        "export",
        export,
        help="write a model as ONNX graphs for other runtimes",
        description="Write a model as two ONNX graphs, an encoder and a decoder. "
        "load_codec('OUT') runs them without torch.",
        examples=(
            "codecplus export --model dac-16khz-live -o live/",
            "codecplus export --model dac-44khz-small --precision int8 "
            "--calibration recordings/ -o small/",
        ),
    )
    add_shared(verb, "model", required=True)
    add_shared(verb, "revision")
    add_output(
        verb, "a folder, or NAME.onnx for NAME.encoder.onnx and NAME.decoder.onnx", required=True
    )
    add_shared(verb, "force")
    verb.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="precision of the weights (default: %(default)s)",
    )
    verb.add_argument(
        "--calibration",
        type=Path,
        metavar="FOLDER",
        help="for int8: recordings of the kind that will be coded",
    )
    verb.add_argument(
        "--stateful",
        action="store_true",
        help="write graphs for live streams; the model must be causal",
    )


def export(args: argparse.Namespace) -> None:
    """Write the graphs and print their paths and sizes."""
    from codecplus.checkpoints import load_model
    from codecplus.export.onnx import export_onnx

    quiet_transformers()
    model = load_model(args.model, revision=args.revision)
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
