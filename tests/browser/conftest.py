"""A real Chromium, and what goes wrong in it: messages of its console, what it was refused, what it could not load."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright import sync_api as playwright

from .filled import Filled, filled_portal

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SIZES = {"desktop": (1280, 850), "phone": (375, 740)}
PATIENCE_MS = 20_000
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage"]
"""Of a container: its root may not make a sandbox, and its shared memory is small."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a browser where there is none."""
    if CHROMIUM is None:
        missing = pytest.mark.skip(reason="no Chromium is installed (Debian: chromium)")
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(missing)


@dataclass
class Tab:
    """A page in a browser, and what it complained about."""

    page: playwright.Page
    address: str
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("console", self._note)
        self.page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        self.page.on("requestfailed", self._failed)
        self.page.on("request", self._asked)

    def _note(self, message: playwright.ConsoleMessage) -> None:
        # A status that a page shows is no fault of it, nor is a part of it that was on its way when it was left.
        harmless = ("Failed to load resource", "htmx:sendAbort", "htmx:afterRequest")
        if message.type in ("error", "warning") and not any(text in message.text for text in harmless):
            self.complaints.append(f"{message.type}: {message.text}")

    def _failed(self, request: playwright.Request) -> None:
        # A stream, and what is not wanted any more when the next page is shown, is broken off by the browser itself.
        if request.failure != "net::ERR_ABORTED":
            self.complaints.append(f"failed: {request.url} {request.failure}")

    def _asked(self, request: playwright.Request) -> None:
        if not request.url.startswith((self.address, "data:", "blob:", "about:")):
            self.complaints.append(f"another host: {request.url}")

    def go(self, path: str) -> None:
        self.page.goto(f"{self.address}{path}", wait_until="load")

    def sign_in(self, token: str) -> None:
        self.go("/sign-in")
        self.page.locator("#token").fill(token)
        self.page.locator("button.big").click()
        self.page.wait_for_url(f"{self.address}/")

    @property
    def heading(self) -> str:
        return self.page.locator("h1").inner_text()


@pytest.fixture(scope="module")
def chromium() -> Iterator[playwright.Browser]:
    with (
        playwright.sync_playwright() as started,
        closing(started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)) as browser,
    ):
        yield browser


@pytest.fixture(scope="module")
def filled() -> Iterator[Filled]:
    """A portal that has something of everything, shared by the tests of a file."""
    with tempfile.TemporaryDirectory() as folder, filled_portal(Path(folder) / "home") as portal:
        yield portal


MakeTab = Callable[..., Tab]


@pytest.fixture
def make_tab(chromium: playwright.Browser) -> Iterator[MakeTab]:
    """Open tabs, each of a person of its own."""
    contexts = []

    def make(
        address: str, *, size: str = "desktop", scheme: str = "light", locale: str = "en-US", **more: object
    ) -> Tab:
        width, height = SIZES[size]
        context = chromium.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, locale=locale, **more
        )
        contexts.append(context)
        return Tab(context.new_page(), address)

    yield make
    for context in contexts:
        context.close()
