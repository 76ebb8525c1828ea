"""`neuronllm-eval run`: what cannot be right is refused before anything heavy is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from lm_eval.utils import (
    get_file_task_name,
    get_latest_filename,
    get_results_filenames,
    get_sample_results_filenames,
    sanitize_model_name,
)

from neuronllm_eval.cli.run_lm_eval import _without_token, refuse_run, run_lm_eval
from neuronllm_eval.errors import NeuronLLMError
from neuronllm_eval.harness import tasks_dir
from tests.fixtures.cli import (
    assert_one_message,
    call,
    finished_run,
    jsonl,
    without_the_harness_tasks,
)
from tests.fixtures.harness import model_dir

HEAVY = (
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "lm_eval.tasks",
)
SOME_TASK = ("--model", "neuronllm", "--tasks", "demo_topic")


def refused(*given: object) -> str:
    with pytest.raises(NeuronLLMError) as error:
        refuse_run([str(word) for word in given])
    return f"{error.value.exit_code} {error.value}"


def test_a_typo_is_refused_with_nothing_heavy_imported():
    script = (
        "import json, sys\nfrom neuronllm_eval.__main__ import main\n"
        "sys.argv = ['neuronllm-eval', 'run', '--model', 'neuronllm', '--model_args',\n"
        "            'pretrained=m,condition=supress_good,neurons=nowhere']\n"
        f"print(json.dumps([main(), [name for name in {HEAVY} if name in sys.modules]]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert json.loads(done.stdout) == [2, []], done.stderr
    assert_one_message((2, "", done.stderr), 2, "unknown condition 'supress_good'")


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (("--tasks", "aqua:arc_easy"), ("2 lm_eval does not know aqua:arc_easy", "tasks make")),
        ((*SOME_TASK, "--model_args", "pretrained=m,condition=degrade"), ("without neurons",)),
        (
            (*SOME_TASK, "--model_args", "pretrained=m,neurons=x,condition=harm"),
            ("2 unknown condition 'harm'", "Remedy: check condition in --model_args."),
        ),
        (
            (*SOME_TASK, "--model_args", "pretrained=m,neurons=x,condition=suppress_good,scale=no"),
            ("2 the suppress scale is 'no'",),
        ),
        (
            (*SOME_TASK, "--model_args", "pretrained=m,neurons=nowhere,condition=suppress_good"),
            ("1 there is no nowhere/neurons.json",),
        ),
        ((*SOME_TASK, "--model_args", "pretrained=m,positions=some"), ("2 positions is 'some'",)),
        ((*SOME_TASK, "--model_args", "pretrained=m,max_length=abc"), ("2 max_length is 'abc'",)),
    ],
)
def test_what_is_refused(given, parts):
    said = refused(*given)
    for part in parts:
        assert part in said


def test_an_output_path_that_cannot_be_used_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    given = ("--model", "hf", "--tasks", "x", "--output_path")
    assert "not a directory that can be written" in refused(*given, tmp_path / "file" / "deeper")
    refuse_run([*given, str(tmp_path / "results.json")])  # lm_eval writes into its folder


def test_neurons_one_level_too_high_or_low_name_the_run():
    run = finished_run()
    given = (*SOME_TASK, "--model_args")
    for neurons in (run.path.parent, run.path / "results"):
        said = refused(*given, f"pretrained=m,condition=degrade,neurons={neurons}")
        assert f"1 {neurons} holds no neurons.json" in said
        assert f"pass neurons= one of: {run.path}." in said


def test_what_may_be_right_is_left_to_lm_eval(tmp_path):
    (tmp_path / "some.yaml").write_text("model: hf\n")
    refuse_run([*SOME_TASK, "--model_args", f"pretrained=m,neurons={finished_run().path},"
                "condition=suppress_good.k2.x0.5,top_k=3"])  # fmt: skip
    refuse_run([*SOME_TASK, "--config", str(tmp_path / "some.yaml")])  # which may name the model
    refuse_run(["--model", "hf", "--tasks", "no_such_task"])


def test_what_lm_eval_refuses_itself_ends_with_its_message(capsys, tmp_path):
    for words in (("--tsks", "x"), ("--limit", "many")):
        with pytest.raises(SystemExit) as stop:
            run_lm_eval(words)
        assert stop.value.code == 2
        assert words[0] in capsys.readouterr().err
    config = tmp_path / "run.yaml"
    config.write_text("tsks: x")
    for content in ("tsks: x", "tasks: [", "- tasks"):
        config.write_text(content)
        assert_one_message(call("run", "--config", config), 1, "lm_eval stopped: ")


@pytest.mark.parametrize(
    ("content", "own"),
    [
        ("model: neuronllm\ntasks: demo_topic\n", False),
        ("model: neuronllm\ntasks: mine\ninclude_path: my_tasks\n", True),
    ],
)
def test_folders_of_tasks_in_a_file_are_left_as_they_are(tmp_path, monkeypatch, content, own):
    import lm_eval.__main__

    config = tmp_path / "run.yaml"
    config.write_text(content)
    given = []
    monkeypatch.setattr(lm_eval.__main__, "cli_evaluate", lambda: given.extend(sys.argv))
    assert run_lm_eval(["--config", str(config)]) == 0
    assert ("--include_path" in given) != own


def test_lm_evals_loggers_take_a_masked_run(tmp_path, monkeypatch, caplog):
    """Stand-ins for wandb and trackio; lm_eval itself only logs what goes wrong in them."""
    without_the_harness_tasks(monkeypatch)
    wandb, trackio = MagicMock(__version__="0.31.0", run=None), MagicMock()
    for name in ("", ".sdk", ".sdk.lib", ".sdk.lib.printer"):
        monkeypatch.setitem(sys.modules, f"wandb{name}", wandb)
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    model_args = f"pretrained={model_dir()},neurons={finished_run().path},condition=degrade"
    code, _, err = call(
        *("run", "--model", "neuronllm", "--model_args", model_args, "--tasks", "demo_topic"),
        *("--limit", 3, "--batch_size", 3, "--device", "cpu", "--include_path", tasks_dir()),
        *("--log_samples", "--output_path", tmp_path),
        *("--wandb_args", "project=mine", "--trackio_args", "project=mine"),
    )
    assert code == 0, err
    assert not [each for each in caplog.records if "failed" in each.getMessage().lower()]
    assert wandb.init.call_args.kwargs["project"] == "mine"
    assert trackio.init.call_args.kwargs["project"] == "mine"
    kinds = {each.kwargs["type"] for each in wandb.Artifact.call_args_list}
    assert kinds == {"eval_results", "samples_by_task"}
    assert trackio.Trace.called
    for run in (wandb.init.return_value, trackio):
        logged = [each.args[0] for each in run.log.call_args_list if each.args]
        assert any("demo_topic/acc_consistent" in each for each in logged if isinstance(each, dict))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # of PEFT
def test_scripts_that_read_lm_evals_files_find_those_of_a_run(tmp_path, monkeypatch):
    """As its `scripts/zeno_visualize.py` looks for them and takes them apart."""
    without_the_harness_tasks(monkeypatch)
    run = finished_run()
    base = f"pretrained={model_dir()}"
    adapter = run.path / "adapters" / "enhance"
    for model, model_args in (
        ("neuronllm", f"{base},neurons={run.path},condition=enhance"),
        ("neuronllm", f"{base},neurons={run.path},condition=suppress_good"),
        ("hf", f"{base},peft={adapter}"),
    ):
        code, _, err = call(
            *("run", "--model", model, "--model_args", model_args, "--tasks", "demo_topic"),
            *("--limit", 3, "--batch_size", 3, "--device", "cpu", "--include_path", tasks_dir()),
            *("--log_samples", "--output_path", tmp_path),
        )
        assert code == 0, err
    # A folder is named by pretrained alone, or by an adapter: two conditions share one.
    of_masks = tmp_path / sanitize_model_name(str(model_dir()))
    of_adapter = tmp_path / sanitize_model_name(str(adapter))
    assert {path for path in tmp_path.iterdir()} == {of_masks, of_adapter}
    files = [path.as_posix() for path in of_masks.iterdir()]
    found, samples = get_results_filenames(files), get_sample_results_filenames(files)
    assert (len(found), len(samples), len(files)) == (2, 2, 4)
    latest = json.loads(Path(get_latest_filename(found)).read_text())
    assert latest["config"]["model_args"]["condition"] == "suppress_good"
    assert list(latest["configs"]) == ["demo_topic"]
    config = latest["configs"]["demo_topic"]
    assert config["output_type"] == "multiple_choice"
    path = Path(get_latest_filename(samples))
    assert get_file_task_name(path.name) == "demo_topic"
    lines = jsonl(path)
    assert len(lines) == 3
    metrics = [metric["metric"] for metric in config["metric_list"]]
    assert "acc" in metrics
    for line in lines:
        assert line["arguments"]["gen_args_0"]["arg_0"].endswith("Answer:")
        assert len(line["filtered_resps"]) == len(line["arguments"]) == 4
        assert {"doc_id", "target", "filter", *metrics} <= set(line)
    # What validate writes into a run directory is no such file.
    stored = [each.as_posix() for each in run.path.rglob("*.json*")]
    assert get_results_filenames(stored) == get_sample_results_filenames(stored) == []


def test_a_run_by_a_file_with_a_task_of_its_own(tmp_path, monkeypatch):
    without_the_harness_tasks(monkeypatch)
    tasks = tmp_path / "my_tasks"
    tasks.mkdir()
    (tasks / "mine.yaml").write_text(f"include: {tasks_dir()}/demo/demo_topic.yaml\ntask: mine\n")
    run = finished_run()
    config = tmp_path / "run.yaml"
    config.write_text(
        f"model: neuronllm\ntasks: [mine]\ninclude_path: {tasks}\nlimit: 3\nbatch_size: 3\n"
        f"device: cpu\noutput_path: {tmp_path / 'out'}\nmodel_args:\n  pretrained: {model_dir()}\n"
        f"  neurons: {run.path}\n  condition: suppress_good\n"
    )
    code, out, err = call("run", "--config", config)
    assert code == 0, err
    assert "mine" in out
    (results,) = (tmp_path / "out").rglob("results_*.json")
    values = json.loads(results.read_text())
    assert values["config"]["model_args"]["condition"] == "suppress_good"
    assert get_results_filenames([str(results)]) == [str(results)]


# Secrets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "left"),
    [
        ("pretrained=m,token=hf_x,dtype=y", "pretrained=m,dtype=y"),
        ("--model_args=token=hf_x,pretrained=m", "--model_args=pretrained=m"),
        ('{"pretrained": "m", "token": "hf_x"}', '{"pretrained": "m"}'),
        ("token=hf_x", ""),
        ("pretrained=m,tokenizer=t", "pretrained=m,tokenizer=t"),
    ],
)
def test_the_token_is_taken_from_a_word(word, left):
    assert _without_token(word) == left


def test_lm_eval_neither_prints_nor_writes_the_token(tmp_path, monkeypatch, caplog):
    without_the_harness_tasks(monkeypatch)
    monkeypatch.setenv("HF_TOKEN", "")
    model_args = f"pretrained={model_dir()},token=hf_s3cret"
    with caplog.at_level("DEBUG"):
        code, out, err = call(
            "run", *SOME_TASK, "--model_args", model_args, "--device", "cpu", "--limit", 2,
            "--output_path", tmp_path,
        )  # fmt: skip
    assert code == 0, err
    assert os.environ["HF_TOKEN"] == "hf_s3cret"  # where the Hub's client looks for it
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    assert "s3cret" not in "".join([out, err, caplog.text, *written])


@pytest.mark.parametrize("content", ["{token: hf_x}", "'pretrained=a,token=hf_x'"])
def test_a_token_in_a_file_of_flags_is_refused(tmp_path, content):
    config = tmp_path / "run.yaml"
    config.write_text(f"model_args: {content}\ntasks: demo_topic\n")
    result = call("run", "--config", config)
    assert_one_message(result, 2, "has a token among its model_args", "HF_TOKEN")
    assert "hf_x" not in result[2]
