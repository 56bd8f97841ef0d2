"""The documents say what is: the table of options is the command's, and what they link to is there."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from click.testing import CliRunner

from cog_celery.cli.main import cli

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "docs/*.md", "bench/**/*.md", "workers/**/*.md")
    for path in ROOT.glob(pattern)
)

FENCE = re.compile(r"^(?P<fence>```+).*?^(?P=fence)$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)


def prose(document: Path) -> str:
    """The text without its code, in which brackets are not links."""
    return CODE.sub("", FENCE.sub("", document.read_text()))


def anchors(document: Path) -> set[str]:
    """What a link's fragment may name."""
    headings = HEADING.findall(FENCE.sub("", document.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_table_of_options_is_what_the_command_prints() -> None:
    printed = CliRunner().invoke(cli, ["options", "--markdown"], catch_exceptions=False).output.strip()
    text = (ROOT / "README.md").read_text()
    between = re.search(r"<!-- options: [^>]*-->\n(.*?)\n<!-- /options -->", text, re.DOTALL)
    assert between, "README.md has lost the markers around its table of options"
    assert between[1].strip() == printed, "put what `python -m cog_celery options --markdown` prints into README.md"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_relative_link_leads_somewhere(name: str) -> None:
    document = ROOT / name
    for link in LINK.findall(prose(document)):
        if re.match(r"[a-z][a-z0-9+.-]*:", link):
            continue
        path, _, fragment = unquote(link).partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.is_relative_to(ROOT) and target.exists(), f"{name} links to {link}, which is not there"
        if fragment:
            assert fragment in anchors(target), f"{name} links to {link}: {path or name} has no such heading"


def test_links_are_looked_at() -> None:
    assert {"ARCHITECTURE.md", "CONTRIBUTING.md", "README.md"} <= set(DOCUMENTS)
    assert "docs/path.svg" in LINK.findall(prose(ROOT / "README.md"))
