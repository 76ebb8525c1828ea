"""Write `docs/command-line.md` from the parsers of the command line.

    python docs/make_command_line.py            # write the page
    python docs/make_command_line.py --check    # exit code 1 if it would differ

Each command has its help line, the examples of its `--help` and its flags by group. A group that an
earlier command has too, with the same help, is named and not repeated.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent, fill

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the parsers of this checkout

from neuronllm_eval.cli.commands import main_parser, run_eval_parser  # noqa: E402

PAGE = ROOT / "docs" / "command-line.md"
OTHER = "other"
HEAD = """# Command line

*Generated from the parsers by `python docs/make_command_line.py`.*

Flags have the names that they have in `lm_eval`. Here `--limit` counts questions, `--batch_size`
is a number of prompts or `auto`, and `--seed` is one whole number. Several values are separated by
spaces, names also by commas. `--config FILE` reads flags from a YAML file whose keys are the flags
without dashes; flags on the command line take precedence. All commands but `tasks` and `completion`
take it; `run --config` is `lm_eval`'s own.

Exit codes: 0 on success; 2 for an invalid argument or setting; 1 for data, a task, a model or an
artifact that cannot be used ([bad input](bad-input.md)); 128 + the signal's number after an
[interruption](reliability.md#interruptions).
"""
# Of the commands whose `--help` ends without examples.
EXAMPLES = {
    "tasks make": "neuronllm-eval tasks make belebele_eng_Latn --output_path my_tasks",
    "run_eval.py": "python run_eval.py --tasks demo_topic --limit 120 --batch_size 48 "
    "--output_path runs/topic",
    "run": "neuronllm-eval run --model neuronllm --tasks demo_topic \\\n"
    "    --model_args pretrained=M,neurons=runs/demo/demo_topic,condition=suppress_good",
}
RUN = """`lm_eval`'s own command line with the model `neuronllm` registered: all flags are those
of the installed `lm_eval run`. What `--model neuronllm` takes as `--model_args`:
[the masked model](lm-eval.md#the-masked-model).
"""


def commands() -> Iterator[tuple[str, argparse.ArgumentParser, str]]:
    """Name, parser and help line of every command."""
    for name, parser, text in _subcommands(main_parser()):
        yield name, parser, text
        for more, own, its_text in _subcommands(parser):
            yield f"{name} {more}", own, its_text
    yield "run_eval.py", run_eval_parser(), "identify, validate and report in one go"


def _subcommands(
    parser: argparse.ArgumentParser,
) -> Iterator[tuple[str, argparse.ArgumentParser, str]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            help_texts = {each.dest: each.help for each in action._choices_actions}
            for name, own in action.choices.items():
                yield name, own, help_texts[name] or ""


@dataclass
class Seen:
    """What the page already contains.

    Attributes:
        titles: by rows of a table, the command that has it.
    """

    titles: dict[tuple[str, ...], str] = field(default_factory=dict)


def page() -> str:
    """The text of the page."""
    parts, seen = [HEAD], Seen()
    for name, parser, text in commands():
        title = name if name.endswith(".py") else f"neuronllm-eval {name}"
        what = RUN if name == "run" else f"{_sentence(parser.description or text)}\n"
        parts.append(f"## {title}\n\n{what}")
        examples = EXAMPLES.get(name) or _examples(parser)
        if examples:
            parts.append(f"```sh\n{examples}\n```\n")
        if name != "run":
            parts += _flags(parser, title, seen)
    return "\n".join(parts)


def _examples(parser: argparse.ArgumentParser) -> str:
    """Those at the end of the command's `--help`."""
    lines = dedent((parser.epilog or "").partition("\n")[2]).strip().splitlines()
    return "\n".join(map(_narrow, lines))


def _narrow(command: str) -> str:
    """A command of more than 100 characters on two lines."""
    start, _, last = command.rpartition(" --")
    return command if len(command) <= 100 else f"{start} \\\n    --{last}"


def _flags(parser: argparse.ArgumentParser, title: str, seen: Seen) -> list[str]:
    """A command's tables, and a line for those that the page has already."""
    parts = []
    earlier: dict[str, list[str]] = {}
    for heading, rows in sorted(_groups(parser), key=lambda group: group[0] == OTHER):
        if rows in seen.titles:
            earlier.setdefault(seen.titles[rows], []).append(f"*{heading}*")
            continue
        if len(rows) > 2:
            seen.titles[rows] = title
        parts.append("\n".join([f"*{heading}*\n", "| flag | meaning |", "|---|---|", *rows, ""]))
    for of, headings in earlier.items():
        parts.append(_filled(f"{', '.join(headings)}: as for [{of}](#{_anchor(of)})."))
    return parts


def _filled(text: str) -> str:
    return fill(text, 100, break_long_words=False, break_on_hyphens=False) + "\n"


def _groups(parser: argparse.ArgumentParser) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Of each group of flags, its heading and the rows of its table."""
    formatter = parser._get_formatter()
    for group in parser._action_groups:
        rows = []
        for action in group._group_actions:
            if isinstance(action, (argparse._HelpAction, argparse._SubParsersAction)):
                continue
            names = ", ".join(action.option_strings)
            shown = f"{names} {_value(action)}".strip()
            meaning = formatter._expand_help(action) if action.help else ""
            rows.append(f"| `{_cell(shown)}` | {_cell(meaning)} |")
        if rows:
            yield _heading(group.title or ""), tuple(rows)


def _value(action: argparse.Action) -> str:
    """The placeholder of a flag's value or of an argument."""
    if action.nargs == 0:
        return ""
    default = action.dest.upper() if action.option_strings else action.dest
    metavar = action.metavar if isinstance(action.metavar, str) else default
    if action.choices is not None:
        metavar = f"{{{','.join(map(str, action.choices))}}}"
    return {"+": f"{metavar} ...", "*": f"[{metavar} ...]", "?": f"[{metavar}]"}.get(
        str(action.nargs), metavar
    )


def _heading(title: str) -> str:
    return {"positional arguments": "arguments", "options": OTHER}.get(title, title)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:].rstrip('.')}."


def _anchor(title: str) -> str:
    anchor = "".join(c for c in title.lower() if c.isalnum() or c in "-_ ")
    return anchor.replace(" ", "-")


def main() -> int:
    """Write the page, or check it; the exit code."""
    parser = argparse.ArgumentParser(description="Write docs/command-line.md.")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.read_text(encoding="utf-8") == page():
        return 0
    print(f"{PAGE.relative_to(ROOT)} is out of date: run python docs/make_command_line.py")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
