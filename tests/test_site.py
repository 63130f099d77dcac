"""The site, built and looked at in headless Chromium: both schemes, on a phone."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

import pytest
from typer.testing import CliRunner

import mixerzoo
from mixerzoo.cli import COMMANDS, app
from own import OWN

DOCS = Path(__file__).parents[1] / "docs"
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
NEEDED = ("sphinx", "myst_nb", "ipykernel", "furo", "sphinx_design", "sphinx_copybutton", "pybtex")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not all(map(find_spec, NEEDED)), reason="needs the extra `docs`"),
]
in_a_browser = pytest.mark.skipif(
    not (BROWSER and DRIVER and find_spec("selenium")), reason="needs chromium, chromedriver and selenium"
)
#: What is too pale: text, its contrast with what is behind it, and the least that WCAG AA takes.
PALE = """
const channel = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
const light = ([r, g, b]) => 0.2126 * channel(r / 255) + 0.7152 * channel(g / 255) + 0.0722 * channel(b / 255);
const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
const colour = text => {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
  return [r, g, b, a / 255];
};
const over = ([r, g, b, a], below) => [r, g, b].map((c, i) => c * a + below[i] * (1 - a));
const behind = element => {
  const chain = [];
  for (let e = element; e; e = e.parentElement) chain.unshift(colour(getComputedStyle(e).backgroundColor));
  return chain.reduce((below, own) => over(own, below), [255, 255, 255]);
};
const pale = [];
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (texts.nextNode()) {
  const words = texts.currentNode.data.trim(), element = texts.currentNode.parentElement;
  const box = element.getBoundingClientRect(), style = getComputedStyle(element);
  if (!words || !box.width || !box.height || style.visibility !== 'visible' ||
    ['SCRIPT', 'STYLE', 'TITLE', 'desc', 'title'].includes(element.tagName) ||
    !element.checkVisibility({opacityProperty: true})) continue;
  const below = behind(element), ink = colour(element instanceof SVGElement ? style.fill : style.color);
  const [high, low] = [light(over(ink, below)), light(below)].sort((a, b) => b - a);
  const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
  const contrast = (high + 0.05) / (low + 0.05), least = large ? 3 : 4.5;
  if (contrast < least) pale.push([words.slice(0, 40), Number(contrast.toFixed(2)), least]);
}
return pale;
"""


class Links(HTMLParser):
    """What a page refers to, and what can be referred to in it."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.targets: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.anchors.add(found.get("id") or "")
        self.targets.add(found.get("href" if tag in ("a", "link") else "src") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place: Path = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", tmp_path_factory.mktemp("trees")]
    done = subprocess.run([*command, DOCS, place], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(address: str) -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for argument in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "window-size=1280,900"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER)))
    opened.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["clipboardReadWrite"], "origin": address})
    try:
        yield opened
    finally:
        opened.quit()


def pages(site: Path) -> list[str]:
    return sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html") if "_static" not in path.parts)


def look(browser: Any, scheme: str, *, phone: bool = False) -> None:
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    if phone:
        size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def test_the_pages_build_without_a_warning_and_need_no_other_host(site: Path) -> None:
    assert {"index.html", "mixers.html", "api/mixers.html", "references.html"} <= set(pages(site))
    for page in pages(site):
        text = (site / page).read_text(encoding="utf-8")
        assert '<script src="http' not in text
        assert 'rel="stylesheet" href="http' not in text


def test_links_inside_the_site_lead_somewhere(site: Path) -> None:
    found = {page: Links(site / page) for page in pages(site)}
    broken = []
    for page, links in found.items():
        for target in links.targets:
            address, anchor = urldefrag(target)
            if ":" in address or target in ("", "#"):
                continue
            path = unquote(urljoin(f"/{page}", address)).lstrip("/").partition("?")[0] or "index.html"
            if not (site / path).is_file() or (anchor and path in found and unquote(anchor) not in found[path].anchors):
                broken.append((page, target))
    assert broken == []


def test_every_mixer_has_a_page_that_shows_it(site: Path) -> None:
    gallery = (site / "mixers.html").read_text(encoding="utf-8")
    for name in OWN:
        text = (site / "mixers" / f"{name}.html").read_text(encoding="utf-8")
        assert "<svg" in text, name
        assert f'href="mixers/{name}.html" data-family' in gallery, name
        assert ("<math" in text) == (name != "compose"), name
        assert "@misc" in text or not mixerzoo.load_registry().get(name).mixer.card.paper, name


