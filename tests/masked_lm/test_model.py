"""The masked harness model: the right columns, the right factors, and nothing left behind."""

from __future__ import annotations

import importlib.metadata
import random

import lm_eval
import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
)

from neuronllm_eval.engine.build import build_engine
from neuronllm_eval.errors import ArtifactError, ModelError, NeuronLLMError, UsageError
from neuronllm_eval.harness.requests import build_questions
from neuronllm_eval.harness.tokenize import PromptSettings
from neuronllm_eval.interventions.condition_plan import ConditionPlan
from neuronllm_eval.interventions.conditions import condition_scales
from neuronllm_eval.masked_lm import scoring as masked_scoring
from neuronllm_eval.masked_lm.mask_options import mask_hash
from neuronllm_eval.masked_lm.model import NeuronMaskedLM
from neuronllm_eval.masked_lm.shared_context_scoring import ForkScorer
from neuronllm_eval.models.ffn_layers import find_ffn_layers
from neuronllm_eval.neurons.neuron_set import NEURONS_FILE
from tests.fixtures.harness import (
    N_LAYERS,
    WIDTH,
    demo_task,
    harness_model,
    include_paths,
    loglikelihood_requests,
    many_neurons,
    model_dir,
    neuron_set,
)
from tests.fixtures.tiny_models import score_all

NEURONS = many_neurons()
EDITING = ("suppress_good", "suppress_bad", "enhance_good", "enhance_bad", "degrade", "enhance")


def masked(condition="degrade", neurons=NEURONS, path=None, **settings) -> NeuronMaskedLM:
    given = {"device": "cpu", "batch_size": 1, **settings}
    return NeuronMaskedLM(str(path or model_dir()), neurons, condition, **given)


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str]]:
    """Contexts of many lengths, each with continuations of one token and of several."""
    rng = random.Random(0)
    words = ["Question:", "weather", "is", "A", "B.", "seven", "the", "topic?", "Answer:"]
    made = []
    for length in (1, 3, 4, 9, 17, 18, 40):
        context = " ".join(rng.choice(words) for _ in range(length))
        made += [(context, rest) for rest in (" A", " B", " the weather is", " A B", " zebra")]
    rng.shuffle(made)
    return made


def encoded(pairs):
    lm = harness_model(model_dir())
    return [lm._encode_pair(*pair) for pair in pairs]


def plain_model():
    return AutoModelForCausalLM.from_pretrained(model_dir()).eval()


@torch.no_grad()
def oracle(pairs, factors, *, everywhere=False) -> list[tuple[float, bool]]:
    """One request at a time, unpadded, with a hook of its own: no code of the package."""
    model = plain_model()
    answers = []
    for context, rest in encoded(pairs):
        tokens = torch.tensor([context + rest])[:, :-1]
        positions = slice(None) if everywhere else slice(len(context) - 1, tokens.shape[1])

        def edit(module, args, layer=None, positions=positions):
            neurons = args[0].clone()
            neurons[0, positions] *= torch.from_numpy(factors[layer])
            return (neurons,)

        hooks = [
            block.mlp.down_proj.register_forward_pre_hook(
                lambda module, args, layer=layer: edit(module, args, layer)
            )
            for layer, block in enumerate(model.model.layers)
        ]
        logits = model(tokens).logits[0, len(context) - 1 :].double()
        for hook in hooks:
            hook.remove()
        target = torch.tensor(rest)
        total = logits.log_softmax(-1).gather(-1, target[:, None]).sum()
        answers.append((float(total), bool((logits.argmax(-1) == target).all())))
    return answers


def answers_of(lm, pairs):
    return lm.loglikelihood(loglikelihood_requests(pairs), disable_tqdm=True)


def assert_same_answers(found, expected, tolerance=1e-4):
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    values, wanted = np.array([v for v, _ in found]), np.array([v for v, _ in expected])
    np.testing.assert_allclose(values, wanted, rtol=0, atol=tolerance)


def hooks_on(lm) -> int:
    return sum(len(module._forward_pre_hooks) for module in lm.model.modules())


# Registration -----------------------------------------------------------------------------------


def test_registered_under_its_name():
    assert get_model("neuronllm") is NeuronMaskedLM


def test_the_entry_point_is_declared_in_the_installed_package():
    (point,) = importlib.metadata.entry_points(group="lm_eval.models", name="neuronllm")
    assert point.load() is NeuronMaskedLM
    assert point.dist.name == "neuronllm-eval"


