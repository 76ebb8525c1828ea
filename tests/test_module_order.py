"""Who may import whom, who may print, and what nobody may call."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import neuronllm_eval

PACKAGE = Path(neuronllm_eval.__file__).parent
# A module imports only from modules above it.
ORDER = (
    "errors",
    "interrupts",
    "progress",
    "ranks",
    "terminal_text",
    "near_folders",
    "secret_arguments",
    "run_lock",
    "array_checks",
    "markdown_text",
    "strict_json",
    "strict_yaml",
    "positions",
    "prompts",
    "work",
    "checkpoint",
    "shared_work",
    "tasks_path",
    "packaged_recipes",
    "doc_groups",
    "aqua",
    "distractors",
    "prompt_style",
    "aqua_settings",
    "aqua_cleaning",
    "aqua_sources",
    "aqua_task",
    "aqua_metrics",
    "aqua_harness",
    "fingerprints",
    "score_tensors",
    "neurons",
    "architectures",
    "hooks",
    "precision",
    "scoring",
    "attention_masks",
    "prefill_passes",
    "prefix",
    "continuations",
    "staircase",
    "path_copies",
    "late_staircase",
    "option_head",
    "option_sequences",
    "one_pass",
    "replay",
    "fan_out",
    "exactness",
    "engine",
    "fork_check",
    "attribution",
    "score_sums",
    "methods",
    "selection",
    "letter_bias",
    "set_overlap",
    "norms",
    "token_effects",
    "neuron_tokens",
    "conditions",
    "edited_neurons",
    "hub",
    "mask_options",
    "mask_identity",
    "ia3",
    "exported",
    "control_rank",
    "demo",
    "harness_tasks",
    "adapter_words",
    "adapter_text",
    "adapter_source",
    "adapter",
    "model_card",
    "encoding",
    "doc_words",
    "requests",
    "batch_sizes",
    "identification",
    "knockouts",
    "planted_neurons",
    "planted_wiring",
    "planted_head",
    "planted",
    "selftest",
    "masked_scoring",
    "hf_loading",
    "same_model",
    "adapter_base",
    "masked_lm",
    "harness_results",
    "sweep",
    "validation",
    "option_scores",
    "resampling",
    "sign_flips",
    "relative_changes",
    "statistics",
    "mcnemar",
    "holm",
    "stability",
    "doc_table",
    "summary",
    "answers",
    "estimate",
    "evidence",
    "report_tables",
    "report",
    "estimate_text",
    "settings",
    "run_directory",
    "run_search",
    "whole_folder",
    "adapter_files",
    "reproduce",
    "stored_run",
    "judged_docs",
    "explained_tokens",
    "run_details",
    "asked_words",
    "answer_tables",
    "neuron_tables",
    "report_details",
    "drawing",
    "charts",
    "panels",
    "page_sections",
    "report_page",
    "judged",
    "loading",
    "skeleton",
    "merged",
    "run_tasks",
    "resuming",
    "asked_again",
    "verification",
    "neuron_evidence",
    "explanation",
    "explanation_text",
    "explain_stage",
    "stored_summary",
    "comparability",
    "asked_docs",
    "run_terms",
    "compared",
    "compared_runs",
    "comparison_names",
    "method_effects",
    "method_differences",
    "comparison",
    "comparison_json",
    "comparison_tables",
    "comparison_text",
    "leaderboard_choices",
    "leaderboard",
    "leaderboard_runs",
    "leaderboard_filters",
    "leaderboard_overlaps",
    "leaderboard_labels",
    "leaderboard_text",
    "leaderboard_overlap_text",
    "leaderboard_latex",
    "leaderboard_tables",
    "preparation",
    "set_aside",
    "finished_run",
    "identified_files",
    "identify_stage",
    "validate_stage",
    "report_stage",
    "task_results",
    "closing_table",
    "overview",
    "report_command",
    "selftest_command",
    "method_arguments",
    "run_command",
    "config_file",
    "arguments",
    "help_examples",
    "export_command",
    "hub_command",
    "explain_command",
    "compare_command",
    "launching",
    "identify_command",
    "validate_command",
    "leaderboard_command",
    "parsers",
    "cli",
    "api",
    "__main__",
)
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "torch.load",
    "pickle.load",
    "pickle.loads",
    "yaml.load",
    "yaml.unsafe_load",
}
FORBIDDEN_MODULES = {"pickle", "dill", "joblib", "marshal", "shelve", "cloudpickle"}
PRINTING = {"cli.py", "__main__.py", "demo/train.py"}


def sources() -> dict[str, ast.Module]:
    """Every source file of the package by its path below it."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return {
        path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in paths
    }


def module_of(path: str) -> str:
    """The first name below the package: `demo` for all that lies in `demo/`."""
    return path.split("/")[0].removesuffix(".py")


def imports(tree: ast.Module) -> set[str]:
    """Full names of the modules that a file imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            assert node.module is not None
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own_imports(tree: ast.Module) -> set[str]:
    """Modules of the package that a file imports, as they are listed in ORDER."""
    parts = [name.split(".") for name in imports(tree)]
    own = {part[1] for part in parts if part[0] == "neuronllm_eval" and len(part) > 1}
    return {name for name in own if not name.startswith("__")}  # __version__


def calls(tree: ast.Module) -> set[str]:
    """Names of what a file calls, as written."""
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


FILES = sources()


def test_every_module_has_its_place():
    modules = {module_of(path) for path in FILES} - {"__init__"}
    assert modules == set(ORDER)
    assert len(set(ORDER)) == len(ORDER)


@pytest.mark.parametrize("path", FILES)
def test_imports_come_from_above(path):
    own = module_of(path)
    if own == "__init__":  # for type checkers only (test_api); it loads the names when asked for
        above: tuple[str, ...] = ORDER
    else:
        above = ORDER[: ORDER.index(own) + (own == "demo")]  # within the demo, from each other
    assert own_imports(FILES[path]) <= set(above)


@pytest.mark.parametrize("path", FILES)
def test_only_the_command_line_prints(path):
    if path in PRINTING:
        assert "print" in calls(FILES[path]), "then it need not be in PRINTING"
    else:
        assert calls(FILES[path]) & {"print", "sys.stdout.write", "sys.stderr.write"} == set()


@pytest.mark.parametrize("path", FILES)
def test_nothing_runs_code_from_a_file(path):
    tree = FILES[path]
    assert calls(tree) & FORBIDDEN_CALLS == set()
    assert {name.split(".")[0] for name in imports(tree)} & FORBIDDEN_MODULES == set()


def test_the_checks_see_what_they_look_for():
    tree = ast.parse(
        "import pickle\nfrom neuronllm_eval import cli\nfrom neuronllm_eval.demo.words import x\n"
        "def f():\n    import neuronllm_eval.engine\n    print(torch.load(eval('1')))\n"
    )
    assert own_imports(tree) == {"cli", "demo", "engine"}
    assert calls(tree) == {"print", "torch.load", "eval"}
    assert "pickle" in imports(tree)
