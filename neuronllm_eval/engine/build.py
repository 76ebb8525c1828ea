"""Choose an engine for a model, and prove on the user's own prompts that it is exact.

Fan-out is exact wherever attention follows its mask and position ids. Whether a given model's does
is not guessed from its name, but found out on a few prompts of the run, the longest among them:

1. The model's own rounding is measured: the last token of a context is fed after the others, and
   together with them (`rounding_noise`). Both are ordinary uses of the model.
2. Scores of the fan-out engine under random edits are compared with those of full passes
   (`score_mismatch`), path integrals with those of a fan-out engine that saves nothing
   (`gradient_mismatch`). What differs by no more than a few times the rounding is the same.
3. Anything else, an error in the model included, is a `Mismatch`. Then fan-out saves less: first
   copies join at their layer rather than behind it, then nothing is saved. Where that does not
   help, the replay engine is used. The log says why.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neuronllm_eval.engine.fan_out import FanOutEngine, Savings
from neuronllm_eval.engine.interface import Engine, Integrand, option_cross_entropy
from neuronllm_eval.engine.option_logits import score_options
from neuronllm_eval.engine.pass_size import rows_per_prompt, tree_size
from neuronllm_eval.engine.replay import ReplayEngine
from neuronllm_eval.engine.shared_prefix import common_length, group_by_stem, mask_styles
from neuronllm_eval.errors import ModelError, UsageError
from neuronllm_eval.models.ffn_layers import FFNLayers, input_device
from neuronllm_eval.models.forward_check import require_gradients
from neuronllm_eval.prompts import ALL, SCORED, Prompt

logger = logging.getLogger(__name__)

ENGINES = ("auto", "fan_out", "replay")
# Differences in log-nats that rounding explains at least; what it does in a given model is
# measured.
TOLERANCE = {torch.float32: 2e-3, torch.float64: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
NOISE_FACTOR = 8
# Differences of attributions relative to the largest, between ways to compute the same.
GRADIENT_TOLERANCE = {
    torch.float32: 1e-2,
    torch.float64: 1e-4,
    torch.bfloat16: 0.3,
    torch.float16: 0.1,
}
# Late joining has to be this much closer: what a layer does with its FFN's output could change a
# little of it, and the next way is nearly as cheap.
STRICTNESS = 1 / 3
# A context, and the options behind it: of each the first token's logit is compared.
ContextOptions = tuple[Sequence[int], Sequence[Sequence[int]]]
# What a pass may raise in a model that cannot do it.
BROKEN = (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError)


@dataclass(frozen=True)
class Mismatch:
    """Why a way to compute is not taken.

    Attributes:
        text: what differs by how much, or the error.
        raised: whether it is an error: a possible fault, rather than a property of the model.
    """

    text: str
    raised: bool = False

    @classmethod
    def of(cls, error: Exception) -> Mismatch:
        """Type and first line of an error in `BROKEN`.

        Raises:
            ModelError: running out of memory, which says nothing about the model's attention.
        """
        if isinstance(error, torch.OutOfMemoryError):
            raise ModelError(
                f"out of memory while checking the engine on a few prompts: {error}",
                expected="room for three prompts",
                remedy="use a smaller model, dtype=bfloat16, or parallelize=True in --model_args",
            ) from error
        first_line = str(error).split("\n", 1)[0]
        return cls(f"{type(error).__name__}: {first_line}", raised=True)

    @property
    def log_level(self) -> int:
        """The level at which it is logged where the next way is nearly as good."""
        return logging.WARNING if self.raised else logging.INFO

    def __str__(self) -> str:
        return self.text


def build_engine(
    model: nn.Module,
    layers: FFNLayers,
    prompts: Sequence[Prompt],
    name: str = "auto",
    n_nodes: int = 0,
    positions: str = SCORED,
) -> Engine:
    """The engine to use for these prompts.

    Args:
        model: a Hugging Face causal LM in eval mode.
        layers: its FFN down-projections.
        prompts: all prompts of the run; up to three of them are used for the check.
        name: `auto` takes fan-out where it is exact; `fan_out` or `replay` insist.
        n_nodes: nodes of the path integrals it will compute; a pass has room for them. 0 if it
            will only score: then gradients are not checked.
        positions: which positions are edited, one of `prompts.POSITIONS`; fan-out edits the scored
            one.

    Raises:
        UsageError: unknown name, or `fan_out` insisted on where it is not exact.
        ModelError: gradients are needed, and the model has none.
    """
    if name not in ENGINES:
        raise UsageError(
            f"unknown engine {name!r}", expected=" or ".join(ENGINES), remedy="check --engine"
        )
    if n_nodes:
        require_gradients(model, layers)
    replay = ReplayEngine(model, layers, positions=positions)
    if name == "fan_out" and positions == ALL:
        raise UsageError(
            "the fan-out engine with positions=all",
            expected="positions=scored: edits of earlier tokens change what later ones see",
            remedy="use --engine auto or replay with --positions all",
        )
    if name == "replay" or positions == ALL:
        return replay
    fan_out, reason = _exact_fan_out(model, layers, prompts, replay, n_nodes)
    if fan_out is not None:
        return fan_out
    if name == "fan_out":
        raise UsageError(
            f"the fan-out engine is not exact here: {reason}",
            expected="agreement with full forward passes",
            remedy="use --engine replay, which is slower",
        )
    logger.warning("using the slower replay engine: %s", reason)
    return replay


def _exact_fan_out(
    model: nn.Module,
    layers: FFNLayers,
    prompts: Sequence[Prompt],
    replay: ReplayEngine,
    n_nodes: int,
) -> tuple[FanOutEngine | None, str]:
    """The fan-out engine that saves most among those that are exact; or None, and why."""
    styles = mask_styles(model)
    if not styles:
        return None, "the model mixes in attention layers that take no ordinary mask"
    probes = _probe_prompts(prompts)
    contexts = [prompt.context for prompt in prompts]
    rows = rows_per_prompt(max(map(tree_size, prompts)), n_nodes)
    of_styles: list[Mismatch] = []
    for style in styles:
        mismatch = Mismatch("")
        for savings in Savings:
            fan_out = FanOutEngine(
                model,
                layers,
                mask_style=style,
                contexts=contexts,
                savings=savings,
                rows_per_prompt=rows,
            )
            if fan_out.savings is not savings or (savings is Savings.LATE and not n_nodes):
                continue  # the next one is the same
            reason = score_mismatch(fan_out, replay, probes)
            if reason is None and n_nodes and savings is not Savings.NONE:
                reason = gradient_mismatch(fan_out, _with_small_trees(probes))
            if reason is None:
                _log_choice(savings, mismatch, of_styles)
                return fan_out, ""
            mismatch = reason
        of_styles.append(Mismatch(f"mask style {style.value}: {mismatch}", mismatch.raised))
    return None, "; ".join(map(str, of_styles))


def _log_choice(savings: Savings, mismatch: Mismatch, of_styles: Sequence[Mismatch]) -> None:
    """Why nothing more is saved, and why other mask styles were not taken."""
    if savings is Savings.NONE:
        logger.warning("computing every token, row and logit: %s", mismatch)
    elif mismatch.text:
        message = "copies join at the layer that edits them, not behind it: %s"
        logger.log(mismatch.log_level, message, mismatch)
    if of_styles:
        level = max(reason.log_level for reason in of_styles)
        logger.log(level, "another mask is taken: %s", "; ".join(map(str, of_styles)))


def _probe_prompts(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The longest prompt, a neighbour that shares a stem with it if there is one, the shortest.

    So the check meets padding, and every part of a prompt that is prefilled once. Where options
    have several tokens, the prompt with the largest tree is among them.
    """
    index = max(range(len(prompts)), key=lambda number: prompts[number].n_tokens)
    longest = prompts[index]
    shortest = min(prompts, key=lambda prompt: prompt.n_tokens)
    largest = max(prompts, key=tree_size)
    others = (
        [shortest]
        if tree_size(largest) in map(tree_size, (longest, shortest))
        else [
            largest,
            shortest,
        ]
    )
    n_shared = common_length([prompt.context for prompt in prompts])
    for near in (*prompts[max(0, index - 1) : index], *prompts[index + 1 : index + 2]):
        if len(group_by_stem([longest.context, near.context], n_shared)) == 1:
            return [longest, near, *others]
    return [longest, *others]


