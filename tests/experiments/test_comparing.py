"""A comparison as a whole: run, gone on with, refused, reported."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

import mixerzoo
from mixerzoo.errors import MixerzooError, RunError
from mixerzoo.experiments import comparing, runner, writing
from mixerzoo.experiments.figures import method
from mixerzoo.model import default_device
from mixerzoo.runs import RunDirectory
from mixerzoo.training import train
from mixerzoo.training.stopwatch import Stopwatch
from runs import tiny_recipe
from tiny_comparison import compare


def in_this_process(cells, directory, workers, watcher, failed):
    """As `run_cells`, without the seconds that a process takes to begin."""
    watcher.planned(cells, [cell for cell in cells if directory.run(cell).finished])
    for cell in cells:
        place = directory.path / cell.place
        if directory.run(cell).finished:
            continue
        watcher.began(cell)
        try:
            watcher.ended(cell, None, train(cell.recipe, place, resume=place.exists()))
        except MixerzooError as error:
            failed[cell] = str(error)
            watcher.ended(cell, str(error), None)


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparing, "run_cells", in_this_process)
        patch.setenv("MIXERZOO_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        yield


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Two names for one mixer, one seed more than a difference takes at the least."""
    out = tmp_path_factory.mktemp("compare") / "done"
    result = compare(out, "--mixers", "residual, again: residual", "--seeds", "3", "--threads", "1")
    assert result.exit_code == 0, result.output
    return out, result


def test_a_mixer_under_two_names_shows_no_difference(done):
    out, result = done
    rows = json.loads((out / "results.json").read_text())["settings"][0]["mixers"]
    assert rows[1]["difference"]["verdict"] == "no difference shown"
    assert rows[1]["difference"]["mean"] == 0
    assert "No difference to residual shown: again." in result.output


def test_every_run_is_an_ordinary_run_directory(done):
    out, _ = done
    results = json.loads((out / "results.json").read_text())
    assert results["finished"] == results["runs"] == 6
    for row in results["settings"][0]["mixers"]:
        for run in row["runs"]:
            own = RunDirectory(out / run["directory"])
            assert own.finished_recipe().seed == run["seed"]
            assert own.result()["bits_per_byte"] == run["result"]["bits_per_byte"]


def test_nothing_finished_is_repeated_and_a_larger_grid_adds_runs(done, tmp_path):
    out = shutil.copytree(done[0], tmp_path / "grown")
    before = {path: path.stat().st_mtime_ns for path in out.glob("cells/**/result.json")}
    assert len(before) == 6
    result = compare(out, "--mixers", "residual, again: residual, unet", "--seeds", "1")
    assert result.exit_code == 0, result.output
    after = {path: path.stat().st_mtime_ns for path in out.glob("cells/**/result.json")}
    assert {path: after[path] for path in before} == before
    assert len(after) == 7
    assert "Fewer than three seeds" in result.output


def test_a_half_run_is_gone_on_with_and_a_broken_one_does_not_stop_the_others(done, tmp_path):
    out = shutil.copytree(done[0], tmp_path / "half")
    unfinished = out / "cells" / "residual" / "seed-1"
    bits = json.loads((unfinished / "result.json").read_text())["bits_per_byte"]
    (unfinished / "result.json").unlink()
    broken = out / "cells" / "again" / "seed-2"
    shutil.rmtree(broken)
    broken.mkdir()
    (broken / "mine.txt").write_text("")
    result = compare(out, "--mixers", "residual, again: residual", "--seeds", "3")
    assert result.exit_code == 1, result.output
    assert "again, seed 2: " in result.output
    assert "does not hold a run" in result.output
    assert (broken / "mine.txt").exists()
    assert json.loads((unfinished / "result.json").read_text())["bits_per_byte"] == bits
    assert "does not hold a run" in (out / "report.html").read_text()


