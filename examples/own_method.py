"""docs/extending.md: a method of one's own beside `ace`.

Run it as `python examples/own_method.py compare-methods --method ace,activation_share ...`.
"""

# my_methods.py
from dataclasses import dataclass

from neuronllm_eval.attribution.methods import Method, register
from neuronllm_eval.cli import main as cli


@register
@dataclass(frozen=True)
class ActivationShare(Method):
    """Share of the layer's absolute activation, to a power."""

    power: float = 1.0  # a setting: --method_args power=2
    name = "activation_share"

    def values(self, attributions):
        size = attributions.activations.abs() ** self.power
        return size / size.sum(-1, keepdim=True)


if __name__ == "__main__":
    raise SystemExit(cli.main())
