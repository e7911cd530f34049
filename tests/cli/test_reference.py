"""The vocabulary of the command line: one name and one help text for one thing, in all verbs; and
every command that a page shows is one.
"""

import argparse
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from codecplus.cli import build_parser
from codecplus.cli.app import verbs_of

ROOT = Path(__file__).parents[2]
PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "model_cards").glob("*.md"),
    ROOT / "spaces_demo" / "README.md",
]
VERBS = verbs_of(build_parser())
# What a user may ask of several verbs, and the verbs that must have it under this very name.
VOCABULARY = {
    "--model": "demo encode decode eval webmushra train gains entropy tokenize detokenize export "
    "card push",
    "--revision": "demo encode decode eval webmushra train gains entropy tokenize detokenize export",
    "--device": "demo encode decode eval webmushra train entropy tokenize detokenize",
    "--dtype": "demo encode decode train entropy tokenize detokenize",
    "--compile": "demo encode decode",
    "--output": "demo encode decode eval webmushra listening leaderboard train gains entropy tokenize "
    "detokenize export push",
    "--force": "encode decode gains entropy detokenize export",
    "--skip-existing": "encode decode",
    "--keep-suffix": "encode decode",
    "--quiet": "encode decode eval train gains entropy tokenize detokenize",
    "--recover": "decode info",
    "--max-seconds": "decode detokenize",
    "--json": "info eval compare listening leaderboard",
    "--workers": "encode decode eval train tokenize",
    "--bitrate": "demo encode tokenize",
    "--bitrate-per-channel": "eval webmushra",
    "--loudness": "demo encode",
    "--codec": "eval webmushra",
    "--metric": "eval compare",
    "--limit": "eval webmushra detokenize",
    "--data": "eval webmushra train gains entropy tokenize detokenize",
    "--split": "train tokenize detokenize",
    "--config": "train tokenize",
    "--data-revision": "train tokenize detokenize",
    "--streaming": "train tokenize detokenize",
    "--audio-column": "train tokenize",
    "--dataset-id": "eval card",
    "--private": "tokenize push leaderboard submit",
}
# Each verb says itself what it reads, what it writes, and on which side of it a pipe is.
OWN_HELP = {"--data", "--output", "--raw"}


def options(verb: str) -> dict[str, argparse.Action]:
    """The options of a verb by their long names, without --help."""
    named = {}
    for action in VERBS[verb]._actions:
        for flag in action.option_strings:
            if flag.startswith("--") and flag != "--help":
                named[flag] = action
    return named


def parse(line: str) -> argparse.Namespace:
    return build_parser().parse_args(shlex.split(line, comments=True)[1:])


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_has_a_help_text(verb):
    for action in VERBS[verb]._actions:
        assert action.help, action.option_strings or action.dest
        assert not action.help.endswith("."), action.help


@pytest.mark.parametrize("option", VOCABULARY)
def test_one_thing_has_one_name_in_all_verbs(option):
    missing = [verb for verb in VOCABULARY[option].split() if option not in options(verb)]
    assert not missing


def test_options_of_one_name_have_one_help_text():
    texts: dict[str, set[str]] = {}
    for verb in VERBS:
        for flag, action in options(verb).items():
            text = re.sub(r" \(([^()]|%\(default\)s)*\)$", "", action.help)  # defaults differ
            texts.setdefault(flag, set()).add(text)
    assert {flag for flag in texts if len(texts[flag]) > 1} == OWN_HELP


def test_options_that_several_verbs_have_are_in_the_vocabulary():
    several = {
        flag
        for verb in VERBS
        for flag in options(verb)
        if sum(flag in options(v) for v in VERBS) > 1
    }
    assert several - {"--raw"} == VOCABULARY.keys()


@pytest.mark.parametrize(
    ("short", "long"), [("-o", "--output"), ("-f", "--force"), ("-q", "--quiet")]
)
def test_short_options_go_with_their_long_ones(short, long):
    for verb in VERBS.values():
        for action in verb._actions:
            assert (short in action.option_strings) == (long in action.option_strings)


