"""Task files of other people: nothing of a task that is refused runs; Jinja reaches no code."""

from __future__ import annotations

import pytest
from jinja2.exceptions import SecurityError

from neuronllm_eval.errors import TaskError
from tests.fixtures.harness import TaskFolder


@pytest.fixture
def folder(tmp_path) -> TaskFolder:
    return TaskFolder(tmp_path / "tasks")


def test_a_task_of_another_type_is_refused_before_anything_of_it_runs(folder):
    # As the harness's ruler, which loads the model's tokenizer with the code of its repository.
    folder.write("said", output_type="generate_until", doc_to_choice=None)
    made = folder.path / "made"
    (folder.path / "own.py").write_text(f"import os\nos.mkdir({str(made)!r})\nload = None\n")
    with (folder.path / "said.yaml").open("a") as file:
        file.write("custom_dataset: !function own.load\n")
    (folder.path / "all.yaml").write_text("group: all_said\ntask: [said]\n")
    (folder.path / "tagged.yaml").write_text("include: said.yaml\ntask: other\ntag: tagged\n")
    for name in ("said", "all_said", "tagged"):
        with pytest.raises(TaskError, match="has output_type generate_until"):
            folder.load(name)
    assert not made.exists()


@pytest.mark.parametrize(
    "template",
    ["{{ ''.__class__.__mro__ }}", "{{ cycler.__init__.__globals__.os.getcwd() }}",
     "{{ '{0.__class__}'.format(1) }}"],
)  # fmt: skip
def test_the_harness_renders_templates_in_a_sandbox(folder, template):
    folder.write("plain")
    task = folder.load("plain")
    task.config.doc_to_text = template
    with pytest.raises(SecurityError):
        task.doc_to_text({"a": 1})