@pytest.mark.slow
def test_runs_in_processes_of_their_own_give_the_same_bits(done, tmp_path, monkeypatch):
    monkeypatch.setattr(comparing, "run_cells", runner.run_cells)
    out = tmp_path / "apart"
    broken = out / "cells" / "unet" / "seed-0"
    broken.mkdir(parents=True)
    (broken / "mine.txt").write_text("")
    shutil.copy(done[0] / "comparison.json", out / "comparison.json")
    result = compare(out, "--mixers", "residual, unet", "--seeds", "1", "--jobs", "2")
    assert result.exit_code == 1, result.output
    assert "unet, seed 0: " in result.output
    assert "does not hold a run" in result.output
    weights = Path("cells", "residual", "seed-0", "model.safetensors")
    assert (out / weights).read_bytes() == (done[0] / weights).read_bytes()


def test_another_recipe_is_refused_and_nothing_is_touched(done):
    out, _ = done
    before = sorted((path, path.stat().st_mtime_ns) for path in out.rglob("*"))
    result = compare(out, "--mixers", "residual", "model.num_layers=3")
    assert result.exit_code == 2
    assert "They differ in: model.num_layers" in result.output
    result = compare(out, "--mixers", "residual", "--threads", "7")
    assert result.exit_code == 2
    assert sorted((path, path.stat().st_mtime_ns) for path in out.rglob("*") if path.name != "compare.lock") == [
        each for each in before if each[0].name != "compare.lock"
    ]


def test_a_directory_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("")
    result = compare(tmp_path, "--mixers", "residual")
    assert result.exit_code == 2
    assert "holds no comparison" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_bad_input_writes_nothing(tmp_path):
    for flags in (["--mixers", "residul"], ["--mixers", "residual", "--vary", "train.lr=1"]):
        assert compare(tmp_path / "new", *flags).exit_code == 2
    assert not (tmp_path / "new").exists()


