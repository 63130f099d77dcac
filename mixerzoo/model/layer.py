"""One layer, as a step runs it.

Parameter names are those of Hugging Face Llama and Qwen3. Letters in shapes: B batch, T tokens of this call,
D hidden size.
"""

from __future__ import annotations

from torch import Tensor, nn

from mixerzoo.errors import MixerError
from mixerzoo.mixer import AttentionInputs, Plan, Site, State
from mixerzoo.model.config import ModelConfig
from mixerzoo.model.norm import RMSNorm
from mixerzoo.model.past import KeysAndValues, Past, Reads, Run, Turn
from mixerzoo.model.swiglu import swiglu


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) · up(x)).

    Args:
        config: sizes.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        bias = config.mlp_bias
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] → [B, T, D]."""
        y: Tensor = self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))
        return y


class Layer(nn.Module):
    """One physical layer. Its forward is a step: read, norm, attention, write, read, norm, MLP, write.

    Args:
        config: sizes and conventions.
        attention: its attention sublayer.
    """

    def __init__(self, config: ModelConfig, attention: nn.Module) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = attention
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, state: State, step: int, reads: Reads, run: Run[Past]) -> tuple[State, KeysAndValues]:
        """One step. What its sublayers read, and what becomes of their outputs, is the mixer's.

        Args:
            state: of the mixer.
            step: its number.
            reads: what it attends to and earlier steps wrote.
            run: what all steps share.

        Returns:
            The mixer's state, and what the slots hold that the step wrote.

        Raises:
            MixerError: the mixer gives an MLP three inputs.
        """
        mixer = run.mixer
        site = Site(step, run.plan.order[step], "attention")
        stream = mixer.read(state, site)
        x, norm = self.attention_input(stream, run.plan)
        state, y, written, *_ = self.self_attn(x, Turn(site, state, stream, norm, reads, run))
        state = mixer.write(state, site, y)

        site = site._replace(branch="mlp")
        stream = mixer.read(state, site)
        if isinstance(stream, AttentionInputs):
            raise MixerError(f"mixer {mixer.name!r} returned AttentionInputs at an MLP site")
        return mixer.write(state, site, self.feed(stream)), written

    def attention_input(
        self, stream: Tensor | AttentionInputs, plan: Plan
    ) -> tuple[Tensor | AttentionInputs, nn.Module | None]:
        """What attention is given of what the mixer let it read, [B, T, D] each, and the norm that this lacks.

        Three inputs are normed where they are projected, unless a hook is to see them.
        """
        if isinstance(stream, AttentionInputs) and not plan.hooks:
            return stream, self.input_layernorm
        return self.normed(stream), None

    def normed(self, stream: Tensor | AttentionInputs) -> Tensor | AttentionInputs:
        """Normed inputs of attention, [B, T, D] each."""
        if isinstance(stream, AttentionInputs):
            return AttentionInputs(*(self.input_layernorm(part) for part in stream))
        x: Tensor = self.input_layernorm(stream)
        return x

    def feed(self, stream: Tensor) -> Tensor:
        """The output of the MLP with its norm, [B, T, D] → [B, T, D]."""
        y: Tensor = self.mlp(self.post_attention_layernorm(stream))
        return y