def _with_small_trees(prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    """The two smallest trees, in which an engine that saves nothing takes seconds, not minutes."""
    if max(map(tree_size, prompts)) == 1:
        return prompts
    return sorted(prompts, key=tree_size)[:2]


# Comparisons ------------------------------------------------------------------------------------


def score_mismatch(
    fan_out: FanOutEngine, replay: Engine, prompts: Sequence[Prompt]
) -> Mismatch | None:
    """Why fan-out cannot be trusted on these prompts, or None if both engines agree.

    Two comparisons, in log-nats: edited and unedited copies with full passes, and unedited copies
    at the two ends of a pass with each other.
    """
    # As many rows as the engine's largest pass has, since some models number the copies by their
    # position in the pass rather than by their position ids. The last two suppress 2% of all
    # neurons: edits of all of them would magnify rounding in 16-bit models until nothing else could
    # be seen.
    shape, generator = fan_out.layers.shape, torch.Generator().manual_seed(0)
    n_copies = fan_out.size.rows_per_prompt // max(map(tree_size, prompts))
    scales = torch.ones(n_copies, *shape, dtype=torch.int8)
    scales[-2:] = torch.rand(2, *shape, generator=generator) > 0.02
    checked = [0, -2, -1]  # full passes are expensive; a few edits do for them
    try:
        fast = [scores.loglikelihoods for scores in fan_out.score(prompts, scales)]
    except BROKEN as error:
        return Mismatch.of(error)
    slow = [scores.loglikelihoods for scores in replay.score(prompts, scales[checked])]
    first, last = [scores[0] for scores in fast], [scores[-3] for scores in fast]
    return _first_difference(
        fan_out.model,
        prompts,
        slow,
        ("log-likelihoods differ", [scores[checked] for scores in fast], slow),
        ("copies of one pass differ", first, last),
    )


def gradient_mismatch(fan_out: FanOutEngine, prompts: Sequence[Prompt]) -> Mismatch | None:
    """Why an engine's savings change path integrals on these prompts, or None if they do not.

    Attributions, and the log-likelihoods that come with them, are compared with those of an engine
    that shares nothing, computes every row from the first layer on and every logit.
    """
    plain = FanOutEngine(
        fan_out.model,
        fan_out.layers,
        mask_style=fan_out.mask_style,
        savings=Savings.NONE,
        rows_per_prompt=fan_out.size.rows_per_prompt,
    )
    nodes, weights = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([1.0, 4.0, 1.0]) / 6  # Simpson
    integrand = Integrand(option_cross_entropy, weights)
    try:
        expected, results = (
            [integral for (integral,) in engine.integrate_all(prompts, nodes, [integrand])]
            for engine in (plain, fan_out)
        )
    except BROKEN as error:
        return Mismatch.of(error)
    share = GRADIENT_TOLERANCE.get(next(fan_out.model.parameters()).dtype, 0.3)
    if fan_out.savings is Savings.LATE:
        share *= STRICTNESS
    for one, other in zip(results, expected, strict=True):
        size = float(other.attribution.abs().max())
        gap = float((one.attribution - other.attribution).abs().max())
        if not gap <= share * size:  # also catches NaN
            return Mismatch(f"attributions differ by {gap:.3g} of {size:.3g} log-nats")
    (ones, one_targets), (others, other_targets) = (
        zip(*((one.loglikelihoods, one.node_targets) for one in integrals), strict=True)
        for integrals in (results, expected)
    )
    return _first_difference(
        fan_out.model,
        prompts,
        others,
        ("log-likelihoods differ", ones, others),
        ("targets differ", one_targets, other_targets),
    )


def _first_difference(
    model: nn.Module,
    prompts: Sequence[Prompt],
    loglikelihoods: Sequence[Tensor],
    *comparisons: tuple[str, Sequence[Tensor], Sequence[Tensor]],
) -> Mismatch | None:
    """The first of the comparisons that rounding of log-likelihoods of this size does not explain.

    Args:
        model: a Hugging Face causal LM in eval mode.
        prompts: on which rounding is measured.
        loglikelihoods: log-nats.
        comparisons: what is said of a difference, and the two sides, each a tensor per prompt.
    """
    largest = max(float(values.abs().max()) for values in loglikelihoods)
    probes = [(prompt.context, prompt.options) for prompt in prompts]
    tolerance = rounding_tolerance(model, probes, largest)
    for what, ones, others in comparisons:
        gaps = [(one - other).abs().max() for one, other in zip(ones, others, strict=True)]
        gap = float(torch.stack(gaps).max())  # NaN if any is, unlike max() of floats
        if not gap <= tolerance:
            return Mismatch(f"{what} by {gap:.3g} log-nats (tolerance {tolerance:.3g})")
    return None


# Rounding ---------------------------------------------------------------------------------------


def rounding_tolerance(model: nn.Module, probes: Sequence[ContextOptions], largest: float) -> float:
    """What rounding may do to log-likelihoods in this model, log-nats.

    Args:
        model: a Hugging Face causal LM in eval mode.
        probes: contexts and options on which rounding is measured.
        largest: the largest absolute log-likelihood.
    """
    dtype = next(model.parameters()).dtype
    return max(
        TOLERANCE.get(dtype, 0.1),
        NOISE_FACTOR * rounding_noise(model, probes),
        2 * torch.finfo(dtype).eps * largest,  # two units in the last place of a log-likelihood
    )


@torch.no_grad()
def rounding_noise(model: nn.Module, probes: Sequence[ContextOptions]) -> float:
    """What rounding alone does to log-likelihoods behind contexts in this model, log-nats.

    The last token is fed after the others, as in generation, and together with them. Both are
    ordinary uses of the model and equal but for rounding.
    """
    gaps = [0.0]
    for context, options in probes:
        ids = torch.tensor([context], device=input_device(model))
        if ids.shape[1] < 2:
            continue
        together = model(input_ids=ids, use_cache=False).logits[0, -1]
        cache = model(input_ids=ids[:, :-1], use_cache=True).past_key_values
        after = model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True).logits[0, -1]
        first_tokens = [option[0] for option in options]
        one, other = (score_options(logits, first_tokens)[0] for logits in (together, after))
        gaps.append(float((one - other).abs().max()))
    return max(gaps)
