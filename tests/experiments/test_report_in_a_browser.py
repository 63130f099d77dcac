"""The report in headless Chromium: nothing on the console, every figure drawn, its figures those of results.json."""

from __future__ import annotations

import json
import math
import shutil
from importlib.util import find_spec

import pytest

from mixerzoo.experiments import report_page
from mixerzoo.experiments.figures import COLUMNS
from mixerzoo.experiments.statistics import differences, estimate

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (BROWSER and DRIVER and find_spec("selenium")), reason="needs chromium, chromedriver and selenium"
    ),
]


SITES = [
    {"name": "1 attention", "sources": ["embedding", "0 mlp"], "mean": [0.75, 0.25], "spread": [0.1, 0.1]},
    {"name": "head", "sources": ["embedding", "0 mlp", "1 mlp"], "mean": [0.5, -0.5, 1], "spread": [0, 0, 0]},
]


def made_up() -> dict:
    """Results of three mixers, with everything that a report can show."""
    bits = {"residual": (2.40, 2.41, 2.42), "attn_res": (2.30, 2.32, 2.31), "a <b> & c": (2.40, 2.43, 2.41)}
    found = differences({label: dict(enumerate(each)) for label, each in bits.items()}, "residual")
    rows = []
    for number, (label, own) in enumerate(bits.items()):
        curve = [
            {
                "step": s,
                "tokens": s * 100,
                "flops": s * 1e9,
                "seconds": s / 9,
                "loss": 5 / s,
                "low": 4 / s,
                "high": 6 / s,
            }
            for s in range(1, 20)
        ]
        rows.append(
            {
                "label": label,
                "bits_per_byte": vars(estimate(own)),
                "difference": vars(found[label]) if label in found else None,
                "runs": [{"seed": seed, "result": {"bits_per_byte": each}} for seed, each in enumerate(own)],
                "curve": curve,
                "on_frontier": {"cache": number < 2, "seconds": number < 1},
                "picture": "0 ● ·",
                "weights": {"num_tokens": 64, "error": None, "sites": SITES if number else []},
                **{column.key: 1000 * (number + 1) for column in COLUMNS[2:]},
            }
        )
    trials = [{"values": {"train.learning_rate": rate}, "bits_per_byte": 2 + rate} for rate in (1e-3, 3e-3, 1e-2)]
    tuning = [
        {"label": label, "vary": {}, "trials": trials, "chosen": trials[0]["values"], "at_the_edge": []}
        for label in bits
    ]
    return {
        "source": "made-up.yaml", "baseline": "residual", "seeds": [0, 1, 2], "tuning_seeds": [1000], "equal": "steps",
        "level": 0.95, "finished": 9, "runs": 9, "failures": [], "settings": [{"vary": {}, "mixers": rows}],
        "tuning": tuning, "recipes": dict.fromkeys(bits, "seed: 0\n"), "command": "mixerzoo compare", "threads": 1,
        "versions": {"mixerzoo": "0"}, "platform": "here",
    }  # fmt: skip


@pytest.fixture(params=["light", "dark"])
def browser(request, tmp_path):
    from selenium import webdriver

    results = made_up()
    (tmp_path / "report.html").write_text(report_page(results), encoding="utf-8")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "window-size=390,900"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        media = {"features": [{"name": "prefers-color-scheme", "value": request.param}]}
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
        opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        opened.get((tmp_path / "report.html").as_uri())
        yield opened, request.param, results
    finally:
        opened.quit()


def test_a_report_on_a_phone(browser):
    opened, scheme, results = browser
    run = opened.execute_script
    assert opened.get_log("browser") == []
    background = run("return getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 28)")
    assert run("return document.documentElement.scrollWidth") <= 390
    boxes = run("return [...document.querySelectorAll('figure svg')].map(s => [s.clientWidth, s.clientHeight])")
    assert len(boxes) == 9
    assert all(width > 300 and height > 80 for width, height in boxes)
    cell = run("const e = document.getElementById('f0-weights1-w1-1'); return [e.textContent.trim(), e.innerHTML]")
    assert cell[0] == "head reads 0 mlp: -0.500 ± 0.000"
    assert "opacity: 0.5" in cell[1]
    assert "residual shows no weights" in run("return document.body.innerText")
    colour = run("return getComputedStyle(document.querySelector('.s1 path')).stroke")
    assert colour == ("rgb(208, 101, 27)" if scheme == "light" else "rgb(242, 155, 92)")
    shown = run("return [...document.querySelectorAll('td[data-value]')].map(e => [e.dataset.key, e.dataset.value])")
    rows = json.loads(json.dumps(results))["settings"][0]["mixers"]
    expected = [(c.key, row[c.key]) for row in rows for c in COLUMNS if row[c.key] is not None]
    assert [key for key, _ in shown] == [key for key, _ in expected]
    for (_, value), (_, figure) in zip(shown, expected, strict=True):
        assert math.isclose(float(value), figure["mean"] if isinstance(figure, dict) else figure)
    run("document.querySelector('#show1').click()")
    assert run("return getComputedStyle(document.querySelector('.s1')).display") == "none"
    assert run("return getComputedStyle(document.querySelector('.s0')).display") != "none"
