"""Examples that the commands' `--help` ends with."""

from __future__ import annotations

from collections.abc import Mapping

ALL = """examples:
  # the embedded model on its four families of questions
  neuronllm-eval identify --tasks demo --output_path runs/demo
  neuronllm-eval validate runs/demo

  # a model of the Hub on a multiple-choice task of the harness
  neuronllm-eval identify --tasks mmlu_professional_law --selection_split validation \\
      --model_args pretrained=meta-llama/Llama-3.2-1B --batch_size 16 --output_path runs/law
  neuronllm-eval validate runs/law

  # what the top neurons do, and all runs in one table
  neuronllm-eval explain runs/demo --batch_size 48
  neuronllm-eval leaderboard runs

  # lm_eval's own command line, with the masked model registered
  neuronllm-eval run --model neuronllm --tasks demo_topic \\
      --model_args pretrained=M,neurons=runs/demo/demo_topic,condition=suppress_good

`neuronllm-eval COMMAND --help` has examples of each command.
"""

# By command, pairs of what is done and how, without `neuronllm-eval` and the command's name.
_OF_COMMAND: Mapping[str, tuple[tuple[str, str], ...]] = {
    "identify": (
        (
            "the AQUA form of a harness task, on a model of the Hub",
            "--tasks aqua:mmlu_professional_law --batch_size auto \\\n"
            "      --model_args pretrained=meta-llama/Llama-3.2-1B,dtype=bfloat16 -o runs/law",
        ),
        ("what that would take, measured on a few prompts", "--tasks aqua_arc_challenge --dry_run"),
        (
            "several methods from one pass, a run directory each",
            "--tasks demo_topic --method ace,kn,tn -o runs/methods",
        ),
    ),
    "validate": (
        ("all conditions, each beside 20 random controls", "runs/demo"),
        (
            "every condition at these numbers of neurons and factors",
            "runs/demo --top_k 10,20,40 --scale 0,0.5,1.5,2,4",
        ),
        ("two conditions, on every position", "runs/demo --conditions degrade,enhance "
         "--positions all"),
    ),
    "report": (("write summary.json, report.md and report.html again", "runs/demo"),),
    "verify": (
        ("ask 20 questions of each split again", "runs/demo"),
        ("compute all scores again", "runs/demo/demo_topic --limit 100000"),
    ),
    "explain": (("the first ten good and bad neurons of four tasks", "runs/demo --top_n 10"),),
    "compare-methods": (
        (
            "three methods, two numbers of neurons, three seeds",
            "--tasks demo_topic --method ace,gradxact,kn --top_k 10,41 --seeds 0 1 2",
        ),
        ("the paper's setting", "--config paper"),
    ),
    "compare": (("all runs below a folder, tested against kn", "runs/methods --against kn"),),
    "leaderboard": (
        ("all runs below a folder", "runs"),
        (
            "accuracy under two conditions by model, as LaTeX",
            "runs --group_by model --conditions degrade,enhance --format latex",
        ),
    ),
    "export": (
        (
            "a PEFT adapter for `lm_eval --model_args pretrained=M,peft=out/enhance`",
            "runs/demo/demo_topic --condition enhance -o out/enhance",
        ),
        (
            "a whole checkpoint for any loader",
            "runs/demo/demo_topic --condition enhance --format merged -o out/merged",
        ),
    ),
    "push": (("a run, to be read as neurons=hf://me/topic", "runs/demo/demo_topic "
              "--repo_id me/topic"),),
    "tasks": (
        ("the folder of the packaged tasks", ""),
        ("an AQUA task that stock lm_eval runs", "make belebele_eng_Latn -o my_tasks"),
    ),
    "selftest": (("one strength, with more questions", "--strengths 0.25 --limit 80"),),
    "completion": (
        (
            "bash",
            "bash > ~/.local/share/bash-completion/completions/neuronllm-eval",
        ),
        ("zsh, with ~/.zfunc in fpath", "zsh > ~/.zfunc/_neuronllm-eval"),
    ),
}  # fmt: skip


def of_command(name: str) -> str:
    """The examples of a command; empty if there are none."""
    pairs = _OF_COMMAND.get(name, ())
    lines = [f"  # {what}\n  neuronllm-eval {name} {how}".rstrip() for what, how in pairs]
    return "examples:\n" + "\n\n".join(lines) + "\n" if lines else ""
