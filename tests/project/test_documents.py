"""The commands in the README and in the pages of the site."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from bidsseg.app.parser import dataset_parser, file_parser

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PARSERS = dataset_parser(), file_parser()
FLAGS = {flag for parser in PARSERS for action in parser._actions for flag in action.option_strings}

CALL = re.compile(r"(?:^|\s)(?:bidsseg(?:\.sif)?|\S*run\.py)\s+(?=\S*/|-|\"?\$|oasis)(.*)")
"""Pattern of a command line: the command or an image, then a dataset or a flag, then other arguments."""


def commands(page: Path) -> Iterator[str]:
    """Yield the arguments of bidsseg in shell blocks, with continued lines joined."""
    for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if match := CALL.search(line):
                yield match[1].partition("#")[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_have_flags_of_the_parser(page: Path) -> None:
    for command in commands(page):
        assert set(re.findall(r"(?<=\s)--?[a-z][a-z-]*", f" {command}")) <= FLAGS, command


def test_the_commands_are_found() -> None:
    found = [command for page in PAGES for command in commands(page)]
    assert len(found) > 15
    assert "/data/bids /data/bids/derivatives/bidsseg participant group" in found


def test_the_site_lists_every_page() -> None:
    listed = set(re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert listed == {page.relative_to(ROOT / "docs").as_posix() for page in PAGES[1:]}


def test_the_page_of_recipes_lists_every_shipped_recipe() -> None:
    page = (ROOT / "docs" / "reference" / "recipes.md").read_text()
    shipped = {path.stem for path in (ROOT / "bidsseg" / "learning" / "recipes").glob("*.toml")}
    assert shipped and not {name for name in shipped if f"`{name}`" not in page}


def test_checks_on_github_call_the_makefile_alone() -> None:
    steps = re.findall(r"^ *(?:- )?run: (.*)$", (ROOT / ".github" / "workflows" / "ci.yml").read_text(), re.MULTILINE)
    assert len(steps) > 3 and all(re.fullmatch(r"make [a-z-]+( [A-Z]+=\S+)*", step) for step in steps)


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / ".github" / "workflows" / "ci.yml"]:
        for words in re.findall(r"(?:^|run: )make ((?:[a-z-]+ ?)+)", page.read_text(), re.MULTILINE):
            assert set(words.split()) <= targets, f"{page.name}: make {words}"