@pytest.mark.parametrize("verb", VERBS)
def test_help_ends_with_two_examples_of_the_verb(verb):
    page = VERBS[verb].format_help()
    examples = [line.strip() for line in page.rstrip().splitlines()[-2:]]
    assert page.rstrip().splitlines()[-3] == "examples:"
    for line in examples:
        assert line.split()[:2] == ["codecplus", verb]
        for part in line.split(" > ")[:1]:
            assert parse(part).run is VERBS[verb].get_default("run")


def shown_commands() -> list[tuple[str, str]]:
    """Every command of ours that a page shows in a block, with the name of the page."""
    commands = []
    for page in PAGES:
        for block in re.findall(r"^ *```\w*\n(.*?)^ *```", page.read_text(), re.M | re.S):
            for line in block.replace("\\\n", " ").splitlines():
                for part in re.split(r" [|>] ", line):
                    found = re.search(r"(?:^\s*(?:\$ )?|-m )(codecplus .*)", part)
                    if found:
                        commands.append((page.name, found.group(1)))
    return commands


def named_commands() -> list[tuple[str, str]]:
    """Every command of ours with options that stands in a sentence, with the name of the page."""
    commands = []
    for page in PAGES:
        for text in re.findall(
            r"`((?:[^`\n]|\n(?!\n))*)`", re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
        ):
            line = " ".join(text.split())
            if line.startswith("codecplus ") and len(line.split()) > 2 and " ..." not in line:
                commands.append((page.name, line))
    return commands


SHOWN = shown_commands()
NAMED = named_commands()


def test_pages_show_commands():
    assert len(SHOWN) > 40
    assert {"README.md", "training.md", "evaluating.md", "hub.md"} <= {page for page, _ in SHOWN}


@pytest.mark.parametrize(("page", "line"), SHOWN, ids=lambda x: x[:40])
def test_commands_in_pages_parse(page, line):
    parse(line.replace("$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT", "0/16"))


@pytest.mark.parametrize(("page", "line"), NAMED, ids=lambda x: x[:40])
def test_options_of_commands_in_sentences_exist(page, line):
    words = shlex.split(line)
    known = options(words[1]).keys() | {"-o", "-f", "-q"}
    assert {word for word in words if re.match(r"--?[a-z]", word)} <= known


def test_abbreviated_options_are_refused(capsys):
    with pytest.raises(SystemExit):
        parse("codecplus eval --codec opus --bitrate 6 --data x -o y")
    assert "--bitrate" in capsys.readouterr().err


# ---- completion


def completed(script: str, *words: str) -> list[str]:
    """What the script offers bash for the last of these words."""
    quoted = " ".join(shlex.quote(word) for word in words)
    code = [
        script,
        f"COMP_WORDS=({quoted})",
        f"COMP_CWORD={len(words) - 1}",
        "_codecplus",
        'echo "${COMPREPLY[*]}"',
    ]
    command = ["bash", "-c", "\n".join(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.fixture(scope="module")
def bash_completion():
    from codecplus.cli.completion import bash_script

    return bash_script(VERBS)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["codecplus", "dec"], ["decode"]),
        (["codecplus", ""], list(VERBS)),
        (["codecplus", "encode", "--lo"], ["--loudness"]),
        (["codecplus", "export", "--precision", ""], ["fp32", "fp16", "int8"]),
        (["codecplus", "completion", "f"], ["fish"]),
        (["codecplus", "encode", "song"], []),  # then bash offers files
    ],
)
def test_bash_completes_verbs_options_and_choices(bash_completion, words, offered):
    assert completed(bash_completion, *words) == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_for_shells_know_every_verb(shell, capsys):
    args = parse(f"codecplus completion {shell}")
    args.run(args)
    script = capsys.readouterr().out
    assert all(verb in script for verb in VERBS)