def test_a_full_disk_ends_in_words(tmp_path, monkeypatch):
    monkeypatch.setattr(comparing, "run_cells", runner.run_cells)

    def full(path, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(runner.files, "write_text", full)
    result = compare(tmp_path / "new", "--mixers", "residual", "--seeds", "1")
    assert result.exit_code == 2
    assert "No space left on device" in result.output
    assert "Traceback" not in result.output


TUNED = ("--mixers", "residual, mudd", "--seeds", "1", "--tune", "train.learning_rate=1e-3,1e-2", "--equal", "flops")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    out = tmp_path_factory.mktemp("compare") / "tuned"
    result = compare(out, *TUNED, "train.steps=12", "--jobs", "2")
    assert result.exit_code == 0, result.output
    return out


def test_tuning_uses_seeds_of_its_own_and_equal_flops_change_the_steps(tuned):
    found = json.loads((tuned / "results.json").read_text())
    assert found["tuning_seeds"] == [1000]
    for each, row in zip(found["tuning"], found["settings"][0]["mixers"], strict=True):
        best = min(each["trials"], key=lambda trial: trial["bits_per_byte"])
        assert each["chosen"] == best["values"] == row["tuned"]
        assert each["at_the_edge"] == ["train.learning_rate"]
        assert [run["seed"] for run in row["runs"]] == [0]
    base, mudd = found["settings"][0]["mixers"]
    assert mudd["steps"] == round(12 * base["flops_per_token"] / mudd["flops_per_token"]) < 12
    assert "at the edge of the grid" in (tuned / "report.md").read_text()


def test_stopped_while_it_tunes_it_reports_what_is_finished_and_what_failed(tuned, tmp_path, monkeypatch):
    out = shutil.copytree(tuned, tmp_path / "stopped")
    before = json.loads((out / "results.json").read_text())

    def stopped(cells, directory, workers, watcher, failed):
        (open_cell,) = (cell for cell in cells if not directory.run(cell).finished)
        failed[open_cell] = "as an example"
        raise KeyboardInterrupt

    trials = before["tuning"][0]["trials"]
    worst = max(trials, key=lambda trial: trial["bits_per_byte"])
    (unfinished,) = out.glob(f"cells/residual/*={worst['values']['train.learning_rate']}/**/seed-1000/result.json")
    unfinished.unlink()
    monkeypatch.setattr(comparing, "run_cells", stopped)
    result = compare(out, *TUNED, "train.steps=12", "--jobs", "2")
    assert result.exit_code == 130, result.output
    after = json.loads((out / "results.json").read_text())
    assert after["settings"] == before["settings"]
    assert after["tuning"][1] == before["tuning"][1]
    assert after["tuning"][0]["trials"][trials.index(worst)]["bits_per_byte"] is None
    assert [each["error"] for each in after["failures"]] == ["as an example"]
    assert "chosen among 1 of 2: the others are not finished" in (out / "report.md").read_text()


def test_equal_seconds_are_those_that_are_measured_first(tmp_path):
    out = tmp_path / "seconds"
    result = compare(out, "--mixers", "residual, unet", "--seeds", "1", "--equal", "seconds", "train.steps=4")
    assert result.exit_code == 0, result.output
    base, unet = json.loads((out / "results.json").read_text())["settings"][0]["mixers"]
    speeds = [
        json.loads((out / "cells" / label / "speed/seed-0/result.json").read_text())["tokens_per_second"]
        for label in ("residual", "unet")
    ]
    assert base["steps"] == 4
    assert unet["steps"] == max(1, round(4 * speeds[1] / speeds[0]))


def test_equal_seconds_of_runs_too_short_to_be_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(Stopwatch, "steps_per_second", property(lambda self: None))
    more = ("--mixers", "residual, unet", "--seeds", "1", "--equal", "seconds", "train.steps=2")
    result = compare(tmp_path / "seconds", *more)
    assert result.exit_code == 1
    assert "train.steps 2: too few to say how fast a step is" in " ".join(result.output.split())
    # The baseline's runs go on, and so they do of every other mixer that was measured.
    found = json.loads((tmp_path / "seconds" / "results.json").read_text())
    assert [failure["title"].split(",")[0] for failure in found["failures"]] == ["residual", "unet"]
    assert found["settings"][0]["mixers"][0]["bits_per_byte"] is not None


def test_what_ended_a_comparison_is_told_and_not_that_its_report_could_not_be_written(done, tmp_path, monkeypatch):
    def full(*arguments):
        raise RunError("the disk is full")

    def unwritten(found, directory):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = shutil.copytree(done[0], tmp_path / "full")
    monkeypatch.setattr(comparing, "run_cells", full)
    monkeypatch.setattr(comparing, "write_reports", unwritten)
    result = compare(out, "--mixers", "residual", "--seeds", "1")
    assert result.exit_code == 2
    assert "Error: the disk is full" in result.output
    assert "the report could not be written: [Errno 28] No space left on device" in result.output


def test_a_run_of_another_mixer_under_the_same_label_is_refused_and_the_report_stays(done):
    out, _ = done
    before = (out / "report.html").stat().st_mtime_ns
    result = compare(out, "--mixers", "residual, again: unet", "--seeds", "3")
    assert result.exit_code == 2, result.output
    assert (out / "report.html").stat().st_mtime_ns == before


def test_the_report_has_every_figure_and_needs_nothing_else(done):
    page = (done[0] / "report.html").read_text()
    assert not re.search(r'(?:src|href)="(?!#|data:)|@import|url\((?!#)|<script', page)
    assert page.count("<figure>") == page.count("<svg") >= 5
    names = re.findall(r'\sid="([^"]+)"', page)
    assert len(set(names)) == len(names)
    rows = json.loads((done[0] / "results.json").read_text())["settings"][0]["mixers"]
    shown = re.findall(r'<td data-key="bits_per_byte" data-value="([^"]+)"', page)
    assert [float(each) for each in shown] == [row["bits_per_byte"]["mean"] for row in rows]


def test_the_peak_of_memory_has_a_unit_in_every_form(done):
    results = json.loads((done[0] / "results.json").read_text())
    for row in results["settings"][0]["mixers"]:
        row["peak_memory_bytes"] = 1234 * 2**20
    for form in (writing.text(results), writing.report_page(results)):
        assert "peak memory, MiB" in form
        assert "1,234" in form
        assert "1,293,942,784" not in form


def test_the_report_shows_learned_weights_of_the_first_run_and_says_where_there_are_none(tmp_path):
    out = tmp_path / "weighs"
    mixers = ("--mixers", "residual, denseformer", "--seeds", "1", "--threads", "1")
    assert compare(out, *mixers).exit_code == 0
    residual, dense = json.loads((out / "results.json").read_text())["settings"][0]["mixers"]
    assert residual["weights"]["sites"] == []
    assert dense["weights"]["directory"] == dense["runs"][0]["directory"]
    learned = mixerzoo.load_checkpoint(out / dense["runs"][0]["directory"]).mixer.weights
    for site, weights in zip(dense["weights"]["sites"], learned.values(), strict=True):
        assert site["mean"] == pytest.approx(weights.tolist(), abs=1e-6)
    page = (out / "report.html").read_text()
    assert "residual shows no weights" in page
    assert "0 mlp output reads embedding: " in page
    kept = out / "cells" / "denseformer" / "seed-0.weights.json"
    before = kept.stat().st_mtime_ns
    assert compare(out, *mixers).exit_code == 0
    assert kept.stat().st_mtime_ns == before
    # Of another run that was there, it says nothing.
    kept.write_text(kept.read_text().replace('"run_id": "', '"run_id": "x'))
    assert compare(out, *mixers).exit_code == 0
    assert '"run_id": "x' not in kept.read_text()


def test_a_mixer_that_fails_to_show_its_weights_is_reported(tmp_path, monkeypatch):
    def fails(self, state):
        raise ValueError("not mine")

    monkeypatch.setattr(type(mixerzoo.build(tiny_recipe("mixer={name: unet}")).mixer), "final_weights", fails)
    result = compare(tmp_path / "new", "--mixers", "unet", "--seeds", "1")
    assert result.exit_code == 0, result.output
    assert (
        "unet: its weights could not be looked at: ValueError: not mine" in (tmp_path / "new/report.html").read_text()
    )


def test_other_data_are_refused_and_nothing_is_touched(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {number} of a text\n" for number in range(2000)))
    out = tmp_path / "new"
    more = tmp_path / "more.txt"
    more.write_text("and more text\n" * 300)
    grid = ("--mixers", "residual", "--seeds", "1", f"data.source={{name: text, paths: [{text}, {more}]}}")
    assert compare(out, *grid).exit_code == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != "compare.lock"}
    text.write_text(text.read_text() + "one line more\n")
    result = compare(out, *grid)
    assert result.exit_code == 2
    assert "the data changed" in result.output
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != "compare.lock"} == before


