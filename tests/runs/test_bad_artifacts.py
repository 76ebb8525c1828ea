"""Spoiled run directories: each is refused with one message, and stays as it is."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from neuronllm_eval.runs.directory import RunDirectory
from tests.fixtures.cli import (
    assert_one_message,
    call,
    copy_of,
    finished_run,
    without_the_harness_tasks,
)
from tests.fixtures.damage import (
    Damage,
    as_bytes,
    as_json,
    as_yaml,
    contents,
    folder,
    gone,
    header,
    laughs,
    lines,
    replaced,
    settings,
    sparse,
    tensors,
)

DIGITS = "9" * 5000  # more than Python makes an integer of
DEEP = "[" * 100_000
HUGE = 10**400  # an integer that no float can hold


@pytest.fixture(autouse=True)
def _only_own_tasks(monkeypatch):
    without_the_harness_tasks(monkeypatch)


@pytest.fixture
def copied(tmp_path) -> RunDirectory:
    return copy_of(finished_run(), tmp_path / "copy")


def rows(line: dict) -> dict:
    return line["loglikelihoods"]


def each(change):
    """Do the same to every line."""

    def change_all(found: list) -> None:
        for line in found:
            change(line)

    return change_all


def all_arrays(make):
    """Other arrays in place of all, made from their leading dimensions and their type."""
    return tensors(lambda t: t.update({k: make(v.shape[:-2], v.dtype) for k, v in t.items()}))


REPORT: list[tuple[str, Damage, tuple[str, ...]]] = [
    # run.yaml
    ("empty", as_bytes("run.yaml", ""), ("run.yaml: the content is None",)),
    ("cut", as_bytes("run.yaml", "settings: [1"), ("run.yaml cannot be read",)),
    ("binary", as_bytes("run.yaml", b"\x00\x01"), ("run.yaml cannot be read",)),
    ("not utf-8", as_bytes("run.yaml", b"\xff\xfe"), ("run.yaml cannot be read", "utf-8")),
    ("two documents", as_bytes("run.yaml", "a: 1\n---\nb: 2\n"), ("single document",)),
    ("yaml deep", as_bytes("run.yaml", DEEP), ("more than 50 levels",)),
    ("yaml laughs", as_bytes("run.yaml", laughs()), ("the alias *n0",)),
    ("python object", as_bytes("run.yaml", "a: !!python/name:os.system\n"), ("constructor",)),
    ("odd date", as_bytes("run.yaml", "a: 2024-13-45\n"), ("month must be in 1..12",)),
    ("odd integer", as_bytes("run.yaml", "a: !!int abc\n"), ("invalid literal",)),
    ("odd time", as_bytes("run.yaml", "a: !!timestamp now\n"), ("run.yaml cannot be read",)),
    ("odd boolean", as_bytes("run.yaml", "a: !!bool maybe\n"), ("run.yaml cannot be read",)),
    ("many digits", as_bytes("run.yaml", f"a: {DIGITS}\n"), ("run.yaml cannot be read",)),
    ("yaml too large", sparse("run.yaml", 5 << 20), ("bytes", "at most 4,194,304")),
    ("yaml key twice", replaced("run.yaml", "docs:", "schema_version: 3\ndocs:"), ("twice",)),
    ("unknown setting", settings(colour="red"), ("unknown setting 'colour'",)),
    ("another schema", as_yaml(lambda v: v.update(schema_version=1)), ("schema_version is 1",)),
    ("versions", as_yaml(lambda v: v.update(versions=5)), ("versions is 5",)),
    ("doc counts", as_yaml(lambda v: v.update(docs={"data": 5})), ("docs.data is 5",)),
    (
        "counts by reason",
        as_yaml(lambda v: v.update(docs={"data": {"skipped": {"<b>": "many"}}})),
        ("docs: data has", "not numbers of docs"),
    ),
    ("unknown counts", as_yaml(lambda v: v.update(docs={"more": {}})), ("docs.more",)),
    ("setting's type", settings(batch_size=True), ("settings: batch_size is True",)),
    ("not a number", settings(top_k=float("nan")), ("settings: top_k is nan",)),
    ("huge share", settings(top_z=HUGE), ("settings: top_z is 1000",)),
    ("engine", settings(engine="steam"), ("settings: engine is 'steam'", "fan_out")),
    ("method", settings(method="luck"), ("settings.method: unknown method 'luck'", "ace")),
    ("quadrature", settings(quadrature="simpson"), ("settings: quadrature", "gauss_legendre")),
    ("overlap", settings(overlap="keep"), ("settings: overlap", "refuse or drop")),
    ("relative folder", settings(include_path=["tasks"]), ("include_path has 'tasks'",)),
    ("another task", settings(task="demo_sentiment"), ("neurons.json has task 'demo_topic'",)),
    ("a path as task", settings(task="../../x"), ("settings.task is the path '../../x'",)),
    # neurons.json
    ("no neurons", gone("neurons.json"), ("there is no", "neurons.json")),
    ("neurons a folder", folder("neurons.json"), ("neurons.json",)),
    ("neurons cut", as_bytes("neurons.json", "{"), ("neurons.json is not valid JSON",)),
    ("neurons no text", as_bytes("neurons.json", b"\xff\xfe"), ("neurons.json cannot be read",)),
    ("neurons deep", as_bytes("neurons.json", DEEP), ("neurons.json is not valid JSON",)),
    ("neurons huge", sparse("neurons.json", 1 << 40), ("1,099,511,627,776 bytes", "at most")),
    ("digits", replaced("neurons.json", '"top_k": 6', f'"top_k": {DIGITS}'), ("4300 digits",)),
    ("key twice", replaced("neurons.json", '"top_k"', '"top_k": 6, "top_k"'), ("occurs twice",)),
    ("a list", as_bytes("neurons.json", "[]"), ("neurons.json: the content is []",)),
    ("n schema", as_json("neurons.json", lambda v: v.update(schema_version=[3])),
     ("schema_version is [3]",)),
    ("score NaN", as_json("neurons.json", lambda v: v["good"][0].update(score=float("nan"))),
     ("neurons.json: good.0.score is nan", "finite")),
    ("score huge", as_json("neurons.json", lambda v: v["bad"][0].update(score=HUGE)),
     ("neurons.json: bad.0.score is 1000",)),
    ("layer", as_json("neurons.json", lambda v: v["good"][0].update(layer=-1)),
     ("neurons.json: good neuron (layer -1", "2 layers of 48")),
    ("index", as_json("neurons.json", lambda v: v["good"][0].update(index=48)),
     ("neurons.json: good neuron", "2 layers of 48")),
    ("same neuron", as_json("neurons.json", lambda v: v["bad"].__setitem__(0, v["good"][0])),
     ("neurons.json: neurons listed twice",)),
    ("fewer asked", as_json("neurons.json", lambda v: v.update(top_k=1)),
     ("neurons.json: 6 good neurons with top_k=1",)),
    ("top_k huge", as_json("neurons.json", lambda v: v.update(top_k=10**30)), ("top_k is 1000",)),
    ("layers huge", as_json("neurons.json", lambda v: v.update(n_layers=10**9, width=10**9)),
     ("neurons.json: 1000000000 layers of",)),
    ("too many neurons", as_json("neurons.json", lambda v: v.update(n_layers=10**6, width=10**6)),
     ("neurons.json: 1000000 layers of 1000000 neurons",)),
    ("other shape", as_json("neurons.json", lambda v: v.update(n_layers=3, activation_levels=[])),
     ("different runs",)),
    ("sizes of fewer layers", as_json("neurons.json", lambda v: v["activation_levels"].pop()),
     ("activation_levels are of 1 layers",)),
    ("other weights", as_json("neurons.json", lambda v: v["provenance"].update(model_hash="0")),
     ("are of different runs", "the same model")),
    ("provenance", as_json("neurons.json", lambda v: v["provenance"].update(seed=True)),
     ("provenance.seed is True",)),
    # scores.safetensors
    ("no scores", gone("scores.safetensors"), ("there is no", "scores.safetensors")),
    ("scores a folder", folder("scores.safetensors"), ("scores.safetensors is not a file",)),
    ("pickle", as_bytes("scores.safetensors", b"\x80\x04\x95"), ("scores.safetensors cannot be",)),
    ("header's length", as_bytes("scores.safetensors", b"\xff" * 64), ("scores.safetensors can",)),
    ("huge shape", header(lambda h: h["score"].update(shape=[2**40, 2**40])), ("cannot be read",)),
    ("negative shape", header(lambda h: h["score"].update(shape=[-1, 4])), ("cannot be read",)),
    ("same bytes",
     header(lambda h: h["score"].update(data_offsets=h["good_count"]["data_offsets"])),
     ("cannot be read",)),
    ("no such type", header(lambda h: h["score"].update(dtype="F8_E4M3", shape=[16, 48])),
     ("scores.safetensors",)),
    ("more metadata", header(lambda h: h["__metadata__"].update(neuronllm_eval="")),
     ("metadata is not",)),
    ("metadata", header(lambda h: h["__metadata__"].update(neuronllm_eval="5")),
     ("metadata: the content is 5",)),
    ("more tensors", tensors(lambda t: t.update(x=np.zeros(3))), ("unknown tensors: x",)),
    ("fewer tensors", tensors(lambda t: t.pop("score")), ("unknown tensors: score",)),
    ("NaN", tensors(lambda t: t["score"].__setitem__((0, 0), np.nan)),
     ("contains NaN or infinity",)),
    ("float32", tensors(lambda t: t.update(score=t["score"].astype(np.float32))),
     ("type float32",)),
    ("negative count", tensors(lambda t: t["bad_count"].__setitem__((0, 0), -5)), ("contains -5",)),
    ("more than asked", tensors(lambda t: t["good_count"].__setitem__((0, 0), 99)),
     ("scores.safetensors: 99 of 4 questions",)),
    ("no letters", tensors(lambda t: t.update(letter_sums=t["letter_sums"][:0])), ("0 letters",)),
    ("no neuron", all_arrays(lambda lead, kind: np.zeros((*lead, 0, 0), kind)),
     ("score has shape (0, 0)",)),
    ("empty but huge", all_arrays(lambda lead, kind: np.zeros((*lead, 0, 10**12), kind)),
     ("score has shape (0, 1000000000000)",)),
    ("shapes", all_arrays(lambda lead, kind: np.zeros((*lead, 3, 5), kind)), ("different runs",)),
    # validation.json
    ("no validation", gone("validation.json"), ("there is no", "validation.json")),
    ("validation a folder", folder("validation.json"), ("validation.json is not a file",)),
    ("judged none", as_json("validation.json", lambda v: v.update(top_k=0)),
     ("validation.json: top_k is 0", "greater")),
    ("judged more", as_json("validation.json", lambda v: v.update(top_k=7)),
     ("validation.json: top_k is 7", "1 to 6")),
    ("judged text", as_json("validation.json", lambda v: v.update(top_k="6")), ("top_k is '6'",)),
    ("scale NaN", as_json("validation.json", lambda v: v.update(suppress_scale=float("nan"))),
     ("validation.json: suppress_scale is nan",)),
    ("scale huge", as_json("validation.json", lambda v: v.update(enhance_scale=HUGE)),
     ("validation.json: enhance_scale is 1000",)),
    ("positions", as_json("validation.json", lambda v: v.update(positions="everywhere")),
     ("validation.json: positions: 'everywhere' is not scored or all",)),
    ("batches of none", as_json("validation.json", lambda v: v.update(batch_size=0)),
     ("validation.json: batch_size is 0", "or equal to 1")),
    ("batches of some", as_json("validation.json", lambda v: v.update(batch_size="auto")),
     ("validation.json: batch_size is 'auto'", "int")),
    ("judged docs", as_json("validation.json", lambda v: v.update(docs={"prompts": "x"})),
     ("validation.json: docs.prompts is 'x'",)),
    # conditions.jsonl
    ("no line", as_bytes("conditions.jsonl", ""), ("conditions.jsonl: the file is empty",)),
    ("conditions a folder", folder("conditions.jsonl"), ("conditions.jsonl is not a file",)),
    ("conditions cut", as_bytes("conditions.jsonl", '{"quest'),
     ("conditions.jsonl, line 1 is cut off",)),
    ("conditions no text", as_bytes("conditions.jsonl", b"\xff\n"), ("utf-8",)),
    ("conditions deep", as_bytes("conditions.jsonl", DEEP + "\n"), ("line 1 is not valid JSON",)),
    ("conditions digits", as_bytes("conditions.jsonl", f'{{"a": {DIGITS}}}\n'), ("4300 digits",)),
    ("no line break", sparse("conditions.jsonl", 64 << 20), ("conditions.jsonl, line 13",)),
    ("conditions huge", sparse("conditions.jsonl", 1 << 40), ("bytes", "at most 8,589,934,592")),
    ("line's key twice", replaced("conditions.jsonl", '"gold"', '"gold":0,"gold"'), ("twice",)),
    ("blank line", replaced("conditions.jsonl", "\n", "\n\n"), ("line 2 is not valid JSON",)),
    ("doc twice", lines(lambda x: x.append(x[0])), ("line 13 repeats doc 0",)),
    ("a text", lines(lambda x: rows(x[1])["unmasked"].__setitem__(0, "-1")), ("unmasked.0 is",)),
    ("likelihood NaN", lines(lambda x: rows(x[1])["unmasked"].__setitem__(0, float("nan"))),
     ("conditions.jsonl, line 2: loglikelihoods.unmasked.0 is nan",)),
    ("gold", lines(lambda x: x[0].update(gold=4)), ("line 1: gold is 4 of 4 options",)),
    ("condition gone", lines(lambda x: rows(x[1]).pop("enhance")), ("line 2 has other",)),
    ("a path as condition", lines(each(lambda line: rows(line).update({"../../x": [-1.0] * 4}))),
     ("conditions.jsonl: unknown condition '../../x'",)),
    ("a path as control",
     lines(each(lambda line: rows(line).update({"../x.random_1": [-1.0] * 4}))),
     ("conditions.jsonl: unknown condition '../x.random_1'",)),
    ("other task", lines(each(lambda line: line.update(task="x"))), ("has task 'x'",)),
    # results/<condition>.json
    ("result cut", as_bytes("results/unmasked.json", "{"), ("unmasked.json is not valid JSON",)),
    ("result no text", as_bytes("results/unmasked.json", b"\xff"), ("unmasked.json cannot be",)),
    ("result deep", as_bytes("results/unmasked.json", DEEP), ("unmasked.json is not valid JSON",)),
    ("result a list", as_bytes("results/unmasked.json", "[]"),
     ("unmasked.json: the content is []",)),
    ("result a folder", folder("results/unmasked.json"), ("unmasked.json is not a file",)),
    ("other result", as_json("results/unmasked.json", lambda v: v["results"].clear()),
     ("unmasked.json has no results of task demo_topic",)),
    # where the report goes
    ("report a folder", folder("report.md"), ("report.md is a folder",)),
    ("page a folder", folder("report.html"), ("report.html is a folder",)),
    # what it takes from other files
    ("words of no doc", as_bytes("validation_docs.jsonl", ""), ("has 0 docs",)),
    ("words cut", as_bytes("validation_docs.jsonl", '{"doc'),
     ("validation_docs.jsonl, line 1 is cut",)),
    ("words a folder", folder("validation_docs.jsonl"), ("jsonl is not a file",)),
    ("listed cut", as_bytes("tokens.json", "{"), ("tokens.json is not valid JSON",)),
    ("listed a folder", folder("tokens.json"), ("tokens.json is not a file",)),
    ("listed of no kind", as_json("tokens.json", lambda v: v["neurons"][0].update(kind="x")),
     ("tokens.json: neurons.0.kind is 'x'", "remove the file")),
    ("summary a folder", folder("summary.json"), ("summary.json is a folder",)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        pytest.param(damage, parts, id=f"{n}-{name}")
        for n, (name, damage, parts) in enumerate(REPORT)
    ],
)
def test_a_spoiled_run_is_refused_and_stays_as_it_is(copied, damage, parts):
    damage(copied)
    before = sizes_or_contents(copied)
    assert_one_message(call("report", copied.path), 1, *parts)
    assert sizes_or_contents(copied) == before


def sizes_or_contents(run: RunDirectory) -> object:
    """What a run holds; of a terabyte of nothing, its size."""
    sizes = {path.name: path.stat().st_size for path in run.path.rglob("*") if path.is_file()}
    return sizes if max(sizes.values()) > 1 << 28 else contents(run.path)


def own_folder(run: RunDirectory) -> None:
    """Tasks that come with the run directory, whose code would be run."""
    (run.path / "tasks").mkdir()
    settings(include_path=[str(run.path / "tasks")])(run)


def asking_for_code(run: RunDirectory) -> None:
    from tests.fixtures.harness import model_dir

    settings(model_args={"pretrained": str(model_dir()), "trust_remote_code": True})(run)


def of_origin(**changes: str) -> Damage:
    """Neurons and scores say so."""

    def in_header(values: dict[str, Any]) -> None:
        stored = json.loads(values["__metadata__"]["neuronllm_eval"])
        stored["provenance"].update(changes)
        values["__metadata__"]["neuronllm_eval"] = json.dumps(stored)

    def damage(run: RunDirectory) -> None:
        as_json("neurons.json", lambda v: v["provenance"].update(changes))(run)
        header(in_header)(run)

    return damage


def of_task(name: str) -> Damage:
    """Settings, neurons and scores say so."""

    def damage(run: RunDirectory) -> None:
        settings(task=name)(run)
        of_origin(task=name)(run)

    return damage


QUICK = ("--n_random", 0, "--conditions", "enhance")


@pytest.mark.parametrize(
    ("damage", "code", "parts"),
    [
        (own_folder, 1, ("include_path has", "outside the run directory")),
        (asking_for_code, 2, ("asks to run code of the repository", "--trust_remote_code")),
        (settings(include_path=["/no/such"]), 2, ("/no/such is not a directory",)),
        (settings(metadata={"overrides": [1]}), 2, ("overrides is [1]", "--metadata")),
        (settings(metadata={"n_proxies": [1]}), 2, ("n_proxies is [1]", "whole number")),
        (settings(model_args={}), 1, ("the model None cannot be loaded", "pretrained=")),
        (settings(model_args={"pretrained": 5}), 1, ("the model 5 cannot be loaded",)),
        (settings(device="banana"), 2, ("--device banana is unknown",)),
        (settings(batch_size=-1), 1, ("batch_size is -1",)),
        (settings(selection_split="gone"), 1, ("no split 'gone'", "selection, validation")),
        (settings(apply_chat_template="no"), 2, ("chat template",)),
        (of_task("demo"), 1, ("'demo' is not one task but 4",)),
        (of_task("demo_topic,demo_topic"), 1, ("is not one task but 1",)),
        (of_task("../../etc/passwd"), 1, ("settings.task is the path",)),
        (of_origin(model_hash="0" * 16), 1,
         ("found in other weights", "0000000000000000", "identify again")),
        (folder("validation.json"), 1, ("validation.json is a folder", "move the folder")),
        (folder("conditions.jsonl"), 1, ("conditions.jsonl is a folder",)),
        (folder("commands.jsonl"), 1, ("commands.jsonl is a folder", "move the folder")),
        (lambda run: (run.path / "checkpoint").touch(), 1, ("checkpoint is not a folder",)),
    ],
)  # fmt: skip
def test_a_spoiled_run_is_not_judged_and_keeps_its_validation(copied, damage, code, parts):
    damage(copied)
    before = contents(copied.path)
    assert_one_message(call("validate", copied.path, *QUICK), code, *parts)
    assert contents(copied.path) == before


def test_the_user_may_consent_to_code(copied):
    asking_for_code(copied)
    assert call("validate", copied.path, *QUICK, "--trust_remote_code")[0] == 0


@pytest.mark.parametrize("name", ["scores.safetensors", "tokens.json", "commands.jsonl"])
def test_a_validation_is_kept_where_the_next_could_not_be_reported(copied, name):
    (copied.path / name).write_bytes((copied.path / name).read_bytes()[:-9])
    before = contents(copied.path)
    result = call("validate", copied.path, "--overwrite", "--n_random", 1)
    assert_one_message(result, 1, name)
    assert contents(copied.path) == before
