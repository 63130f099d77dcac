"""What a mixer's calls depend on, of mixers of which it is plain."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mixerzoo import Context, DecoderShape, Mixer, MixerConfig, Site, load_registry
from mixerzoo.mixer import follow

SHAPE = DecoderShape(
    hidden_size=8, num_layers=3, num_heads=2, num_kv_heads=1, head_dim=4, order=(0, 1, 2), norm_eps=1e-5, vocab_size=11
)


def of(name: str) -> Mixer:
    mixer: type[Mixer] = load_registry().get(name).mixer
    with torch.device("meta"):
        return mixer(mixer.Config(), SHAPE)


def test_every_sublayer_of_a_plain_decoder_reads_all_before_it() -> None:
    found = follow(of("residual"))
    assert found is not None
    sites = SHAPE.sites()
    assert found.reads == {site: frozenset({None, *sites[: site.number]}) for site in sites}
    assert (found.weighing, found.looking_up, found.num_streams) == (frozenset(), frozenset(), 1)


def test_a_ladder_reads_all_but_the_newest() -> None:
    found = follow(of("ladder"))
    assert found is not None
    sites = SHAPE.sites()
    assert found.reads == {site: frozenset({None, *sites[: max(0, site.number - 1)]}) for site in sites}


@pytest.mark.parametrize(("name", "streams"), [("hyper_connections", 4), ("denseformer", 1), ("depth_attention", 1)])
def test_streams_are_a_dimension_of_the_state(name: str, streams: int) -> None:
    found = follow(of(name))
    assert found is not None
    assert found.num_streams == streams


def test_streams_are_seen_beside_parts_that_hold_nothing() -> None:
    compose: type[Mixer] = load_registry().get("compose").mixer
    options = {"of": [{"name": "hyper_connections"}, {"name": "cla"}]}
    with torch.device("meta"):
        found = follow(compose(compose.Config.model_validate(options), SHAPE))
    assert found is not None
    assert found.num_streams == 4


class Selective(Mixer):
    """Weighs what MLPs write, and adds a vector of the token to what attention reads in layer 1."""

    name = "selective"

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.scale = nn.Parameter(torch.empty(1))
        self.table = nn.Parameter(torch.empty(shape.vocab_size, shape.hidden_size))

    def start(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        assert context.tokens is not None
        return x, context.tokens

    def read(self, state: tuple[Tensor, Tensor], site: Site) -> Tensor:
        x, tokens = state
        return x + self.table[tokens] if site == (1, 1, "attention") else x

    def write(self, state: tuple[Tensor, Tensor], site: Site, y: Tensor) -> tuple[Tensor, Tensor]:
        x, tokens = state
        return x + (self.scale * y if site.branch == "mlp" else y), tokens

    def finish(self, state: tuple[Tensor, Tensor]) -> Tensor:
        return state[0]


def test_a_third_party_mixer_is_followed_like_any() -> None:
    with torch.device("meta"):
        found = follow(Selective(MixerConfig(), SHAPE))
    assert found is not None
    looked_up = Site(1, 1, "attention")
    assert found.looking_up == {looked_up}
    assert found.weighing == {looked_up, *(site for site in SHAPE.sites() if site.branch == "mlp")}
