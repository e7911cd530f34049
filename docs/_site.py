"""What `make docs` adds to the pages of this folder: pages of the repository, the verbs, and
examples in docstrings.

mkdocs calls it as a hook, griffe as an extension. It knows Markdown and the command line's parser.
"""

import argparse
import os
import posixpath
import re
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]

# Pages of the repository, and what they are called on the site.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "model_cards/dac-16khz-live.md": "model_cards/dac-16khz-live.md",
    "model_cards/dac-44khz-small.md": "model_cards/dac-44khz-small.md",
}
CLI_PAGE = "reference/cli.md"
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
DOCTEST = re.compile(r"(?:^|(?<=\n))>>> .*?(?=\n\s*\n|\Z)", re.DOTALL)


class FencedExamples(griffe.Extension):
    """Marks the examples of docstrings as code, which Markdown would take for quotations."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Put a fence around each example of a docstring."""
        if obj.docstring is not None:
            obj.docstring.value = DOCTEST.sub(
                lambda match: f"```pycon\n{match[0]}\n```", obj.docstring.value
            )


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the repository, the pictures of the cards, and the page of the verbs."""
    for source, target in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        if source.startswith("model_cards"):
            text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)  # metadata of the Hub
        files.append(File.generated(config, target, content=text))
    for picture in sorted((ROOT / "model_cards" / "assets").glob("*.png")):
        target = f"model_cards/assets/{picture.name}"
        files.append(File.generated(config, target, abs_src_path=str(picture)))
    files.append(File.generated(config, CLI_PAGE, content=verbs_page()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to files of the repository into links of the site, or of the repository."""
    target = page.file.src_uri
    sources = {name: source for source, name in PAGES.items()}
    source = sources.get(target, f"docs/{target}")

    def rewrite(match: re.Match[str]) -> str:
        return match[1] + site_link(match[2], source, target, config) + match[3]

    return LINK.sub(rewrite, markdown)


def site_link(link: str, source: str, target: str, config: MkDocsConfig) -> str:
    """Return where a link of the page `source` of the repository leads from the page `target`.

    Links to this site become relative, so that they are checked.
    """
    path, hash_mark, anchor = link.partition("#")
    site = str(config.site_url)
    raw = str(config.repo_url).replace("https://github.com", "https://raw.githubusercontent.com")
    if path.startswith(f"{raw}/main/"):
        repository_path = path.removeprefix(f"{raw}/main/")
    elif path.startswith(site):
        page = path.removeprefix(site).strip("/")
        return relative(f"{page}.md" if page else "index.md", target) + hash_mark + anchor
    elif "://" in path or path.startswith("mailto:") or not path:
        return link
    else:
        repository_path = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    if repository_path in PAGES:
        place = PAGES[repository_path]
    elif repository_path.startswith("docs/"):
        place = repository_path.removeprefix("docs/")
    elif repository_path.startswith("model_cards/assets/"):
        place = repository_path
    elif (ROOT / repository_path).exists():
        return f"{config.repo_url}/blob/main/{repository_path}{hash_mark}{anchor}"
    else:
        return link
    return relative(place, target) + hash_mark + anchor


def relative(place: str, page: str) -> str:
    """Return the path to a file of the site from one of its pages."""
    return posixpath.relpath(place, posixpath.dirname(page) or ".")


def verbs_page() -> str:
    """Return the page of the command line: the help of every verb, as its parser prints it."""
    os.environ["COLUMNS"] = "80"  # what fits beside the navigation
    from codecplus.cli import build_parser

    parser = build_parser()
    text = [
        "# Command line",
        "",
        "`codecplus VERB --help` prints what stands here. Errors are one line on standard error, "
        "with exit status 2.",
        "",
    ]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, verb in action.choices.items():
                text += [
                    f"## codecplus {name}",
                    "",
                    "```text",
                    verb.format_help().strip(),
                    "```",
                    "",
                ]
    return "\n".join(text)
