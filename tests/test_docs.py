"""What the pages point at is there: files, headings, option files and commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from hat_plugin.cli import build_parser

REPOSITORY = Path(__file__).resolve().parent.parent
NAMES = [
    'README.md',
    'CONTRIBUTING.md',
    'datasets/README.md',
    *(f'docs/{path.name}' for path in REPOSITORY.glob('docs/*.md')),
]
PAGES = [REPOSITORY / name for name in NAMES]


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of a page's headings."""
    titles = re.findall(r'^#+ (.+)$', page.read_text(encoding='utf-8'), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', title.strip().lower()).replace(' ', '-') for title in titles}


@pytest.mark.parametrize('page', PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r'\]\(([^)\s]+)\)', page.read_text(encoding='utf-8')):
        file, _, anchor = target.partition('#')
        if '://' in target:
            continue
        found = page.parent / file if file else page
        assert found.exists(), target
        assert not anchor or found.suffix != '.md' or anchor in anchors(found), target


def commands(page: Path) -> list[list[str]]:
    """Arguments of all `basicsr` calls in a page's blocks of commands."""
    found = []
    for block in re.findall(r'```(?:bash|sh)\n(.*?)```', page.read_text(encoding='utf-8'), re.DOTALL):
        for line in block.replace('\\\n', ' ').splitlines():
            match = re.match(r'(?:srun .*?)?\bbasicsr (.*)', line)
            found += [shlex.split(match[1], comments=True)] if match else []
    return found


@pytest.mark.parametrize('page', PAGES, ids=NAMES)
def test_commands_are_understood(page: Path) -> None:
    for arguments in commands(page):
        build_parser(arguments[0]).parse_args(arguments)  # else it exits


@pytest.mark.parametrize('page', PAGES, ids=NAMES)
def test_option_files_that_are_named_exist(page: Path) -> None:
    for file in re.findall(r'\boptions/[\w\-]+\.yml', page.read_text(encoding='utf-8')):
        assert (REPOSITORY / file).is_file() or 'NETWORK' in file, file  # which stands for any


def test_there_are_commands() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 30
