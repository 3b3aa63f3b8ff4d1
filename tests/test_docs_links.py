"""Every link of the documentation leads somewhere, and so does every page that the code names."""

from __future__ import annotations

import re
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
CODE_FOLDERS = ("factory", "serve", "tests", "bench", "deploy", "recipes", "feature_repo", ".ci")

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
NAMED_PAGE = re.compile(r"\bdocs/[\w./-]*\w")
NAMED_FILE = re.compile(rf"`((?:{'|'.join(CODE_FOLDERS)}|docs)/[\w./-]+)`")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """Return a page without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """Yield the file and the anchor of each relative link of a page."""
    for match in LINK.finditer(prose(page)):
        target = match[1] or match[2]
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield ((page.parent / path).resolve() if path else page), anchor


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    broken = [f"{path}#{anchor}" for path, anchor in links(page) if not path.exists()]
    broken += [
        f"{path}#{anchor}"
        for path, anchor in links(page)
        if anchor and path.suffix == ".md" and path.exists() and anchor not in anchors(path)
    ]
    assert broken == []


def test_every_page_is_reached_from_the_index() -> None:
    reached, waiting = set(), [DOCS / "index.md"]
    while waiting:
        page = waiting.pop()
        if page not in reached:
            reached.add(page)
            waiting += [path for path, _ in links(page) if path.suffix == ".md" and path.exists()]
    assert sorted(map(name, set(PAGES) - reached - {ROOT / "CHANGELOG.md"})) == []


def code_files() -> Iterator[Path]:
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    files = [ROOT / line for line in tracked.stdout.split("\0") if line]
    if tracked.returncode:  # not a checkout
        files = [path for folder in CODE_FOLDERS for path in (ROOT / folder).rglob("*")]
    for path in files:
        if path.suffix in (".py", ".yaml", ".yml", ".toml", ".sh", ".md", "") and path.is_file():
            yield path


def test_every_page_that_is_named_exists() -> None:
    named = {
        (name(path), page)
        for path in code_files()
        for page in NAMED_PAGE.findall(path.read_text(encoding="utf-8", errors="ignore"))
    }
    assert {page for _, page in named} >= {"docs/serving.md", "docs/reference.md"}
    assert sorted((where, page) for where, page in named if not (ROOT / page).exists()) == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_file_that_is_named_exists(page: Path) -> None:
    patterns = ("NNNN", "/NAME")
    named = {path for path in NAMED_FILE.findall(prose(page)) if not any(p in path for p in patterns)}
    assert sorted(path for path in named if not (ROOT / path).exists()) == []


@pytest.mark.parametrize("picture", sorted(DOCS.rglob("*.svg")), ids=name)
def test_pictures_are_described_and_fit_light_and_dark(picture: Path) -> None:
    root = ET.parse(picture).getroot()
    tags = {child.tag.rpartition("}")[2] for child in root.iter()}
    assert {"title", "desc"} <= tags
    assert "prefers-color-scheme: dark" in picture.read_text()
    assert "script" not in tags