# Unmasked ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("neurons", [None, NEURONS], ids=["without", "with"])
@pytest.mark.parametrize("fast", [False, True])
def test_unmasked_is_stock_hf(pairs, batch_size, neurons, fast):
    model = plain_model()  # the same weights in memory for both: sums depend on their place there
    stock = answers_of(wrapped(model, batch_size), pairs)
    tokenizer = harness_model(model_dir()).tokenizer
    given = {"tokenizer": tokenizer, "batch_size": batch_size, "device": "cpu", "fast": fast}
    lm = NeuronMaskedLM(model, neurons, "unmasked" if neurons else None, **given)
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(hooks_on(lm)))
    found = answers_of(lm, pairs)
    assert_same_answers(found, stock, tolerance=2e-5)
    if not fast:
        assert found == stock  # to the bit
    assert set(calls) == {1}  # this test's own hook and no other


def test_a_masked_model_has_hooks_only_while_it_answers(pairs):
    for positions in ("scored", "all"):
        for fast in (True, False):
            lm = masked(positions=positions, fast=fast)
            counts = []
            handle = lm.model.register_forward_pre_hook(
                lambda *_, lm=lm, counts=counts: counts.append(hooks_on(lm))
            )
            answers_of(lm, pairs)
            handle.remove()
            assert counts[-1] == 1 + N_LAYERS
            # The check of rounding asks the model as it is.
            assert set(counts) <= ({1, 1 + N_LAYERS} if fast else {1 + N_LAYERS})
            assert hooks_on(lm) == 0


@pytest.mark.parametrize("positions", ["scored", "all"])
def test_no_hook_survives_an_exception(pairs, positions):
    lm = masked(positions=positions)

    def fail(*_):
        raise RuntimeError("the model broke")

    handle = lm.model.lm_head.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="the model broke"):
        answers_of(lm, pairs)
    handle.remove()
    assert hooks_on(lm) == 0


# Scored positions -------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("condition", ["degrade", "suppress_bad", "enhance.random_3"])
def test_scored_positions_of_a_padded_batch(pairs, batch_size, condition):
    factors = condition_scales(NEURONS, condition)
    found = answers_of(masked(condition, batch_size=batch_size), pairs)
    assert_same_answers(found, oracle(pairs, factors))


def test_the_oracles_differ_by_more_than_their_tolerance(pairs):
    # The comparisons above and below would be worth nothing if a mask at all positions, at the
    # scored ones and at none gave the same numbers.
    factors = condition_scales(NEURONS, "degrade")
    rows = [
        [value for value, _ in oracle(pairs, chosen, everywhere=everywhere)]
        for chosen, everywhere in (
            (factors, False),
            (factors, True),
            (np.ones_like(factors), False),
        )
    ]
    several = np.array([len(context) > 1 for context, _ in encoded(pairs)])
    for one, other in ((0, 1), (0, 2), (1, 2)):
        gaps = np.abs(np.array(rows[one]) - np.array(rows[other]))
        assert gaps[several].min() > 1e-3


def test_continuations_are_of_one_and_of_several_tokens(pairs):
    lengths = {len(rest) for _, rest in encoded(pairs)}
    assert 1 in lengths
    assert max(lengths) >= 3


def test_repeated_requests_and_shared_rows(pairs):
    # Continuations that differ in their last token only are scored in one row.
    twice = [*pairs[:6], *pairs[:6], (pairs[0][0], " A A"), (pairs[0][0], " A B")]
    found = answers_of(masked(batch_size=3), twice)
    assert found[:6] == found[6:12]
    assert_same_answers(found, oracle(twice, condition_scales(NEURONS, "degrade")))


def test_contexts_that_are_too_long_lose_their_beginning_as_in_stock(caplog):
    path = model_dir(context=16)
    pairs = [("one two three four five six seven eight nine ten", " A"), ("A", " B C")]
    # Factors of one, but a mask: the masked path, which must answer as stock does.
    lm = masked("suppress_good", path=path, scale=1.0, batch_size=2)
    assert lm._mask is not None
    stock = answers_of(harness_model(path), pairs)
    assert_same_answers(answers_of(lm, pairs), stock)
    said = [r.message for r in caplog.records if "longer than the model's context" in r.message]
    assert len(said) == 1  # once, with a count, not for every request
    assert said[0][0].isdigit()