@in_a_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_on_a_phone(browser: Any, address: str, site: Path, scheme: str) -> None:
    look(browser, scheme, phone=True)
    wrong: dict[str, Any] = {}
    for page in pages(site):
        browser.get(f"{address}/{page}")
        found = {
            "console": browser.get_log("browser"),
            "width": browser.execute_script("return document.documentElement.scrollWidth") > 390,
            "images": browser.execute_script(
                "return [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src)"
            ),
            "pale": browser.execute_script(PALE),
        }
        if any(found.values()):
            wrong[page] = {what: value for what, value in found.items() if value}
    assert wrong == {}


def test_every_command_has_a_page_with_what_it_prints_and_all_its_options(site: Path) -> None:
    for name in COMMANDS:
        page = Links(site / "commands" / f"{name}.html")
        text = (site / "commands" / f"{name}.html").read_text(encoding="utf-8")
        assert '<div class="highlight-console' in text
        shown = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"}).stdout
        for option in re.findall(r"^  (?:-\w, )?(--[\w-]+)", shown, re.MULTILINE):
            assert f"cmdoption-mixerzoo-{name}{option[1:]}" in page.anchors, (name, option)


def test_tutorials_show_what_their_cells_put_out(site: Path) -> None:
    pages_of = {path.stem: path.read_text(encoding="utf-8") for path in (site / "tutorials").glob("*.html")}
    assert pages_of.keys() == {path.stem for path in (DOCS / "tutorials").glob("*.md")}
    for text in pages_of.values():
        assert '<div class="output' in text
    # A row of a table is in one piece.
    assert re.search(r"Decoder parameters +3,148,608 +3,148,608 +0 %\n", pages_of["first-steps"])
    for name in ("first-steps", "compare", "inspect", "pretrained"):
        assert re.search(r'<img [^>]*src="[^"]*_images/', pages_of[name]), name


@in_a_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_is_too_pale_is_found(browser: Any, address: str, scheme: str) -> None:
    look(browser, scheme, phone=True)
    browser.get(f"{address}/mixers/cla.html")
    browser.execute_script(
        "const title = document.querySelector('h1');"
        "title.firstChild.data = 'grey'; title.style = 'color: #888; background: #999'"
    )
    browser.execute_script("document.querySelector('.mixer-diagram text').style = 'fill: #8884'")
    assert [words for words, _, _ in browser.execute_script(PALE)] == ["grey", "embedding"]


@in_a_browser
@pytest.mark.parametrize(("word", "mixer"), [("Kronecker", "krom_hc"), ("gated share", "smear")])
def test_search_finds_a_mixer_by_words_of_its_summary(browser: Any, address: str, word: str, mixer: str) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    look(browser, "light")
    browser.get(f"{address}/search.html?q={word.replace(' ', '+')}")
    done = "return /finished|did not match/.test(document.querySelector('#search-results').innerText)"
    WebDriverWait(browser, 20).until(lambda opened: opened.execute_script(done))
    links = browser.execute_script("return [...document.querySelectorAll('#search-results li a')].map(a => a.href)")
    assert any(f"mixers/{mixer}.html" in link for link in links)


@in_a_browser
def test_the_copy_button_copies_the_recipe(browser: Any, address: str) -> None:
    look(browser, "light")
    browser.get(f"{address}/mixers/depth_attention.html")
    button = browser.find_elements("css selector", ".highlight-yaml button.copybtn")[-1]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", button)
    # A click of the user, without whom nothing may be copied.
    button.click()
    copied = browser.execute_async_script(
        "const done = arguments[0]; setTimeout(() => navigator.clipboard.readText().then(done, done), 300)"
    )
    assert copied.strip() == "mixer:\n  name: depth_attention\n  stride: 2"


@in_a_browser
def test_the_gallery_is_filtered_by_family_and_by_cost(browser: Any, address: str) -> None:
    look(browser, "light")
    browser.get(f"{address}/mixers.html")

    def shown() -> set[str]:
        visible = (
            "return [...document.querySelectorAll('.mixer-card')].filter(e => e.checkVisibility())"
            ".map(e => e.querySelector('strong').textContent)"
        )
        return set(browser.execute_script(visible))

    assert shown() == set(OWN)
    browser.execute_script("document.querySelector('#family-cache').click()")
    assert shown() == {"svformer", "cla", "yoco", "fusedkv_lite", "fusedkv"}
    browser.execute_script("document.querySelector('#cost-parameters').click()")
    assert shown() == {"svformer", "cla", "yoco", "fusedkv_lite"}
    browser.execute_script("document.querySelector('#family-all').click()")
    assert {"residual", "depth_attention", "cla"} <= shown()
    assert "fusedkv" not in shown()
