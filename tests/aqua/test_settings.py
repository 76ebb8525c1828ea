"""Settings of AQUA tasks: checked when they are made, typos refused, the rest passed."""

from __future__ import annotations

import inspect

import pytest
from lm_eval.models.huggingface import HFLM

from neuronllm_eval.aqua.dataset import TASK_NAMES
from neuronllm_eval.aqua.dataset_source import DatasetSource
from neuronllm_eval.aqua.distractors import DISTRACTORS
from neuronllm_eval.aqua.proxies import LETTER_STYLES, LETTERS, ORDERS
from neuronllm_eval.aqua.settings import (
    ON_BAD_DOC,
    SETTING_NAMES,
    AquaSettings,
    split_settings,
    with_overrides,
)
from neuronllm_eval.errors import UsageError
from neuronllm_eval.masked_lm.mask_options import NAMES as MASK_NAMES
from neuronllm_eval.masked_lm.model import NeuronMaskedLM

SOURCE_NAMES = (*inspect.signature(DatasetSource).parameters, *TASK_NAMES)
# What the harness hands over besides: model arguments of its Hugging Face models and of ours, those
# they pass on to from_pretrained, and what task files have under metadata.
MODEL_ARGUMENTS = {
    *inspect.signature(HFLM.__init__).parameters,
    *inspect.signature(NeuronMaskedLM.__init__).parameters,
    *MASK_NAMES,
}
PASSED_ON = """
    attn_implementation bnb_4bit_compute_dtype bnb_4bit_quant_type cache_dir code_revision config
    device_map force_download ignore_mismatched_sizes load_in_4bit load_in_8bit local_files_only
    low_cpu_mem_usage max_memory precision quantization_config rope_scaling sliding_window
    token torch_dtype use_cache use_safetensors variant weights_only
""".split()
TASK_METADATA = """
    canonical_task config config_source description max_seq_lengths num_fewshot num_samples
    task_pretty_name version
""".split()


def test_defaults():
    assert split_settings({}, SOURCE_NAMES) == AquaSettings()
    assert AquaSettings() == AquaSettings(
        n_proxies=3,
        seed=0,
        orders="auto",
        letter_style="A.",
        n_options=None,
        distractors="none",
        on_bad_doc="skip",
        n_demonstrations=8,
        max_selection=10_000,
    )


def test_every_setting_is_taken_from_the_values():
    values = {
        "n_proxies": 5,
        "seed": 7,
        "orders": "swap",
        "letter_style": "(A)",
        "n_options": 4,
        "distractors": "length",
        "on_bad_doc": "fail",
        "n_demonstrations": 0,
        "max_selection": 1,
    }
    assert set(values) == set(SETTING_NAMES)
    assert split_settings({"path": "x", **values}, SOURCE_NAMES) == AquaSettings(**values)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("orders", ("auto", *ORDERS)),
        ("letter_style", LETTER_STYLES),
        ("distractors", DISTRACTORS),
        ("on_bad_doc", ON_BAD_DOC),
        ("n_options", (None, 2, len(LETTERS))),
    ],
)
def test_values_that_are_accepted(name, values):
    for value in values:
        assert getattr(AquaSettings(**{name: value}), name) == value


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("n_proxies", 0, r"n_proxies is 0\.\nExpected: a whole number, 1 or more"),
        ("n_proxies", "x", r"n_proxies is 'x'\.\nExpected: a whole number"),
        ("n_proxies", True, r"n_proxies is True\.\nExpected: a whole number"),
        ("seed", -1, r"seed is -1\.\nExpected: a whole number, 0 or more"),
        ("orders", "random", r"orders is 'random'\.\nExpected: auto or original or drawn or swap"),
        ("letter_style", "1.", r"letter_style is '1\.'\.\nExpected: A\. or A\) or"),
        ("n_options", 1, r"n_options is 1\.\nExpected: a whole number, 2 to 26"),
        ("n_options", 27, r"n_options is 27\.\nExpected: a whole number, 2 to 26"),
        ("distractors", "near", r"distractors is 'near'\.\nExpected: none or random or length"),
        ("on_bad_doc", "warn", r"on_bad_doc is 'warn'\.\nExpected: skip or fail"),
        ("n_demonstrations", -1, r"n_demonstrations is -1\.\nExpected: a whole number, 0 or more"),
        ("n_demonstrations", 1.5, r"n_demonstrations is 1\.5\.\nExpected: a whole number"),
        ("max_selection", 0, r"max_selection is 0\.\nExpected: a whole number, 1 or more"),
        ("max_selection", False, r"max_selection is False\.\nExpected: a whole number"),
    ],
)
def test_values_that_no_task_can_make_right_are_refused(name, value, message):
    with pytest.raises(UsageError, match=message):
        split_settings({name: value}, SOURCE_NAMES)


@pytest.mark.parametrize(
    ("slip", "close"),
    [
        ("n_proxie", "n_proxies"),
        ("num_proxies", "n_proxies"),
        ("seeds", "seed"),
        ("order", "orders"),
        ("letter-style", "letter_style"),
        ("n_option", "n_options"),
        ("distractor", "distractors"),
        ("on_bad_docs", "on_bad_doc"),
        ("n_demonstration", "n_demonstrations"),
        ("max_selections", "max_selection"),
        ("selection_splits", "selection_split"),
        ("data_file", "data_files"),
        ("choice", "choices"),
        ("override", "overrides"),
    ],
)
def test_a_typo_is_refused_with_the_close_name(slip, close):
    message = rf"the setting '{slip}' is unknown\.\nExpected: '{close}', perhaps\.\nRemedy: fix"
    with pytest.raises(UsageError, match=message):
        split_settings({slip: 1}, SOURCE_NAMES)


@pytest.mark.parametrize("name", sorted({*MODEL_ARGUMENTS, *PASSED_ON, *TASK_METADATA}))
def test_what_the_harness_hands_over_besides_is_passed_over(name):
    assert split_settings({name: object()}, SOURCE_NAMES) == AquaSettings()


def test_no_argument_of_the_models_means_anything_to_a_task():
    # The harness merges both, so that a name in both would mean the wrong thing in one.
    assert not {*MODEL_ARGUMENTS, *PASSED_ON} & {*SETTING_NAMES, *SOURCE_NAMES}


def test_overrides_go_before_all_else_and_must_mean_something():
    values = {"n_proxies": 3, "path": "x", "overrides": {"n_proxies": 2, "path": None}}
    found = with_overrides(values, ["path"])
    assert (found["n_proxies"], found["path"]) == (2, None)
    with pytest.raises(UsageError, match=r"overrides name 'data_files', which the task does not"):
        with_overrides({"overrides": {"data_files": {}}}, ["path"])