def test_factors_of_one_give_the_stock_answers_through_the_masked_path(pairs):
    lm = masked("degrade", suppress_scale=1.0, enhance_scale=1.0, batch_size=8)
    assert lm._mask is not None
    assert_same_answers(answers_of(lm, pairs), answers_of(harness_model(model_dir()), pairs))


def test_rolling_log_likelihoods_score_every_position():
    text = "The weather is a topic. " * 40  # longer than one window of 128
    path = model_dir(context=128)
    lm, stock = masked("enhance_good", path=path, scale=1.0), harness_model(path)
    request = [Instance("loglikelihood_rolling", {}, (text,), 0)]
    expected = stock.loglikelihood_rolling(request, disable_tqdm=True)
    assert lm.loglikelihood_rolling(request, disable_tqdm=True) == pytest.approx(expected, abs=1e-3)
    edited = masked("enhance_good", path=path)
    found = edited.loglikelihood_rolling(request, disable_tqdm=True)
    assert abs(found[0] - expected[0]) > 1e-2


@pytest.mark.parametrize("tokenizer", ["words", "split_space"])
@pytest.mark.parametrize("condition", EDITING)
def test_as_the_validation_path_scores(condition, tokenizer):
    # Fan-out at the scored position against the masked model, through the harness's own requests.
    # Where a letter is a space and a letter, the space is context for both: it is not edited.
    path = model_dir(tokenizer)
    task = demo_task()
    plain = harness_model(path)
    questions = build_questions(plain, task, PromptSettings(num_fewshot=0), limit=4)
    assert {prompt.n_shared for prompt in questions.prompts} == {int(tokenizer != "words")}
    layers = find_ffn_layers(plain.model)
    engine = build_engine(plain.model, layers, questions.prompts, "fan_out")
    plan = ConditionPlan((condition,), n_random=1)
    factors = plan.factors(NEURONS)
    docs = score_all(engine, questions.questions, factors, 6)
    for row, name in enumerate(plan.names):
        lm = masked(name, path=path, batch_size=8)
        answers = lm.loglikelihood(task.instances, disable_tqdm=True)
        found = np.concatenate([doc.loglikelihoods[row] for doc in docs])
        np.testing.assert_allclose(found, [value for value, _ in answers], rtol=0, atol=1e-4)
        greedy = np.concatenate([doc.greedy[row] for doc in docs])
        assert greedy.tolist() == [flag for _, flag in answers]


def of_doc(doc_id, *pairs):
    return [
        Instance("loglikelihood", {}, pair, number, metadata=("some_task", doc_id, 1))
        for number, pair in enumerate(pairs)
    ]


@pytest.mark.parametrize("fast", [True, False])
def test_answers_do_not_depend_on_what_else_is_asked(fast):
    # Two docs of one context, whose options share tokens within the one and not within both.
    lm = masked("degrade", batch_size=8, fast=fast)
    one = of_doc(0, ("Question: the weather", " A B"), ("Question: the weather", " A A"))
    other = of_doc(1, ("Question: the weather", " zebra"), ("Question: the weather", " the B"))
    alone = lm.loglikelihood(one, disable_tqdm=True) + lm.loglikelihood(other, disable_tqdm=True)
    together = lm.loglikelihood([*one, *other], disable_tqdm=True)
    assert_same_answers(together, alone, tolerance=2e-5)
    mixed = lm.loglikelihood([*one, *of_doc(0, ("A", " A B"), ("A", " A A"))], disable_tqdm=True)
    assert_same_answers(mixed[:2], alone[:2], tolerance=2e-5)


@pytest.mark.parametrize("fast", [True, False])
def test_rolling_windows_do_not_depend_on_their_batch(fast):
    texts = ["The weather is a topic. " * 9, "A question is asked. " * 12]
    requests = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts]
    path = model_dir(context=24)
    found = [
        masked("degrade", path=path, batch_size=size, fast=fast).loglikelihood_rolling(
            requests, disable_tqdm=True
        )
        for size in (1, 2, 5)
    ]
    assert found[1] == pytest.approx(found[0], abs=1e-3)
    assert found[2] == pytest.approx(found[0], abs=1e-3)


