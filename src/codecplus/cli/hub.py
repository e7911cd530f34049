"""The verbs `card` and `push`: the model card of a checkpoint, and uploads to the Hugging Face Hub.

Light to import: the Hub's client is imported when a verb runs.
"""

import argparse
from typing import Any

from codecplus.cli.model_options import quiet_transformers
from codecplus.cli.options import add_output, add_shared, add_verb
from codecplus.errors import InputError


def add_verbs(verbs: Any) -> None:
    """Add the verbs to an argparse subparsers object."""
    _add_card(verbs)
    _add_push(verbs)


def _add_card(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "card",
        card,
        help="write the model card of a checkpoint from measured results",
        description="Write the model card of a checkpoint, which is an embedded name or a folder, "
        "from the results of codecplus eval.",
        examples=(
            "codecplus card --model my-codec --results results/",
            "codecplus card --model my-codec --results speech/ music/ "
            "--curve my-codec/training/log.jsonl",
        ),
    )
    add_shared(verb, "model", required=True)
    verb.add_argument(
        "--results",
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="results folders of codecplus eval; each becomes a section",
    )
    verb.add_argument("--curve", metavar="FILE", help="learning curve to draw, as JSON lines")
    verb.add_argument(
        "--step",
        type=int,
        metavar="N",
        help="step of the curve that the weights are from (default: its last)",
    )
    add_shared(verb, "dataset-id")


def _add_push(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "push",
        push,
        help="upload a checkpoint, or the demo, to the Hugging Face Hub",
        description="Upload a checkpoint, which is an embedded name, a folder or a file, with its "
        "card and code in one commit; or upload the demo as a Space.",
        examples=(
            "codecplus push ada/my-codec --model my-codec",
            "codecplus push ada/hear-it --space",
        ),
    )
    verb.add_argument(
        "repo", nargs="?", help="OWNER/NAME of the repository; made if it does not exist"
    )
    add_shared(verb, "model")
    verb.add_argument(
        "--space", action="store_true", help="upload the demo as a Space instead of a checkpoint"
    )
    add_output(verb, "new folder to write instead of uploading anything")
    add_shared(verb, "private")
    verb.add_argument("--branch", metavar="BRANCH", help="branch to upload to (default: main)")
    verb.add_argument(
        "--discriminators",
        action="store_true",
        help="upload the discriminators of its training, too",
    )


def card(args: argparse.Namespace) -> None:
    """Write a model card and print its path."""
    from codecplus.hub import write_card

    quiet_transformers()
    path = write_card(
        args.model, args.results, curve=args.curve, step=args.step, dataset_id=args.dataset_id
    )
    print(path)


def push(args: argparse.Namespace) -> None:
    """Upload a checkpoint or the demo and print the address of the commit; or write a folder."""
    from codecplus import hub

    _check_push(args)
    quiet_transformers()
    if args.space:
        if args.output is not None:
            print(hub.export_space(args.output))
        else:
            print(hub.push_space(args.repo, private=args.private))
    elif args.output is not None:
        print(hub.export_folder(args.model, args.output, discriminators=args.discriminators))
    else:
        address = hub.push(
            args.model,
            args.repo,
            private=args.private,
            revision=args.branch,
            discriminators=args.discriminators,
        )
        print(address)


def _check_push(args: argparse.Namespace) -> None:
    """Raise InputError for options that do not go together."""
    if args.output is not None and (args.repo or args.private or args.branch):
        raise InputError(
            "push -o FOLDER uploads nothing: leave out the repository, --private and --branch"
        )
    if args.output is None and args.repo is None:
        raise InputError("push needs a repository: codecplus push OWNER/NAME --model MODEL")
    if args.space and (args.model or args.branch or args.discriminators):
        raise InputError(
            "push --space uploads the demo: leave out --model, --branch and --discriminators"
        )
    if not args.space and args.model is None:
        raise InputError("push needs a checkpoint: codecplus push OWNER/NAME --model MODEL")
