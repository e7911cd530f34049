"""The verb `completion`: a script that completes verbs and options in a shell.

The script is generated from the parser, so that it knows every verb and option. argparse and these
lines are less code than typer would take, which has no options of several values (`--data A B`).
"""

import argparse
import shlex
from typing import Any

from codecplus.cli.options import add_verb

_BASH = """\
_codecplus() {
    local current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}" words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        words=%(verbs)s
    else
        case "${COMP_WORDS[1]} $previous" in
%(choices)s
        *) if [ "${current#-}" != "$current" ]; then case "${COMP_WORDS[1]}" in
%(options)s
            esac; fi ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -o default -F _codecplus codecplus
"""
_ZSH = "autoload -Uz bashcompinit && bashcompinit\n"


def add_verbs(verbs: Any) -> None:
    """Add the verb to an argparse subparsers object."""
    verb = add_verb(
        verbs,
        "completion",
        completion,
        help="print a script that completes verbs and options in your shell",
        examples=(
            "codecplus completion bash > ~/.local/share/bash-completion/completions/codecplus",
            "codecplus completion fish > ~/.config/fish/completions/codecplus.fish",
        ),
    )
    verb.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell it is for")


def completion(args: argparse.Namespace) -> None:
    """Print the script of a shell."""
    from codecplus.cli.app import build_parser, verbs_of

    verbs = verbs_of(build_parser())
    if args.shell == "fish":
        print(fish_script(verbs), end="")
    else:
        print((_ZSH if args.shell == "zsh" else "") + bash_script(verbs), end="")


def bash_script(verbs: dict[str, argparse.ArgumentParser]) -> str:
    """Return the completion of these verbs for bash, and for zsh with its bashcompinit."""
    options = []
    choices = []
    for name, verb in verbs.items():
        flags = []
        for action in verb._actions:
            flags += action.option_strings
            if not action.choices:
                continue
            words = shlex.quote(" ".join(map(str, action.choices)))
            for flag in action.option_strings or [name]:
                choices.append(f'        "{name} {flag}") words={words} ;;')
        options.append(f"            {name}) words={shlex.quote(' '.join(flags))} ;;")
    return _BASH % {
        "verbs": shlex.quote(" ".join(verbs)),
        "choices": "\n".join(choices),
        "options": "\n".join(options),
    }


def fish_script(verbs: dict[str, argparse.ArgumentParser]) -> str:
    """Return the completion of these verbs for fish, with the help texts."""
    lines = []
    for name, verb in verbs.items():
        about = shlex.quote((verb.description or "").replace("\n", " "))
        lines.append(f"complete -c codecplus -n __fish_use_subcommand -a {name} -d {about}")
        condition = f"-n '__fish_seen_subcommand_from {name}'"
        for action in verb._actions:
            flags = [_fish_flag(flag) for flag in action.option_strings]
            words = " ".join(map(str, action.choices or []))
            if words:
                flags.append(f"-xa {shlex.quote(words)}")
            if flags:
                about = shlex.quote(_expanded_help(action))
                lines.append(f"complete -c codecplus {condition} {' '.join(flags)} -d {about}")
    return "\n".join(lines) + "\n"


def _fish_flag(flag: str) -> str:
    return f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"


def _expanded_help(action: argparse.Action) -> str:
    """Return the help text of an option with its default filled in."""
    return (action.help or "") % vars(action)
