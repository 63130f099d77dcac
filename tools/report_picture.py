"""Pictures of the top of a comparison's report, in light and in dark, for README.

python tools/report_picture.py comparisons/first docs/images

It wants mixerzoo[browser,compare], chromium and chromedriver.
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from selenium import webdriver

WIDTH, HEIGHT = 1040, 636
#: Enough for text and lines; a picture of all colours is three times as large.
COLOURS = 64


def picture(page: Path, scheme: str) -> Image.Image:
    """The top of a page as a browser shows it.

    Args:
        page: an HTML file.
        scheme: ``light`` or ``dark``.
    """
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for argument in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "hide-scrollbars"):
        options.add_argument(f"--{argument}")
    browser = webdriver.Chrome(options, webdriver.ChromeService(str(shutil.which("chromedriver"))))
    try:
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(page.resolve().as_uri())
        taken = Image.open(io.BytesIO(browser.get_screenshot_as_png()))
        return taken.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    finally:
        browser.quit()


def main() -> None:
    """Write ``report-light.png`` and ``report-dark.png``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for scheme in ("light", "dark"):
        picture(given.comparison / "report.html", scheme).save(given.out / f"report-{scheme}.png", optimize=True)


if __name__ == "__main__":
    main()