def test_a_cache_that_was_cut_off_changes_no_answer():
    class Kept:
        def __init__(self):
            self.answers = {}

        def add_partial(self, _kind, text, answer):
            self.answers[text] = answer

    lm = masked("degrade")
    pairs = [("The topic?", " zebra zebra"), ("The topic?", " A B"), ("The topic?", " A A")]
    letters = [("The topic?", " A"), ("The topic?", " B")]
    lm.cache_hook = kept = Kept()
    whole = lm.loglikelihood(of_doc(0, *pairs), disable_tqdm=True)
    known = lm.loglikelihood(of_doc(1, *letters), disable_tqdm=True)
    # What is left of a doc is asked again without the options that are in the cache.
    left = [pair for pair in pairs if pair not in kept.answers]
    again = lm.loglikelihood(of_doc(0, *left), disable_tqdm=True)
    assert_same_answers([*again], [whole[pairs.index(pair)] for pair in left], tolerance=2e-5)
    assert [kept.answers[pair] for pair in letters] == known  # one token each: always their own


def test_forks_halve_their_batches_where_memory_runs_out(pairs, monkeypatch, caplog):
    lm = masked("degrade", batch_size=8)
    expected = answers_of(lm, pairs)
    real, sizes = ForkScorer.score, []

    def score(self, forks):
        sizes.append(len(forks))
        if len(forks) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(self, forks)

    monkeypatch.setattr(ForkScorer, "score", score)
    assert_same_answers(answers_of(lm, pairs), expected, tolerance=2e-5)
    assert max(sizes) > 3
    assert "out of memory; continuing with about" in caplog.text


def test_a_model_without_keys_and_values_is_scored_row_by_row(pairs):
    config = MambaConfig(
        vocab_size=len(harness_model(model_dir()).tokenizer), hidden_size=16, num_hidden_layers=2
    )
    torch.manual_seed(0)
    model = MambaForCausalLM(config).eval()
    stock = answers_of(wrapped(model, 4), pairs)
    tokenizer = harness_model(model_dir()).tokenizer
    lm = NeuronMaskedLM(model, tokenizer=tokenizer, batch_size=4, device="cpu")
    assert_same_answers(answers_of(lm, pairs), stock, tolerance=2e-5)


def test_forks_are_checked_again_when_they_are_wider(monkeypatch):
    lm = masked("degrade")
    checked = []
    real = masked_scoring.exact_style
    monkeypatch.setattr(
        masked_scoring, "exact_style", lambda *args: (checked.append(1), real(*args))[1]
    )
    long, short = "the weather is the topic Question: " * 4, "the weather is"
    for pair in ((long, " A"), (long, " B"), (short, " A B A B"), (short, " A")):
        answers_of(lm, [pair])
    assert len(checked) == 2


# All positions ----------------------------------------------------------------------------------


def scaled_weights_model(factors):
    """The model with its down-projections' columns multiplied: the mask, by hand."""
    model = plain_model()
    with torch.no_grad():
        for block, row in zip(model.model.layers, factors, strict=True):
            block.mlp.down_proj.weight *= torch.from_numpy(row)
    return model


def wrapped(model, batch_size=1):
    from lm_eval.models.huggingface import HFLM

    tokenizer = harness_model(model_dir()).tokenizer
    return HFLM(model, tokenizer=tokenizer, batch_size=batch_size, device="cpu")


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("condition", ["degrade", "suppress_good", "enhance"])
def test_all_positions_equal_scaled_columns(pairs, batch_size, condition):
    factors = condition_scales(NEURONS, condition)
    found = answers_of(masked(condition, positions="all", batch_size=batch_size), pairs)
    by_hand = answers_of(wrapped(scaled_weights_model(factors), batch_size), pairs)
    assert_same_answers(found, by_hand)
    assert_same_answers(found, oracle(pairs, factors, everywhere=True))


def ia3_adapter(model, factors):
    """A PEFT IA3 adapter on the model, whose vectors are the factors."""
    from peft import IA3Config, get_peft_model

    config = IA3Config(
        task_type="CAUSAL_LM", target_modules=["down_proj"], feedforward_modules=["down_proj"]
    )
    model = get_peft_model(model, config)
    vectors = [value for name, value in model.named_parameters() if "ia3_l" in name]
    assert [vector.numel() for vector in vectors] == [WIDTH] * N_LAYERS
    with torch.no_grad():
        for vector, row in zip(vectors, factors, strict=True):
            vector.copy_(torch.from_numpy(row).reshape(vector.shape))
    return model.eval()


