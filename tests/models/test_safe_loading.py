"""Nothing in the package unpickles, or runs code that came in a file, but for the harness's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import neuronllm_eval
from neuronllm_eval.harness import tasks_dir

PACKAGE = Path(neuronllm_eval.__file__).parent
SOURCES = [*sorted(PACKAGE.rglob("*.py")), *sorted(tasks_dir().rglob("*.py"))]
FORBIDDEN = {
    "pickle": r"\b(c?[pP]ickle|dill|marshal|shelve|joblib)\b(?!\.$)",
    "torch.load": r"\btorch\.load\b",
    "eval": r"(?<![\w.])eval\(",
    "exec": r"(?<![\w.])exec\(",
    "yaml.load": r"\byaml\.(unsafe_|full_)?load(_all)?\(",
    "remote code": r"trust_remote_code\W+True",
    "numpy objects": r"allow_pickle\W+True",
    "shell": r"shell\W+True|\bos\.system\b",
}
SAYS_SO = re.compile(r"(no|without) pickle")  # a docstring may say that there is none


def offences(text: str) -> set[str]:
    """Which of the forbidden things a source text has."""
    text = SAYS_SO.sub("", text)
    return {name for name, pattern in FORBIDDEN.items() if re.search(pattern, text)}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_nothing_unpickles_or_runs_code_of_a_file(path):
    assert offences(path.read_text(encoding="utf-8")) == set()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("import pickle", "pickle"),
        ("from joblib import load", "pickle"),
        ("torch.load(path)", "torch.load"),
        ("x = eval(text)", "eval"),
        ("exec(code)", "exec"),
        ("yaml.load(text)", "yaml.load"),
        ("yaml.unsafe_load(text)", "yaml.load"),
        ("f(trust_remote_code=True)", "remote code"),
        ('{"trust_remote_code": True}', "remote code"),
        ("np.load(path, allow_pickle=True)", "numpy objects"),
        ("subprocess.run(text, shell=True)", "shell"),
    ],
)
def test_each_is_seen(text, name):
    assert offences(text) == {name}


@pytest.mark.parametrize("text", ["model.eval()", "Saved without pickle.", "yaml.safe_load(text)"])
def test_what_is_harmless_is_not(text):
    assert offences(text) == set()