@pytest.mark.parametrize("more", [(), ("--dry-run",)], ids=["runs", "dry"])
@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cpu,nowhere", "meta", "cpu,cpu"])
def test_a_device_that_is_not_here_is_an_error(tmp_path, device, more):
    result = compare(tmp_path / "new", "--mixers", "residual", "--device", device, *more)
    assert result.exit_code == 2, result.output
    assert "Error:" in result.output
    assert not (tmp_path / "new").exists()


def test_another_kind_of_device_is_refused_and_a_directory_of_before_goes_on(done, tmp_path):
    out = shutil.copytree(done[0], tmp_path / "elsewhere")
    record = json.loads((out / "comparison.json").read_text())
    assert record["device"] == default_device()
    grid = ("--mixers", "residual", "--seeds", "1", "--device", "cpu")
    (out / "comparison.json").write_text(json.dumps(record | {"device": "cuda"}))
    result = compare(out, *grid)
    assert result.exit_code == 2
    assert "was begun on cuda, and on cpu the same run gives other bits; say --device cuda" in result.output
    del record["device"]
    (out / "comparison.json").write_text(json.dumps(record))
    assert compare(out, *grid).exit_code == 0
    assert json.loads((out / "comparison.json").read_text())["device"] == "cpu"


def test_the_method_says_that_several_tables_are_not_corrected_for(done):
    found = json.loads((done[0] / "results.json").read_text())
    assert "grows with their number" not in method(found)
    assert "for each table; there are 2" in method(found | {"settings": found["settings"] * 2})


def test_the_table_of_runs(done):
    with (done[0] / "results.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["label"], row["seed"], row["status"]) for row in rows] == [
        (label, str(seed), "finished") for label in ("residual", "again") for seed in range(3)
    ]


@pytest.mark.parametrize("backend", ["xformers", "flash", "flex"])
def test_attention_that_cannot_train_here_is_refused_before_anything_is_written(backend, tmp_path):
    out = tmp_path / "out"
    result = compare(out, "--mixers", "residual", "--seeds", "2", f"model.attention_backend={backend}")
    assert result.exit_code == 2
    assert f"'{backend}'" in result.stderr
    assert "sdpa" in result.stderr
    assert not out.exists()