@pytest.mark.filterwarnings("ignore")  # of the adapter library's own imports
def test_all_positions_equal_an_ia3_adapter_and_merged_weights(pairs):
    factors = condition_scales(NEURONS, "degrade")
    model = plain_model()
    tokenizer = harness_model(model_dir()).tokenizer
    lm = NeuronMaskedLM(
        model, NEURONS, "degrade", positions="all", tokenizer=tokenizer, device="cpu", fast=False
    )
    found = answers_of(lm, pairs)
    adapter = ia3_adapter(model, factors)
    assert answers_of(wrapped(adapter), pairs) == found  # the same products: to the bit
    merged = adapter.merge_and_unload()
    assert_same_answers(answers_of(wrapped(merged), pairs), found)


def generation_requests(*contexts):
    settings = {"until": [], "max_gen_toks": 12, "do_sample": False}
    return [Instance("generate_until", {}, (text, settings), 0) for text in contexts]


@pytest.mark.filterwarnings("ignore")  # of the text generation's own defaults
def test_generation_under_a_mask_at_all_positions():
    requests = generation_requests("Question: the weather", "A")
    factors = condition_scales(NEURONS, "degrade")
    lm = masked("degrade", positions="all")
    found = lm.generate_until(requests, disable_tqdm=True)
    by_hand = wrapped(scaled_weights_model(factors))
    assert found == by_hand.generate_until(requests, disable_tqdm=True)
    assert found != harness_model(model_dir()).generate_until(requests, disable_tqdm=True)
    assert hooks_on(lm) == 0


def test_generation_at_scored_positions_is_refused():
    lm = masked("degrade")
    with pytest.raises(
        UsageError, match=r"positions=scored with a task that generates text\.\n.*all.*\n.*--model"
    ):
        lm.generate_until(generation_requests("A"), disable_tqdm=True)


@pytest.mark.filterwarnings("ignore")
def test_an_unmasked_model_generates_whatever_the_positions():
    requests = generation_requests("Question: the weather")
    stock = harness_model(model_dir()).generate_until(requests, disable_tqdm=True)
    for neurons in (None, NEURONS):
        lm = masked("unmasked", neurons)
        assert lm.generate_until(requests, disable_tqdm=True) == stock


# Arguments --------------------------------------------------------------------------------------

SMALL = neuron_set(good=((0, 1), (1, 2)), bad=((0, 3), (1, 4)))


@pytest.mark.parametrize(
    ("condition", "settings", "expected"),
    [
        ("suppress_good", {}, {(0, 1): 0.0, (1, 2): 0.0}),
        ("suppress_good", {"scale": 0.5}, {(0, 1): 0.5, (1, 2): 0.5}),
        ("suppress_good", {"suppress_scale": 0.25}, {(0, 1): 0.25, (1, 2): 0.25}),
        ("enhance_bad", {"scale": 3}, {(0, 3): 3.0, (1, 4): 3.0}),
        ("enhance_bad", {"scale": -1.0}, {(0, 3): -1.0, (1, 4): -1.0}),
        ("suppress_bad", {"top_k": 1}, {(0, 3): 0.0}),
        ("degrade", {}, {(0, 1): 0.0, (1, 2): 0.0, (0, 3): 2.0, (1, 4): 2.0}),
        (
            "enhance",
            {"suppress_scale": 0.5, "enhance_scale": 1.5, "top_k": 1},
            {(0, 1): 1.5, (0, 3): 0.5},
        ),
    ],
)
def test_factors(condition, settings, expected):
    lm = masked(condition, SMALL, **settings)
    assert lm._mask.factors.shape == (N_LAYERS, WIDTH)
    changed = {
        (layer, index): float(lm._mask.factors[layer, index])
        for layer, index in torch.nonzero(lm._mask.factors != 1).tolist()
    }
    assert changed == expected


def test_a_random_control_edits_as_many_other_neurons_in_each_layer():
    lm = masked("suppress_good.random_7", NEURONS)
    chosen = condition_scales(NEURONS, "suppress_good")
    assert (lm._mask.factors == 0).sum(1).tolist() == (chosen == 0).sum(1).tolist()
    assert not ((lm._mask.factors == 0).numpy() & (chosen == 0)).any()
    assert torch.equal(lm._mask.factors, masked("suppress_good.random_7")._mask.factors)
    assert not torch.equal(lm._mask.factors, masked("suppress_good.random_8")._mask.factors)


