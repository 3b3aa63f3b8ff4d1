"""Pictures of every page, in both themes and both widths: ``make pictures`` writes them to ``docs/pictures/``."""

from __future__ import annotations

import argparse
import io
import tempfile
from contextlib import closing
from pathlib import Path

from PIL import Image
from playwright import sync_api as playwright
from rich.progress import track

from .conftest import CHROMIUM, FLAGS, SIZES, Tab
from .filled import filled_portal, views

FOLDER = Path(__file__).parents[2] / "docs" / "pictures"
SETTLED_MS = 700
"""Until charts are drawn and quotes are there."""
MOST_HEIGHT = 3_000
"""Of a picture; what is below, on a long page, is more of the same."""
QUALITY = 72


def main() -> None:
    """Take a picture of each page, or of those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the pictures go (default: %(default)s)")
    parser.add_argument("--pages", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--png", action="store_true", help="as PNG instead of WebP")
    chosen = parser.parse_args()
    if CHROMIUM is None:
        parser.error("no Chromium is installed (Debian: chromium)")
    chosen.folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as home,
        filled_portal(Path(home) / "home") as portal,
        playwright.sync_playwright() as started,
        closing(started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)) as browser,
    ):
        for size, (width, height) in SIZES.items():
            for scheme in ("light", "dark"):
                looks = {"viewport": {"width": width, "height": height}, "color_scheme": scheme, "locale": "en-US"}
                tab = Tab(browser.new_context(**looks).new_page(), portal.address)
                for name in track(views(portal, tab, chosen.pages or ()), f"{size}, {scheme}", total=None):
                    picture = taken(tab)
                    suffix = "png" if chosen.png else "webp"
                    picture.save(chosen.folder / f"{name}-{size}-{scheme}.{suffix}", quality=QUALITY, method=6)


def taken(tab: Tab) -> Image.Image:
    """Return a picture of the whole page that is shown; parts that load once they are seen are loaded before."""
    for frame in tab.page.locator("iframe:visible").all():
        frame.scroll_into_view_if_needed()
        tab.page.wait_for_timeout(SETTLED_MS)
    tab.page.wait_for_timeout(SETTLED_MS)
    whole = Image.open(io.BytesIO(tab.page.screenshot(full_page=True))).convert("RGB")
    return whole.crop((0, 0, whole.width, min(whole.height, MOST_HEIGHT)))


if __name__ == "__main__":
    main()
