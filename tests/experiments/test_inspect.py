"""What is shown of a trained mixer is what it does."""

from __future__ import annotations

import json
import re

import pytest
import torch
from typer.testing import CliRunner

import mixerzoo
from mixerzoo.cli import app
from mixerzoo.experiments import inspect_checkpoint
from mixerzoo.training.run import train
from runs import tiny_recipe

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a mixer, once for each."""
    made = {}

    def run(mixer):
        if mixer not in made:
            made[mixer] = tmp_path_factory.mktemp("runs") / "run"
            train(tiny_recipe(f"mixer={mixer}", "train.steps=4", "eval.interval=100"), made[mixer])
        return made[mixer]

    return run


def test_weights_of_a_softmax_over_depth(trained):
    found = inspect_checkpoint(trained("{name: attn_res, dialect: kimi, block_size: 1}"))
    assert found.sites
    assert found.num_tokens == 8 * 32
    for site in found.sites:
        assert sum(site.mean) == pytest.approx(1, abs=1e-5)
        assert len(site.sources) == len(site.mean) == len(site.spread)
        assert "embedding" in site.sources
        assert site.acts_on == "stream"
    assert found.sites[-1].name == "head"
    assert found.sites[-1].sources == (*found.sites[-2].sources, "1 mlp")


def test_weights_of_an_average_after_each_block(trained):
    directory = trained("{name: denseformer}")
    found = inspect_checkpoint(directory)
    assert [site.name for site in found.sites] == ["0 mlp output", "1 mlp output"]
    assert found.sites[1].sources == ("embedding", "0 mlp", "1 mlp")
    weights = mixerzoo.load_checkpoint(directory).mixer.weights
    for site, learned in zip(found.sites, weights.values(), strict=True):
        assert site.mean == pytest.approx(learned.tolist())
        assert site.spread == pytest.approx([0.0] * len(site.mean), abs=1e-6)


def test_weights_in_a_composition_have_the_names_of_the_part_that_shows_them(trained):
    alone, part = (trained(f"{{name: {name}}}") for name in ("depth_attention", "attn_res"))
    both = trained("{name: compose, of: [{name: attn_res}, {name: depth_attention}]}")
    expected = {
        (site.name, site.sources)
        for directory, acts_on in ((alone, "values"), (part, "stream"))
        for site in inspect_checkpoint(directory).sites
        if site.acts_on == acts_on
    }
    assert {(site.name, site.sources) for site in inspect_checkpoint(both).sites} == expected


def test_a_stream_that_is_shown_beside_its_sources_is_not_called_by_a_source_s_name(trained):
    both = trained("{name: compose, of: [{name: delta_attn_res}, {name: depth_attention}]}")
    for site in inspect_checkpoint(both).sites:
        if site.acts_on == "stream":
            assert site.sources == tuple(f"source {n}" for n in range(len(site.mean)))


def test_windows_of_a_single_token_are_looked_at_in_pairs(tmp_path):
    train(tiny_recipe("mixer.name=denseformer", "train.steps=2", "data.sequence_length=1"), tmp_path / "run")
    found = inspect_checkpoint(tmp_path / "run", max_windows=3)
    assert found.num_tokens == 6
    assert found.sites
    assert found.depth_loss is None or len(found.depth_loss) == 2


def test_weights_of_values(trained):
    found = inspect_checkpoint(trained("{name: depth_attention, stride: 1}"))
    assert [(site.name, site.sources) for site in found.sites] == [
        ("1 attention values", ("0 attention", "1 attention"))
    ]
    assert sum(found.sites[0].mean) == pytest.approx(1, abs=1e-5)


def test_weights_of_tokens_and_of_channels_are_averaged_together(trained):
    directory = trained("{name: dca, dialect: outputs}")
    found = inspect_checkpoint(directory)
    assert [site.name for site in found.sites] == ["1 attention", "head"]
    assert found.sites[1].sources == ("embedding", "0 mlp", "1 mlp")
    # After four steps scores are small, and what is added to them is near the 1 at which it begins.
    biases = mixerzoo.load_checkpoint(directory).mixer.queries["1"].bias
    assert found.sites[0].mean == pytest.approx(biases.mean(1).tolist(), abs=0.1)
    assert max(found.sites[0].spread) > 0


def test_queries_stand_for_inputs_that_are_mixed_apart(trained):
    found = inspect_checkpoint(trained("{name: mudd}"))
    assert [site.name for site in found.sites] == ["1 attention", "head"]
    assert found.sites[0].sources == ("embedding", "0 mlp")
    assert found.sites[1].sources == ("embedding", "0 mlp", "1 mlp")


def test_the_last_loss_is_the_decoder_s_own(trained, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("def f(x):\n    return x\n")
    directory = trained("{name: value_residual}")
    found = inspect_checkpoint(directory, text=text)
    decoder = mixerzoo.load_checkpoint(directory)
    ids = torch.tensor([mixerzoo.TextFormat.load(directory).encode_prompt(text.read_text())])
    with torch.no_grad():
        logits = decoder(ids)
    expected = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
    assert len(found.depth_loss) == decoder.shape.num_steps
    assert found.depth_loss[-1] == pytest.approx(float(expected), rel=1e-5)
    assert found.depth_loss[0] != found.depth_loss[-1]
    assert {site.acts_on for site in found.sites} == {"values"}


def test_the_command_prints_and_writes(trained, tmp_path):
    directory = str(trained("{name: attn_res, dialect: kimi, block_size: 1}"))
    run = CliRunner().invoke
    shown = run(app, ["inspect", directory, "--prompt", "def <f>", "--out", str(tmp_path / "out")])
    assert shown.exit_code == 0, shown.output
    assert "embedding" in shown.stdout
    page = (tmp_path / "out" / "inspect.html").read_text()
    found = json.loads((tmp_path / "out" / "inspect.json").read_text())
    assert json.loads(re.search(r'id="data">(.*?)</script>', page)[1]) == found
    assert "http" not in page
    assert "&#x27;&lt;&#x27;" in page
    per_token = [site["per_token"] for site in found["sites"] if site["per_token"] is not None]
    assert per_token
    assert all(len(rows) == len(found["tokens"]) == 7 for rows in per_token)
    assert json.loads(run(app, ["inspect", directory, "--prompt", "def <f>", "--json"]).stdout) == found
    # Nothing is replaced unless that is asked for, and nothing computed for what could not be written.
    again = ["inspect", directory, "--prompt", "other", "--out", str(tmp_path / "out")]
    refused = run(app, again)
    assert refused.exit_code == 2
    assert "inspect.html: exists; name another file, or replace it with --overwrite" in " ".join(refused.stderr.split())
    assert json.loads((tmp_path / "out" / "inspect.json").read_text()) == found
    assert run(app, [*again, "--overwrite"]).exit_code == 0
    assert json.loads((tmp_path / "out" / "inspect.json").read_text()) != found
    (tmp_path / "file").touch()
    refused = run(app, [*again[:-1], str(tmp_path / "file")])
    assert (refused.exit_code, refused.stdout) == (2, "")


def test_a_mixer_without_weights_and_one_without_a_stream_say_so(trained):
    shown = CliRunner().invoke(app, ["inspect", str(trained("{name: residual}"))])
    assert "shows no weights" in shown.stdout
    shown = CliRunner().invoke(app, ["inspect", str(trained("{name: mudd}"))])
    assert "do not read one stream" in shown.stdout


@pytest.mark.parametrize("arguments", [["--text", "nowhere"], ["--prompt", ""], ["--prompt", "a", "--text", "b"]])
def test_bad_input_is_an_error_in_words(trained, arguments):
    result = CliRunner().invoke(app, ["inspect", str(trained("{name: residual}")), *arguments])
    assert result.exit_code == 2
    assert "Error:" in result.stderr
    assert CliRunner().invoke(app, ["inspect", "nowhere"]).exit_code == 2