@pytest.mark.parametrize(
    ("condition", "settings"),
    [
        ("degrade", {"scale": 0.5}),
        ("unmasked", {"scale": 0.5}),
        ("suppress_good", {"scale": 0.5, "suppress_scale": 0.5}),
        ("enhance_good", {"scale": 2.0, "suppress_scale": 0.0}),
    ],
)
def test_scale_needs_a_condition_of_one_operation(condition, settings):
    with pytest.raises(
        UsageError,
        match=rf"scale={settings['scale']} with condition={condition}\.\n(?s:.*)use suppress_scale",
    ):
        masked(condition, SMALL, **settings)


def test_a_point_of_a_sweep_is_a_condition_too():
    point = masked("suppress_good.k2.x0.5", SMALL)
    same = masked("suppress_good", SMALL, top_k=2, scale=0.5)
    assert (point._mask.factors == same._mask.factors).all()
    assert point.get_model_info()["neuronllm"]["n_good"] == 2
    assert point.get_model_info()["neuronllm"]["suppress_scale"] == 0.5
    assert len(masked("degrade.k1.random_3", SMALL).options.neurons.bad) == 1


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"scale": 0.25}, UsageError, r"scale=0\.25 with condition=.*\n.*one place\.\n.*top_k and"),
        ({"top_k": 1}, ArtifactError, r"top_k=2 of a set selected with top_k=1"),
    ],
)
def test_a_point_and_arguments_that_contradict_it(settings, error, match):
    with pytest.raises(error, match=match):
        masked("suppress_good.k2.x0.5", SMALL, **settings)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (
            {"condition": "supress_good"},
            r"unknown condition 'supress_good' \(perhaps suppress_good .*\nExpected: unmasked, s",
        ),
        ({"condition": "degrade.random_x"}, r"unknown condition 'degrade\.random_x'"),
        ({"condition": "degrade.random_"}, r"unknown condition 'degrade\.random_'"),
        ({"positions": "last"}, r"positions is 'last'\.\nExpected: scored or all"),
        (
            {"neurons": None},
            r"condition=degrade without neurons\.\n.*identify.*\n.*neurons=RUN_DIR",
        ),
        ({"suppress_scale": float("nan")}, r"the suppress scale is nan"),
        ({"enhance_scale": float("inf")}, r"the enhance scale is inf"),
        ({"condition": "suppress_good", "scale": "half"}, r"scale.* 'half'"),
        ({"enhance_scale": "twice"}, r"scale.* 'twice'"),
        ({"top_k": "many"}, r"top_k.*many"),
        ({"top_k": 1.5}, r"top_k.*1\.5"),
    ],
)
def test_arguments_that_are_refused(settings, match):
    given = {"condition": "degrade", "neurons": SMALL, **settings}
    with pytest.raises(NeuronLLMError, match=match):
        # No such model: everything here is refused before weights are loaded.
        masked(path="no/such/model", **given)


@pytest.mark.parametrize("top_k", [0, 3])
def test_more_neurons_than_the_set_has(top_k):
    with pytest.raises(
        ArtifactError, match=rf"(?s)top_k={top_k} of a set selected with top_k=2.*1 to 2"
    ):
        masked("degrade", SMALL, path="no/such/model", top_k=top_k)


def test_neurons_from_a_run_directory_or_its_file(tmp_path):
    (tmp_path / NEURONS_FILE).write_text(SMALL.to_json())
    for given in (tmp_path, str(tmp_path), tmp_path / NEURONS_FILE):
        assert masked("degrade", given).options.neurons == SMALL


def test_a_missing_run_directory(tmp_path):
    with pytest.raises(ArtifactError, match=r"(?s)there is no .*nowhere.neurons\.json.*identify"):
        masked("degrade", tmp_path / "nowhere", path="no/such/model")


@pytest.mark.parametrize("shape", [{"n_layers": 3}, {"width": 64}])
def test_neurons_of_another_model(shape):
    other = neuron_set(model="gpt-of-old", **shape)
    n_layers, width = other.shape
    with pytest.raises(
        ModelError,
        match=rf"found in gpt-of-old, of {n_layers} layers of {width} neurons; .* has "
        rf"{N_LAYERS} layers of {WIDTH}\.\n(?s:.*)run identify on this one",
    ):
        masked("degrade", other)
    with pytest.raises(ModelError, match=r"found in gpt-of-old"):
        masked("unmasked", other)


def test_neurons_need_a_condition():
    with pytest.raises(UsageError, match=r"(?s)without a condition.*condition=suppress_good"):
        NeuronMaskedLM("no/such/model", NEURONS)


def test_a_set_without_bad_neurons_masks_nothing_under_a_bad_condition(pairs):
    lonely = neuron_set(bad=())
    lm = masked("suppress_bad", lonely)
    assert_same_answers(answers_of(lm, pairs), answers_of(harness_model(model_dir()), pairs))


def test_a_transposed_down_projection(pairs):
    # GPT-2 keeps its weights [inputs, outputs]; the neurons are the inputs all the same.
    tokenizer = harness_model(model_dir()).tokenizer
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=N_LAYERS, n_head=4, n_inner=WIDTH,
        n_positions=128, initializer_range=0.3, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).eval()
    lm = NeuronMaskedLM(
        model, NEURONS, "degrade", tokenizer=tokenizer, device="cpu", positions="all"
    )
    found = answers_of(lm, pairs)
    with torch.no_grad():
        for block, row in zip(model.transformer.h, lm._mask.factors, strict=True):
            block.mlp.c_proj.weight *= row[:, None]
    assert_same_answers(found, answers_of(wrapped(model), pairs))


# Within lm_eval ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, "auto"])
def test_by_name_through_simple_evaluate(tmp_path, batch_size):
    (tmp_path / NEURONS_FILE).write_text(NEURONS.to_json())
    manager = TaskManager(include_path=include_paths(), include_defaults=False)

    def run(model, arguments):
        return lm_eval.simple_evaluate(
            model, model_args=arguments, tasks=["demo_topic"], limit=9, device="cpu",
            batch_size=batch_size, max_batch_size=8, bootstrap_iters=0, task_manager=manager,
        )  # fmt: skip

    base = f"pretrained={model_dir()}"
    arguments = f"{base},neurons={tmp_path},condition=suppress_good,scale=0.5,top_k=8"
    results = run("neuronllm", arguments)
    direct = masked("suppress_good", NEURONS, scale=0.5, top_k=8)
    samples = results["samples"]["demo_topic"]
    expected = direct.loglikelihood(
        [Instance("loglikelihood", {}, tuple(pair), 0) for s in samples for pair in s["arguments"]],
        disable_tqdm=True,
    )
    found = [tuple(answer) for s in samples for answer in s["filtered_resps"]]
    assert_same_answers(found, expected)
    assert results["config"]["neuronllm"] == {
        "condition": "suppress_good",
        "positions": "scored",
        "suppress_scale": 0.5,
        "enhance_scale": 2.0,
        "n_good": 8,
        "n_bad": 8,
        "mask_hash": mask_hash(direct._mask.factors.numpy()),
        "model_hash": NEURONS.provenance.model_hash,
    }
    plain = run("hf", base)
    bare = run("neuronllm", base)
    assert bare["results"] == plain["results"]
    stripped = [answer for s in bare["samples"]["demo_topic"] for answer in s["filtered_resps"]]
    stock = [answer for s in plain["samples"]["demo_topic"] for answer in s["filtered_resps"]]
    assert_same_answers(stripped, stock, tolerance=2e-5)
    assert stripped != found
    to_the_bit = run("neuronllm", f"{base},fast=False")
    assert stock == [
        answer for s in to_the_bit["samples"]["demo_topic"] for answer in s["filtered_resps"]
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"condition": "enhance"},
        {"positions": "all"},
        {"max_length": 32},
        {"add_bos_token": True},
        {"softmax_dtype": "float64"},
        {"prefix_token_id": 5},
        {"neurons": many_neurons(1)},
    ],
)
def test_answers_are_those_of_all_that_decides_them(changes):
    assert masked(**changes)._identity() != masked()._identity()
    assert masked(batch_size=3, fast=False)._identity() == masked()._identity()


def test_a_cache_of_other_answers_is_refused(tmp_path):
    # lm_eval's --use_cache knows a request by its text alone, whatever the model.
    manager = TaskManager(include_path=include_paths(), include_defaults=False)

    def run(lm):
        results = lm_eval.simple_evaluate(
            lm, tasks=["demo_topic"], limit=3, bootstrap_iters=0, task_manager=manager,
            use_cache=str(tmp_path / "answers"),
        )  # fmt: skip
        return [sample["filtered_resps"] for sample in results["samples"]["demo_topic"]]

    first = run(masked("unmasked"))
    assert run(masked("unmasked")) == first  # its own answers may be used again
    with pytest.raises(NeuronLLMError, match=r"cache"):
        run(masked("degrade"))
