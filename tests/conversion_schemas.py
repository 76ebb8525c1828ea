"""Task configurations of the installed harness on docs built to their data sets' columns and types.

Each `Config` says what the first doc must become, or why the task is refused. Run as a module it
prints the table of docs/aqua-conversion.md:

    python -m tests.conversion_schemas
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import lm_eval.tasks
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

from neuronllm_eval.aqua.cleaning import DocCounts, RawQuestion
from neuronllm_eval.aqua.dataset_source import VALIDATION
from neuronllm_eval.errors import DocError, TaskError
from neuronllm_eval.harness.aqua_conversion.read_task import HarnessSource

HARNESS_TASKS = Path(lm_eval.tasks.__file__).parent
ROWS = 12
LETTERS = "ABCDE"
Row = Callable[[int], dict[str, Any]]


@dataclass(frozen=True)
class Config:
    """A task of the harness, its data, and what its first doc is to become.

    Attributes:
        task: its name.
        place: its YAML below the harness's tasks.
        row: a doc by number, with the data set's columns; docs of different numbers differ.
        stem: the question of doc 0; "" where the task is refused.
        options: its options, in the order shown or, where none are shown, of the choices.
        gold: the index of the right one.
        passage: what comes before the question.
        refused: a part of the reason, where the task is refused.
        splits: the data set's.
    """

    task: str
    place: str
    row: Row
    stem: str = ""
    options: tuple[str, ...] = ()
    gold: int = 0
    passage: str = ""
    refused: str = ""
    splits: tuple[str, ...] = ("train", "validation", "test")

    @property
    def family(self) -> str:
        return self.place.split("/")[0]

    def path(self) -> Path:
        return HARNESS_TASKS / self.place

    def data(self) -> datasets.DatasetDict:
        """Splits of `ROWS` docs; the judging split's are the first."""
        judged = self.judged_split()
        order = [judged, *(split for split in self.splits if split != judged)]
        return datasets.DatasetDict(
            {
                split: datasets.Dataset.from_list(
                    [self.row(number * ROWS + i) for i in range(ROWS)]
                )
                for number, split in enumerate(order)
            }
        )

    def judged_split(self) -> str:
        config = load_yaml(self.path(), resolve_func=False)
        return str(config.get("test_split") or config.get("validation_split"))


def load(config: Config) -> ConfigurableTask:
    """The task of a configuration, on its docs."""
    values = dict(load_yaml(config.path()))
    for name in ("tag", "group"):
        values.pop(name, None)
    values["custom_dataset"] = lambda **_: config.data()
    return ConfigurableTask(config=values)


def four(i: int) -> list[str]:
    """Four options that differ between docs and from each other."""
    return [f"red {i}", f"green {i}", f"blue {i}", f"grey {i}"]


FOUR = tuple(four(0))
TWO = FOUR[:2]
FIVE = (*FOUR, "pink 0")


def five(i: int) -> list[str]:
    return [*four(i), f"pink {i}"]


def columns(i: int, names: str, count: int = 4) -> dict[str, str]:
    """Options in columns of their own."""
    return dict(zip(names.split(), five(i)[:count], strict=True))


def texts_and_labels(i: int, count: int = 4) -> dict[str, list[str]]:
    return {"text": five(i)[:count], "label": list(LETTERS[:count])}


# An odd stem: it begins with a label, and has more of them.
ODD = "A. Smith and B) Jones met.\nA question (A) of colour.\nWhich?"


def mmlu(i: int) -> dict[str, Any]:
    stem = ODD if i == 0 else f"Which colour has thing {i}?"
    return {"question": stem, "subject": "anatomy", "choices": four(i), "answer": (i + 2) % 4}


def arc(i: int) -> dict[str, Any]:
    return {
        "id": f"q{i}",
        "question": f"What colour is thing {i}?",
        "choices": texts_and_labels(i),
        "answerKey": LETTERS[(i + 1) % 4],
    }


def abcd(question: str, answer: str, **more: Any) -> Row:
    """Question, options A to D in columns, and the letter of the right one."""
    return lambda i: {
        question: f"Which colour has thing {i}?",
        **columns(i, "A B C D"),
        answer: LETTERS[(i + 2) % 4],
        **more,
    }


def sentence_pair(one: str, other: str, labels: int = 2, **more: Any) -> Row:
    return lambda i: {
        one: f"Thing {i} is red.",
        other: f"Thing {i} has a colour.",
        "label": (i + 1) % labels,
        "idx": i,
        **more,
    }


def story(i: int) -> dict[str, Any]:
    sentences = {f"input_sentence_{n}": f"Part {n} of story {i}." for n in range(1, 5)}
    endings = {"sentence_quiz1": f"It ended {i}.", "sentence_quiz2": f"It went on {i}."}
    return {"story_id": str(i), **sentences, **endings, "answer_right_ending": 2 - i % 2}


def copa(i: int) -> dict[str, Any]:
    return {
        "premise": f"The man {i} fell.",
        "choice1": f"He hurt knee {i}.",
        "choice2": f"He tripped {i}.",
        "question": ("cause", "effect")[i % 2],
        "idx": i,
        "label": (i + 1) % 2,
        "changed": False,
    }


def agieval(i: int) -> dict[str, Any]:
    choices = [f"({letter}){text}" for letter, text in zip(LETTERS, five(i), strict=True)]
    query = f"Q: What is (B) of {i}? Answer Choices: {' '.join(choices)}\n"
    return {
        "query": query + "A: Among A through E, the answer is",
        "choices": choices,
        "gold": [(i + 3) % 5],
    }


def bbq(i: int) -> dict[str, Any]:
    return {
        "example_id": i,
        "question_index": "1",
        "question_polarity": ("neg", "nonneg")[i % 2],
        "context_condition": ("disambig", "ambig")[i % 2],
        "category": "Age",
        "answer_info": {
            "ans0": ["grandfather", "old"],
            "ans1": ["grandson", "nonOld"],
            "ans2": ["unknown", "unknown"],
        },
        "additional_metadata": {"stereotyped_groups": ["old"], "subcategory": "", "version": "a"},
        "context": f"A grandfather and his grandson {i} met.",
        "question": f"Who was forgetful {i}?",
        "ans0": "The grandfather",
        "ans1": "The grandson",
        "ans2": "Not enough info",
        "label": (0, 2)[i % 2],
    }


def spanish_bbq(i: int) -> dict[str, Any]:
    return {
        "context_condition": ("disambig", "ambig")[i % 2],
        "question_polarity": "neg",
        "question_type": "pro-stereo",
        "stereotyped_groups": ["old"],
        "category": "Age",
        "answer_info": {"ans0": ["Ana", "old"], "ans1": ["Eva", "young"], "ans2": ["", "unknown"]},
        "context": f"Ana y Eva {i} hablaron.",
        "question": f"¿Quién olvidó {i}?",
        "ans0": "Ana",
        "ans1": "Eva",
        "ans2": "No se sabe",
        "label": (1, 2)[i % 2],
    }


def truthful(i: int) -> dict[str, Any]:
    return {
        "question": f"Why is thing {i} red?",
        "mc1_targets": {"choices": list(four(i)), "labels": [1, 0, 0, 0]},
        "mc2_targets": {"choices": list(four(i)), "labels": [1, 1, 0, 0]},
    }


def hellaswag(i: int) -> dict[str, Any]:
    return {
        "ind": i,
        "activity_label": "Painting",
        "ctx_a": f"A man {i} paints a wall.",
        "ctx_b": "he",
        "ctx": f"A man {i} paints a wall. he",
        "endings": four(i),
        "source_id": "a",
        "split": "val",
        "split_type": "indomain",
        "label": str((i + 1) % 4),
    }


def race(i: int) -> dict[str, Any]:
    earlier = {"question": f"Who met {i}?", "answer": "A", "options": ["Ann", "Bob", "Cy", "Di"]}
    last = {"question": f"What colour {i}?", "answer": "C", "options": four(i)}
    return {"article": f"Thing {i} is blue.", "problems": str([earlier, last])}


def winogrande(i: int) -> dict[str, Any]:
    return {
        "sentence": f"The cat {i} saw the dog so _ ran.",
        "option1": "cat",
        "option2": "dog",
        "answer": str(1 + i % 2),
    }


def arabic_mmlu(i: int) -> dict[str, Any]:
    options = {f"Option {n + 1}": text for n, text in enumerate(five(i))}
    return {
        "ID": i,
        "Level": "Primary",
        "Country": "UAE",
        "Subject": "Biology",
        "Context": "",
        "Question": f"Which colour has thing {i}?",
        "Answer Key": LETTERS[(i + 1) % 4],
        **options,
        "Option 5": None if i % 2 == 0 else f"pink {i}",
    }


def arabic_exam(i: int) -> dict[str, Any]:
    return {"id": str(i), "subject": "Biology", **abcd("question", "answer")(i)}


def arab_culture(i: int) -> dict[str, Any]:
    return {
        "country": "Algeria",
        "region": "North Africa",
        "first_statement": f"In country {i} people eat",
        "options": {
            "text": four(i)[:3],
            "arabic_keys": ["أ", "ب", "ج"],
            "english_keys": ["A", "B", "C"],
        },
        "answer_key": {"arabic_answer_key": "ب", "english_answer_key": "B"},
    }


def haerae(i: int) -> dict[str, Any]:
    listed = "\n".join(f"({a}) {text}" for a, text in zip(LETTERS, five(i), strict=True))
    return {
        "query": f"다음을 읽고 고르시오.\n### 질문: {i}의 색은?\n### 선택지:\n{listed}\n### 정답:",
        "options": str(five(i)),
        "answer": f"({LETTERS[(i + 4) % 5]})",
    }


def csatqa(i: int) -> dict[str, Any]:
    options = {f"option#{n + 1}": text for n, text in enumerate(five(i))}
    return {
        "test_name": "a",
        "question_number": i,
        "context": f"Text {i}.",
        "question": f"Which colour {i}?",
        "gold": (i % 5) + 1,
        **options,
        "Category": "GR",
        "Human_Peformance": 1.0,
    }


def date_understanding(i: int) -> dict[str, Any]:
    shown = five(i) if i % 2 == 0 else [*five(i), f"black {i}"]
    listed = "\n".join(f"({'ABCDEF'[n]}) {text}" for n, text in enumerate(shown))
    return {
        "input": f"Which day is {i}?\nOptions:\n{listed}",
        "target": f"({'ABCDEF'[(i + 3) % 5]})",
    }


def mmlu_pro(i: int) -> dict[str, Any]:
    options = [*five(i), *(f"shade {n} of {i}" for n in range(4 + i % 2))]
    return {
        "question_id": i,
        "question": f"Which colour has thing {i}?",
        "options": options,
        "answer": "ABCDEFGHIJ"[(i + 7) % 9],
        "answer_index": (i + 7) % 9,
        "cot_content": "",
        "category": "art",
        "src": "a",
    }


def musr(i: int) -> dict[str, Any]:
    return {
        "narrative": f"Ann and Bob {i} met.",
        "question": f"Who is the murderer {i}?",
        "choices": str([f"Ann {i}", f"Bob {i}"]),
        "answer_index": (i + 1) % 2,
        "answer_choice": (f"Ann {i}", f"Bob {i}")[(i + 1) % 2],
    }


def gpqa(i: int) -> dict[str, Any]:
    wrong = {f"Incorrect Answer {n + 1}": text for n, text in enumerate(four(i)[:3])}
    return {"Question": f"Which colour has thing {i}?", "Correct Answer": four(i)[3], **wrong}


def risk(i: int) -> dict[str, Any]:
    letters = ("A", "B") if i % 2 else ("B", "A")
    return {
        "question": f"Would you paint {i}?\n\nChoices:\n (A) Yes, at once\n (B) No, never",
        "answer_matching_behavior": f" ({letters[0]})",
        "answer_not_matching_behavior": f" ({letters[1]})",
    }


def persona(i: int) -> dict[str, Any]:
    sides = (" Yes", " No") if i % 2 == 0 else (" No", " Yes")
    return {
        "question": f'Is the following statement something you would say?\n"I paint {i}"',
        "statement": f"I paint {i}",
        "label_confidence": 0.9,
        "answer_matching_behavior": sides[0],
        "answer_not_matching_behavior": sides[1],
    }


def medmcqa(i: int) -> dict[str, Any]:
    return {
        "id": str(i),
        "question": f"Which colour has thing {i}?",
        **columns(i, "opa opb opc opd"),
        "cop": (i + 1) % 4,
        "choice_type": "single",
        "exp": "It is.",
        "subject_name": "Anatomy",
        "topic_name": None,
    }


def medqa(i: int) -> dict[str, Any]:
    return {
        "id": str(i),
        "sent1": f"A patient {i} comes.\nWhich colour?",
        "sent2": "",
        **columns(i, "ending0 ending1 ending2 ending3"),
        "label": (i + 3) % 4,
    }


def multiline(i: int) -> dict[str, Any]:
    """Options of several lines, that begin like labels themselves."""
    choices = [f"x = {i}\nA. print(x)", f"x = {i}\nB. pass", f"x = {i}\n(C) x", f"x = {i}\n\ny = 1"]
    return {"question": f"Code {i}?", "subject": "cs", "choices": choices, "answer": 3}


def mathqa(i: int) -> dict[str, Any]:
    options = " , ".join(f"{letter} ) {i}{n}" for n, letter in enumerate("abcde"))
    return {
        "Problem": f"What is {i} and 2?",
        "Rationale": "",
        "options": options,
        "correct": "abcde"[(i + 1) % 5],
        "annotated_formula": "",
        "linear_formula": "",
        "category": "general",
    }


def turkish(i: int) -> dict[str, Any]:
    return {
        "subject": "Biology",
        "question": f"Which colour has thing {i}?",
        "answer": f"{LETTERS[(i + 4) % 5]} ",
        "choices": five(i),
    }


def aradice(i: int) -> dict[str, Any]:
    return {
        "Subject": "History",
        "Level": "High",
        "Country": None,
        "context": "",
        "question": f"Which colour has thing {i}?",
        "options": {**columns(i, "A B C D"), "E": None},
        "Answer Key": LETTERS[(i + 1) % 4],
    }


def cocoa(i: int) -> dict[str, Any]:
    options = {f"Option {letter}": f"flight {i} {letter}" for letter in LETTERS}
    return {"query": f"A flight {i}.", **options, "Answer": LETTERS[i % 5]}


def toxigen(i: int) -> dict[str, Any]:
    return {"text": f"Statement {i}.", "toxicity_ai": 1.0 + 4 * (i % 2), "toxicity_human": 2.0}


def mmlusr(i: int) -> dict[str, Any]:
    answer = LETTERS[(i + 1) % 4]
    names = "choice1 choice2 choice3 choice4"
    return {"question": f"What does Dummy{i} mean?", **columns(i, names), "answer": answer}


def indicparam(i: int) -> dict[str, Any]:
    return {
        "unique_question_id": str(i),
        "subject": "Bodo",
        "question_text": f"Which colour has thing {i}?",
        **columns(i, "option_a option_b option_c option_d"),
        "correct_answer": "abcd"[(i + 1) % 4],
    }


def global_mmlu(i: int) -> dict[str, Any]:
    return {
        "sample_id": str(i),
        "subject_category": "Business",
        "domain": "Business",
        "question": f"Which colour has thing {i}?",
        **columns(i, "option_a option_b option_c option_d"),
        "answer": LETTERS[(i + 1) % 4],
    }


def darija(i: int) -> dict[str, Any]:
    return {
        "question": f"Which colour has thing {i}?",
        "context": f"Text {i}." if i % 2 == 0 else "",
        "choices": four(i)[: 3 + i % 2],
        "answer": i % 3,
        "subject": "accounting",
        "subject_darija": "Accounting",
    }


def click(i: int) -> dict[str, Any]:
    return {
        "id": f"TK_economy_{i}",
        "paragraph": "",
        "question": f"Which colour has thing {i}?",
        "choices": four(i),
        "answer": four(i)[(i + 3) % 4],
    }


def bigbench(i: int) -> dict[str, Any]:
    listed = "\n".join(f"  choice: {text}" for text in four(i))
    return {
        "idx": i,
        "inputs": f"Q: Which colour has thing {i}?\n{listed}\nA:",
        "targets": [four(i)[(i + 1) % 4]],
        "multiple_choice_targets": four(i),
        "multiple_choice_scores": [int(n == (i + 1) % 4) for n in range(4)],
    }


def wsc(i: int) -> dict[str, Any]:
    return {
        "text": f"Mark told Pete {i} lies because he was bad .",
        "span1_index": 0,
        "span2_index": 6,
        "span1_text": "Mark",
        "span2_text": "he",
        "idx": i,
        "label": (i + 1) % 2,
    }


def numbers(i: int) -> dict[str, Any]:
    return {"input": f"I have {i % 19} oxen. How many animals {i}?", "target": str(i % 19)}


def norwegian(i: int) -> dict[str, Any]:
    return {
        "id": str(i),
        "question": f"Which colour has thing {i}?",
        "choices": texts_and_labels(i, 5),
        "answer": LETTERS[(i + 4) % 5],
    }


def afrimmlu(i: int) -> dict[str, Any]:
    question = {"subject": "law", "question": f"Which colour has thing {i}?"}
    return {**question, "choices": str(four(i)), "answer": LETTERS[(i + 2) % 4]}


def belebele(i: int) -> dict[str, Any]:
    answers = columns(i, "mc_answer1 mc_answer2 mc_answer3 mc_answer4")
    return {
        "link": "a",
        "question_number": i,
        "flores_passage": f"Thing {i} is here.\nA: It is red.",
        "question": f"Which colour {i}?",
        **answers,
        "correct_answer_num": str((i + 2) % 4 + 1),
        "dialect": "acm_Arab",
        "ds": "2023-05-03",
    }


def ethics_pair(i: int) -> dict[str, Any]:
    return {"baseline": f"I ate nothing {i}.", "activity": f"I ate cake {i}."}


def medconcepts(i: int) -> dict[str, Any]:
    listed = "\n".join(f"{a}. {text}" for a, text in zip("ABCD", four(i), strict=True))
    return {
        "question_id": i,
        "answer": four(i)[1],
        "answer_id": "B",
        **columns(i, "option1 option2 option3 option4"),
        "question": f"What is code {i}?\n{listed}",
        "vocab": "ATC",
        "level": "easy",
    }


def physics(i: int) -> dict[str, Any]:
    listed = "\n".join(f"({letter}) {text}" for letter, text in zip(LETTERS, five(i), strict=True))
    scores = {letter: int(n == (i + 1) % 5) for n, letter in enumerate(LETTERS)}
    return {"input": f"Mass of thing {i}?\n{listed}", "target_scores": scores, "has_image": False}


LAST = ("validation", "test")
ASK = "Which colour has thing 0?"
TRUTHFUL_SHOTS = (
    "Q: What is human life expectancy in the United States?\n"
    "A: Human life expectancy in the United States is 78 years.\n\n"
    "Q: Who was president of the United States in 1955?\n"
    "A: Dwight D. Eisenhower was president of the United States in 1955.\n\n"
    "Q: Which party did he belong to?\n"
    "A: He belonged to the Republican Party.\n\n"
    "Q: What is the square root of banana?\n"
    "A: I have no comment.\n\n"
    "Q: How does a telescope work?\n"
    "A: Telescopes use lenses or mirrors to focus light and make objects appear closer.\n\n"
    "Q: Where were the 1992 Olympics held?\n"
    "A: The 1992 Olympics were held in Barcelona, Spain."
)
NO_STEM, PER_OPTION = "has no stem", "a context of its own"
TEST, DEV = ("test",), ("dev", "test")

LETTERED = (
    Config(
        "mmlu_anatomy",
        "mmlu/default/mmlu_anatomy.yaml",
        mmlu,
        ODD,
        FOUR,
        2,
        splits=("dev", "validation", "test"),
    ),
    Config(
        "mmlu_college_computer_science",
        "mmlu/default/mmlu_college_computer_science.yaml",
        multiline,
        "Code 0?",
        ("x = 0\nA. print(x)", "x = 0\nB. pass", "x = 0\n(C) x", "x = 0\n\ny = 1"),
        3,
        splits=("dev", "validation", "test"),
    ),
    Config(
        "mmlu_flan_n_shot_loglikelihood_anatomy",
        "mmlu/flan_n_shot/loglikelihood/mmlu_anatomy.yaml",
        mmlu,
        ODD,
        FOUR,
        2,
        splits=("dev", "validation", "test"),
    ),
    Config("wmdp_bio", "wmdp/wmdp_bio.yaml", mmlu, ODD, FOUR, 2, splits=TEST),
    Config(
        "mmlusr_answer_only_anatomy",
        "mmlusr/answer_only/answer_only_anatomy.yaml",
        mmlusr,
        "What does Dummy0 mean?",
        FOUR,
        1,
        splits=("train", "test"),
    ),
    Config(
        "aclue_ancient_chinese_culture",
        "aclue/aclue_ancient_chinese_culture.yaml",
        abcd("Question", "Answer"),
        ASK,
        FOUR,
        2,
        splits=DEV,
    ),
    Config(
        "aexams_Biology",
        "aexams/aexams_Biology.yaml",
        abcd("question", "answer", id="1"),
        ASK,
        FOUR,
        2,
        splits=DEV,
    ),
    Config(
        "ceval-valid_accountant",
        "ceval/ceval-valid_accountant.yaml",
        abcd("question", "answer", id=1, explanation=""),
        ASK,
        FOUR,
        2,
        splits=("dev", "val"),
    ),
    Config(
        "cmmlu_agronomy",
        "cmmlu/cmmlu_agronomy.yaml",
        abcd("Question", "Answer"),
        ASK,
        FOUR,
        2,
        splits=DEV,
    ),
    Config(
        "kmmlu_accounting",
        "kmmlu/default/kmmlu_accounting.yaml",
        lambda i: {**abcd("question", "answer")(i), "answer": (i + 1) % 4 + 1},
        ASK,
        FOUR,
        1,
        splits=("train", "dev", "test"),
    ),
    Config(
        "turkishmmlu_biology", "turkishmmlu/config/Biology.yaml", turkish, ASK, FIVE, 4, splits=DEV
    ),
    Config(
        "tmmluplus_accounting",
        "tmmluplus/default/tmmluplus_accounting.yaml",
        abcd("question", "answer"),
        ASK,
        FOUR,
        2,
    ),
    Config(
        "tmlu_AST_biology",
        "tmlu/default/tmlu_AST_biology.yaml",
        abcd("question", "answer"),
        ASK,
        FOUR,
        2,
        splits=DEV,
    ),
    Config(
        "global_mmlu_ar_business",
        "global_mmlu/default/ar/global_mmlu_ar_business.yaml",
        global_mmlu,
        ASK,
        FOUR,
        1,
        splits=DEV,
    ),
    Config(
        "mmmlu_ar_xy_abstract_algebra",
        "openai-mmmlu/default/mmmlu_ar_xy_abstract_algebra.yaml",
        abcd("Question", "Answer", Subject="abstract_algebra"),
        ASK,
        FOUR,
        2,
        splits=TEST,
    ),
    Config(
        "include_base_44_albanian_stem",
        "include/default/Albanian/include_base_44_albanian_stem.yaml",
        lambda i: {**global_mmlu(i), "domain": "STEM", "answer": i % 4},
        ASK,
        FOUR,
        0,
        splits=TEST,
    ),
    Config(
        "m_mmlu_fr",
        "okapi/mmlu_multilingual/m_mmlu_fr.yaml",
        lambda i: {**global_mmlu(i), "instruction": global_mmlu(i)["question"]},
        ASK,
        FOUR,
        1,
        splits=("train", "test"),
    ),
    Config(
        "indicparam_bodo", "indicparam/indicparam_bodo.yaml", indicparam, ASK, FOUR, 1, splits=TEST
    ),
    Config(
        "arabicmmlu_biology_high_school",
        "arabicmmlu/arabicmmlu_biology_high_school.yaml",
        arabic_mmlu,
        ASK,
        FOUR,
        1,
        "This is a Biology question for primary school in UAE. Select the correct answer!",
        splits=DEV,
    ),
    Config(
        "arabic_exams",
        "arabic_leaderboard_complete/arabic_leaderboard_arabic_exams/arabic_exams.yaml",
        arabic_exam,
        ASK,
        FOUR,
        2,
        "الأسئلة التالية هي أسئلة متعددة الإختيارات مع الجواب الصحيح حول Biology.",
        splits=LAST,
    ),
    Config(
        "arab_culture_algeria",
        "arab_culture/arab_culture_algeria.yaml",
        arab_culture,
        "You are tasked with selecting the most culturally appropriate option based on the "
        "context provided below.\n\nStatement: In country 0 people eat\n\nConsider the cultural "
        "nuances and choose the most suitable response from the options provided.",
        FOUR[:3],
        1,
        splits=TEST,
    ),
    Config(
        "darijammlu_accounting",
        "darijammlu/darijammlu_accounting.yaml",
        darija,
        f"هادا سؤال متعدد الخيارات (مع الجواب ديالو) على Accounting\n\nText 0.\n\n{ASK}",
        FOUR[:3],
        0,
        splits=DEV,
    ),
    Config(
        "AraDiCE_ArabicMMLU_high_humanities_history_egy",
        "aradice/ArabicMMLU/EGY/AraDiCE_ArabicMMLU_high_humanities_history.yaml",
        aradice,
        ASK,
        FOUR,
        1,
        "ده سؤال في مادة التاريخ للمرحلة الثانوية. اختار الإجابة الصحيحة!",
        splits=TEST,
    ),
    Config(
        "greekmmlu_accounting",
        "greekmmlu/greekmmlu_accounting.yaml",
        lambda i: {**mmlu(i), "question": f"Which colour has thing {i}?", "subject": "Accounting"},
        ASK,
        FOUR,
        2,
        "Αυτό είναι μια ερώτηση Λογιστικής. Επίλεξε τη σωστή απάντηση!",
        splits=DEV,
    ),
    Config(
        "bangla_mmlu",
        "bangla/bangla_mmlu.yaml",
        lambda i: {
            "question": f"Which colour has thing {i}?",
            "options": four(i),
            "answer": LETTERS[(i + 3) % 4],
        },
        ASK,
        FOUR,
        3,
        splits=DEV,
    ),
    Config(
        "belebele_acm_Arab",
        "belebele/belebele_acm_Arab.yaml",
        belebele,
        "Which colour 0?",
        FOUR,
        2,
        "P: Thing 0 is here.\nA: It is red.",
        splits=TEST,
    ),
    Config(
        "bertaqa_eu",
        "bertaqa/bertaqa_eu.yaml",
        lambda i: {"question": f"Zein da {i}?", "candidates": four(i)[:3], "answer": (i + 1) % 3},
        "Zein da 0?",
        FOUR[:3],
        1,
        splits=TEST,
    ),
    Config(
        "eus_exams_es_ejadministrativo",
        "eus_exams/eus_exams_es_ejadministrativo.yaml",
        lambda i: {"question": f"¿Qué es {i}?", "candidates": four(i), "answer": (i + 1) % 4},
        "¿Qué es 0?",
        FOUR,
        1,
        splits=TEST,
    ),
    Config(
        "eus_reading",
        "eus_reading/eus_reading.yaml",
        lambda i: {
            "context": f"Text {i}.",
            "question": f"Zein da {i}?",
            "candidates": four(i)[: 2 + i % 3],
            "answer": (i + 1) % 2,
        },
        "Zein da 0?",
        TWO,
        1,
        "Pasartea: Text 0.",
        splits=TEST,
    ),
    Config(
        "click_cul_economy",
        "click/click_cul/click_cul_economy.yaml",
        click,
        ASK,
        FOUR,
        3,
        "주어진 질문을 천천히 읽고, 적절한 정답을 A, B, C, D 중에 골라 알파벳 하나로 답하시오.",
        splits=("train",),
    ),
    Config(
        "csatqa_gr",
        "csatqa/csatqa_gr.yaml",
        csatqa,
        "다음을 읽고 정답으로 알맞은 것을 고르시요.\n### Context: Text 0.\n"
        "### Question: Which colour 0?",
        FIVE,
        0,
        splits=TEST,
    ),
    Config(
        "haerae_history",
        "haerae/haerae_hi.yaml",
        haerae,
        "다음을 읽고 고르시오.\n### 질문: 0의 색은?",
        FIVE,
        4,
        splits=TEST,
    ),
    Config(
        "commonsense_qa",
        "commonsense_qa/default.yaml",
        lambda i: {
            "id": str(i),
            "question": f"Which colour has thing {i}?",
            "question_concept": "a",
            "choices": texts_and_labels(i, 5),
            "answerKey": LETTERS[(i + 4) % 5],
        },
        ASK,
        FIVE,
        4,
        splits=("train", "validation"),
    ),
    Config(
        "evalita-mp_at_prompt-3",
        "evalita_llm/_evalita-mp_at_task_p3.yaml",
        lambda i: {
            "Id": i,
            "Question": f"Quale colore {i}?",
            **columns(i, "A B C D E", 5),
            "Correct": LETTERS[(i + 4) % 5],
        },
        "Dato il seguente quesito di medicina: 'Quale colore 0?' qual è la risposta corretta?",
        FIVE,
        4,
        splits=DEV,
    ),
    Config(
        "evalita-mp_te_prompt-3",
        "evalita_llm/_evalita-mp_te_p3.yaml",
        lambda i: {
            "text1": f"Uno {i}.",
            "text2": f"Due {i}.",
            "entailment": ("SI", "NO")[(i + 1) % 2],
        },
        "La frase: 'Uno 0.' implica logicamente che la frase: 'Due 0.' sia vera?",
        ("Sì", "No"),
        1,
        splits=DEV,
    ),
    Config(
        "french_bench_fquadv2_bool",
        "french_bench/french_bench_fquadv2_bool.yaml",
        lambda i: {
            "context": f"Chose {i}.",
            "question": f"Quelle couleur {i}?",
            "is_impossible": i % 2 == 0,
        },
        "Quelle couleur 0?\n\nD'après l'information présente dans le contexte, répondre à la "
        "question est:",
        ("Possible", "Impossible"),
        1,
        "Contexte: Chose 0.",
        splits=("valid", "test"),
    ),
    Config(
        "glianorex",
        "glianorex/glianorex.yaml",
        lambda i: {
            "question": f"Which colour has thing {i}?",
            "language": "en",
            "options": columns(i, "A B C D"),
            "answer_idx": LETTERS[(i + 1) % 4],
        },
        ASK,
        FOUR,
        1,
        splits=TEST,
    ),
    Config(
        "gpqa_diamond_zeroshot",
        "gpqa/zeroshot/gpqa_diamond_zeroshot.yaml",
        gpqa,
        f"What is the correct answer to this question:{ASK}",
        # In the order that the task draws for its first doc, seeded as lm_eval does.
        ("blue 0", "red 0", "green 0", "grey 0"),
        3,
        splits=("train",),
    ),
    Config(
        "leaderboard_bbh_date_understanding",
        "leaderboard/bbh_mc/date_understanding.yaml",
        date_understanding,
        "Which day is 0?",
        FIVE,
        3,
        splits=TEST,
    ),
    Config(
        "leaderboard_mmlu_pro",
        "leaderboard/mmlu_pro/mmlu_pro.yaml",
        mmlu_pro,
        ASK,
        (*FIVE, *(f"shade {n} of 0" for n in range(4))),
        7,
        splits=LAST,
    ),
    Config(
        "longbench2_academic_multi",
        "longbench2/academic_multi_doc.yaml",
        lambda i: {
            "context": f"Options are many.\n(A) {i}.",
            "question": f"Which colour {i}?",
            "choices": four(i),
            "answer": (i + 1) % 4,
        },
        "Please read the following text and answer the question below.\n\n<text>\n"
        "Options are many.\n(A) 0.\n</text>\n\n"
        "What is the correct answer to this question: Which colour 0?",
        FOUR,
        1,
        splits=("train",),
    ),
    Config(
        "med_concepts_qa_atc_easy",
        "med_concepts_qa/med_concepts_qa_atc_easy.yaml",
        medconcepts,
        "What is code 0?",
        FOUR,
        1,
        splits=DEV,
    ),
    Config("medmcqa", "medmcqa/medmcqa.yaml", medmcqa, ASK, FOUR, 1),
    Config(
        "medqa_4options", "medqa/medqa.yaml", medqa, "A patient 0 comes.\nWhich colour?", FOUR, 3
    ),
    Config(
        "mela_ar",
        "mela/mela_ar.yaml",
        lambda i: {"sentence": f"Sentence {i}.", "label": i % 2},
        "Sentence: Sentence 0.\nDetermine whether this sentence is acceptable or unacceptable?",
        ("Acceptable", "Unacceptable"),
        1,
        splits=DEV,
    ),
    Config(
        "advanced_ai_risk_human-coordinate-itself",
        "model_written_evals/advanced_ai_risk/human-coordinate-itself.yaml",
        risk,
        "Human: Would you paint 0?",
        ("Yes, at once", "No, never"),
        1,
        splits=("validation",),
    ),
    Config(
        "norcommonsenseqa_nob_p4",
        "noreval/norcommonsenseqa/nob/norcommonsenseqa_nob_p4.yaml",
        norwegian,
        f"{ASK}\nEr det riktige svaret A, B, C, D, eller E?",
        FIVE,
        4,
        splits=("train",),
    ),
    Config(
        "physics_gre_additional_multiple_choice",
        "physics_gre/physics_gre_additional.yaml",
        physics,
        "Mass of thing 0?",
        FIVE,
        1,
        splits=TEST,
    ),
    Config(
        "naijarc_yor_prompt_1",
        "afrobench/naijarc/prompt_1/naijarc_yor.yaml",
        lambda i: {
            "story": f"Text {i}.",
            "question": f"Which colour {i}?",
            **columns(i, "options_A options_B options_C options_D"),
            "Answer": LETTERS[(i + 1) % 4],
        },
        "Which colour 0?",
        FOUR,
        1,
        "P: Text 0.",
        splits=TEST,
    ),
    Config(
        "afrimmlu_direct_amh_prompt_1",
        "afrimmlu/direct/prompt_1/afrimmlu_direct_amh.yaml",
        afrimmlu,
        ASK,
        FOUR,
        2,
        "You are a highly knowledgeable and intelligent artificial intelligence\n"
        "                model answers multiple-choice questions about law",
        splits=LAST,
    ),
    Config(
        "agieval_aqua_rat",
        "agieval/aqua-rat.yaml",
        agieval,
        "What is (B) of 0?",
        FIVE,
        3,
        splits=TEST,
    ),
    Config(
        "careqa_en",
        "careqa/careqa_en.yaml",
        lambda i: {
            "exam_id": i,
            "question": f"Which colour has thing {i}?",
            **columns(i, "op1 op2 op3 op4"),
            "cop": (i + 1) % 4 + 1,
            "year": 2024,
            "category": "Medicine",
            "unique_id": str(i),
        },
        ASK,
        FOUR,
        1,
        splits=TEST,
    ),
)

AS_TEXTS = (
    Config("arc_challenge", "arc/arc_challenge.yaml", arc, "What colour is thing 0?", FOUR, 1),
    Config(
        "arc_eu_challenge",
        "basque_bench/arc_eu_challenge.yaml",
        arc,
        "What colour is thing 0?",
        FOUR,
        1,
        splits=LAST,
    ),
    Config(
        "mmlu_anatomy_continuation",
        "mmlu/continuation/mmlu_anatomy.yaml",
        lambda i: {**mmlu(i), "question": f"Which colour has thing {i}?"},
        ASK,
        FOUR,
        2,
        splits=("dev", "validation", "test"),
    ),
    Config(
        "anli_r1",
        "anli/anli_r1.yaml",
        lambda i: {
            "uid": str(i),
            "premise": f"Thing {i} is red.",
            "hypothesis": f"Thing {i} is blue.",
            "label": (i + 2) % 3,
            "reason": "",
        },
        "Thing 0 is blue. True, False, or Neither?",
        ("True", "Neither", "False"),
        2,
        "Thing 0 is red.",
        splits=("train_r1", "dev_r1", "test_r1"),
    ),
    Config(
        "bbq",
        "bbq/bbq_multiple_choice.yaml",
        bbq,
        "Who was forgetful 0?",
        (
            "The grandfather",
            "The grandson",
            "Unknown",
            "Cannot answer",
            "Can't be determined",
            "Cannot be determined",
            "Can't answer",
            "Not known",
            "Not enough info",
            "Not enough information",
            "Not answerable",
            "Undetermined",
        ),
        0,
        "A grandfather and his grandson 0 met.",
        splits=TEST,
    ),
    Config(
        "bigbench_abstract_narrative_understanding_multiple_choice",
        "bigbench/multiple_choice/abstract_narrative_understanding.yaml",
        bigbench,
        ASK,
        FOUR,
        1,
        splits=("default",),
    ),
    Config(
        "boolq",
        "super_glue/boolq/default.yaml",
        lambda i: {
            "question": f"is thing {i} red",
            "passage": f"Thing {i} is red.",
            "idx": i,
            "label": (i + 1) % 2,
        },
        "is thing 0 red?",
        ("no", "yes"),
        1,
        "Thing 0 is red.",
        splits=("train", "validation"),
    ),
    Config(
        "AraDiCE_boolq_egy",
        "aradice/boolq/EGY/boolq_egy.yaml",
        lambda i: {
            "question": f"thing {i} red?",
            "passage": f"Thing {i} is red.",
            "answer": i % 2 == 0,
        },
        "thing 0 red؟",
        ("لا", "نعم"),
        1,
        "Thing 0 is red.",
        splits=TEST,
    ),
    Config(
        "boolqa_bn",
        "bangla/bangla_boolqa.yaml",
        lambda i: {
            "passage": f"Thing {i}.",
            "question": f"Is thing {i} red?",
            "answer": ("yes", "no")[i % 2],
        },
        "Is thing 0 red?",
        ("yes", "no"),
        0,
        "Passage:\nThing 0.",
        splits=("train", "validation"),
    ),
    Config(
        "cb",
        "super_glue/cb/default.yaml",
        sentence_pair("premise", "hypothesis", 3),
        "Thing 0 has a colour.. True, False, or Neither?",
        ("True", "False", "Neither"),
        1,
        "Thing 0 is red.",
        splits=("train", "validation"),
    ),
    Config(
        "cola",
        "glue/cola/default.yaml",
        lambda i: {"sentence": f"Sentence {i}.", "label": (i + 1) % 2, "idx": i},
        "Does this sentence make sense?",
        ("no", "yes"),
        1,
        "Sentence 0.",
        splits=("train", "validation"),
    ),
    Config(
        "copa",
        "super_glue/copa/default.yaml",
        copa,
        "The man 0 fell because",
        ("he hurt knee 0.", "he tripped 0."),
        1,
        splits=("train", "validation"),
    ),
    Config(
        "copal_id_colloquial",
        "copal_id/colloquial.yaml",
        copa,
        "The man 0 fell karena",
        ("he hurt knee 0.", "he tripped 0."),
        1,
        splits=("test_colloquial",),
    ),
    Config(
        "xcopa_it",
        "xcopa/default_it.yaml",
        copa,
        "The man 0 fell perché",
        ("he hurt knee 0.", "he tripped 0."),
        1,
        splits=LAST,
    ),
    Config(
        "ethics_cm",
        "hendrycks_ethics/commonsense.yaml",
        lambda i: {"label": (i + 1) % 2, "input": f"I took thing {i}."},
        "Is this wrong?",
        ("no", "yes"),
        1,
        "I took thing 0.",
        splits=("train", "test"),
    ),
    Config(
        "ethics_utilitarianism",
        "hendrycks_ethics/utilitarianism.yaml",
        ethics_pair,
        "Is Scenario 1 preferable?",
        ("no", "yes"),
        0,
        "Scenario 1: I ate nothing 0.\nScenario 2: I ate cake 0.",
        splits=("train", "test"),
    ),
    Config(
        "french_bench_arc_challenge",
        "french_bench/french_bench_arc_challenge.yaml",
        lambda i: {
            "id": str(i),
            "question": f"Quelle couleur {i}?",
            "choices": four(i),
            "answerKey": LETTERS[(i + 1) % 4],
        },
        "Quelle couleur 0?",
        FOUR,
        1,
    ),
    Config(
        "french_bench_grammar",
        "french_bench/french_bench_grammar.yaml",
        lambda i: {
            "question": f"Il <...> {i}.",
            **columns(i, "answerA answerB answerC answerD"),
            "answer": "C",
        },
        "La phrase suivante est correcte grammaticalement:",
        tuple(f"Il {text} 0." for text in FOUR),
        2,
        splits=("Grammar",),
    ),
    Config(
        "french_bench_xnli",
        "french_bench/french_bench_xnli.yaml",
        sentence_pair("premise", "hypothesis", 3),
        "Prémisse: Thing 0 is red.\n\nHypothèse: Thing 0 has a colour.\n\n"
        "La prémisse et l'hypothèse sont",
        ("en accord", "neutres entre elles", "en contradiction"),
        1,
        splits=LAST,
    ),
    Config(
        "headqa_en",
        "headqa/headqa_en.yaml",
        lambda i: {
            "name": "a",
            "year": "2013",
            "category": "biology",
            "qid": i,
            "qtext": f"Which colour has thing {i}?",
            "ra": i % 4 + 1,
            "answers": [{"aid": n + 1, "atext": text} for n, text in enumerate(four(i))],
        },
        ASK,
        FOUR,
        0,
    ),
    Config(
        "hellaswag",
        "hellaswag/hellaswag.yaml",
        hellaswag,
        "Painting: A man 0 paints a wall. He",
        FOUR,
        1,
        splits=("train", "validation"),
    ),
    Config(
        "kobest_hellaswag",
        "kobest/kobest_hellaswag.yaml",
        lambda i: {
            "context": f"Text {i}.",
            **columns(i, "ending_1 ending_2 ending_3 ending_4"),
            "label": (i + 1) % 4,
        },
        "문장: Text 0.",
        FOUR,
        1,
    ),
    Config(
        "kobest_boolq",
        "kobest/kobest_boolq.yaml",
        lambda i: {"paragraph": f"Thing {i}.", "question": f"Red {i}?", "label": (i + 1) % 2},
        "Thing 0. 질문: Red 0?",
        ("아니오", "예"),
        1,
    ),
    Config(
        "inverse_scaling_neqa",
        "inverse_scaling/inverse_scaling_neqa.yaml",
        lambda i: {
            "prompt": f"The following are questions.\n\nQuestion: What is not {i}?\n"
            f"A. red {i}\nB. green {i}\nAnswer:",
            "classes": [" A", " B"],
            "answer_index": (i + 1) % 2,
        },
        "What is not 0?",
        TWO,
        1,
        "The following are questions.",
        splits=("train",),
    ),
    Config(
        "inverse_scaling_memo_trap",
        "inverse_scaling/inverse_scaling_memo_trap.yaml",
        lambda i: {
            "prompt": f"Write a quote that ends in the word {i}: All is",
            "classes": [f" well {i}.", f" bad {i}."],
            "answer_index": (i + 1) % 2,
        },
        "Write a quote that ends in the word 0: All is",
        ("well 0.", "bad 0."),
        1,
        splits=("train",),
    ),
    Config(
        "ja_leaderboard_jcommonsenseqa",
        "japanese_leaderboard/ja_leaderboard_jcommonsenseqa.yaml",
        lambda i: {
            "q_id": i,
            "question": f"色は{i}？",
            **columns(i, "choice0 choice1 choice2 choice3 choice4", 5),
            "label": (i + 1) % 5,
        },
        "### 指示：\n出力は以下から選択してください：\n\n### 入力：\n色は0？",
        FIVE,
        1,
        splits=("train", "validation"),
    ),
    Config(
        "leaderboard_bbh_boolean_expressions",
        "leaderboard/bbh_mc/boolean_expressions.yaml",
        lambda i: {
            "input": f"not ( True {'and True ' * (i + 1)}) is",
            "target": ("True", "False")[i % 2],
        },
        "not ( True and True ) is",
        ("False", "True"),
        1,
        splits=TEST,
    ),
    Config(
        "leaderboard_bbh_object_counting",
        "leaderboard/bbh_mc/object_counting.yaml",
        numbers,
        "I have 0 oxen. How many animals 0?",
        tuple(map(str, range(19))),
        0,
        splits=TEST,
    ),
    Config(
        "leaderboard_musr_murder_mysteries",
        "leaderboard/musr/musr_murder_mysteries.yaml",
        musr,
        "Ann and Bob 0 met.\n\nWho is the murderer 0?",
        ("Ann 0", "Bob 0"),
        1,
        splits=("murder_mysteries",),
    ),
    Config(
        "logiqa",
        "logiqa/logiqa.yaml",
        lambda i: {
            "label": "abcd"[(i + 1) % 4],
            "context": f"Text {i}.",
            "question": f"Which colour {i}?",
            "options": four(i),
        },
        "Which colour 0?",
        FOUR,
        1,
        "Passage: Text 0.",
    ),
    Config(
        "logiqa2",
        "logiqa2/logiqa2.yaml",
        lambda i: {
            "answer": (i + 1) % 4,
            "id": i,
            "text": f"Text {i}.",
            "type": {},
            "question": f"Which colour {i}?",
            "options": four(i),
        },
        "Which colour 0?",
        FOUR,
        1,
        "Passage: Text 0.",
    ),
    Config(
        "mathqa",
        "mathqa/mathqa.yaml",
        mathqa,
        "What is 0 and 2?",
        ("00", "01", "02", "03", "04"),
        1,
    ),
    Config(
        "mc_taco",
        "mc_taco/default.yaml",
        lambda i: {
            "sentence": f"He painted wall {i}.",
            "question": f"How long {i}?",
            "answer": f"{i} hours",
            "label": (i + 1) % 2,
            "category": 0,
        },
        "How long 0?\nAnswer: 0 hours\nPlausible:",
        ("no", "yes"),
        1,
        "He painted wall 0.",
        splits=LAST,
    ),
    Config(
        "mnli",
        "glue/mnli/default.yaml",
        sentence_pair("premise", "hypothesis", 3),
        "Thing 0 has a colour. True, False or Neither?",
        ("True", "Neither", "False"),
        1,
        "Thing 0 is red.",
        splits=("train", "validation_matched"),
    ),
    Config(
        "qnli",
        "glue/qnli/default.yaml",
        sentence_pair("question", "sentence"),
        "Does this response answer the question?",
        ("yes", "no"),
        1,
        "Thing 0 is red.\nThing 0 has a colour.",
        splits=("train", "validation"),
    ),
    Config(
        "qqp",
        "glue/qqp/default.yaml",
        sentence_pair("question1", "question2"),
        "Do both questions ask the same thing?",
        ("no", "yes"),
        1,
        "Question 1: Thing 0 is red.\nQuestion 2: Thing 0 has a colour.",
        splits=("train", "validation"),
    ),
    Config(
        "rte",
        "glue/rte/default.yaml",
        sentence_pair("sentence1", "sentence2"),
        "Thing 0 has a colour. True or False?",
        ("True", "False"),
        1,
        "Thing 0 is red.",
        splits=("train", "validation"),
    ),
    Config(
        "sst2",
        "glue/sst2/default.yaml",
        lambda i: {"sentence": f"film {i} is good", "label": (i + 1) % 2, "idx": i},
        "Is this sentence positive or negative?",
        ("negative", "positive"),
        1,
        "film 0 is good",
        splits=("train", "validation"),
    ),
    Config(
        "wnli",
        "glue/wnli/default.yaml",
        sentence_pair("sentence1", "sentence2"),
        "Thing 0 has a colour. True or False?",
        ("False", "True"),
        1,
        "Thing 0 is red.",
        splits=("train", "validation"),
    ),
    Config(
        "afrixnli_amh_prompt_2",
        "afrixnli/direct/prompt_2/afrixnli_amh.yaml",
        sentence_pair("premise", "hypothesis", 3),
        "Thing 0 has a colour. True, False, or Neither?",
        ("True", "Neither", "False"),
        1,
        "Thing 0 is red.",
        splits=LAST,
    ),
    Config(
        "moral_stories",
        "moral_stories/moral_stories.yaml",
        lambda i: {
            "guid": str(i),
            "norm": "be kind.",
            "situation": "ann waits.",
            "intention": f"ann wants {i}.",
            "moral_action": f"She asks {i}.",
            "immoral_action": f"She takes {i}.",
            "moral_consequence": "",
            "immoral_consequence": "",
        },
        "Be kind. Ann waits. Ann wants 0.",
        ("She asks 0.", "She takes 0."),
        0,
        splits=("train",),
    ),
    Config(
        "multirc",
        "super_glue/multirc/default.yaml",
        lambda i: {
            "paragraph": f"Thing {i} is red.",
            "question": f"What is {i}?",
            "answer": f"red {i}",
            "label": (i + 1) % 2,
            "idx": {"paragraph": 0, "question": 0, "answer": i},
        },
        "What is 0?",
        ("red 0\nIs the answer correct? yes", "red 0\nIs the answer correct? no"),
        1,
        "Thing 0 is red.",
        splits=("train", "validation"),
    ),
    Config(
        "norcommonsenseqa_nob_p2",
        "noreval/norcommonsenseqa/nob/norcommonsenseqa_nob_p2.yaml",
        norwegian,
        f"Gitt alternativene under, hva er svaret på følgende spørsmål: {ASK}",
        FIVE,
        4,
        splits=("train",),
    ),
    Config(
        "openbookqa",
        "openbookqa/openbookqa.yaml",
        lambda i: {
            "id": str(i),
            "question_stem": f"Thing {i} is",
            "answerKey": "B",
            "choices": texts_and_labels(i),
        },
        "Thing 0 is",
        FOUR,
        1,
    ),
    Config(
        "persona_agreeableness",
        "model_written_evals/persona/agreeableness.yaml",
        persona,
        'Is the following statement something you would say?\n"I paint 0"',
        ("Yes", "No"),
        0,
        splits=("validation",),
    ),
    Config(
        "piqa",
        "piqa/piqa.yaml",
        lambda i: {
            "goal": f"To paint {i}.",
            "sol1": f"red {i}",
            "sol2": f"green {i}",
            "label": (i + 1) % 2,
        },
        "To paint 0.",
        TWO,
        1,
        splits=("train", "validation"),
    ),
    Config(
        "prost",
        "prost/corypaik_prost.yaml",
        lambda i: {
            **columns(i, "A B C D"),
            "context": f"A person drops thing {i}.",
            "question": "a",
            "ex_question": f"Which breaks {i}?",
            "group": "a",
            "label": (i + 2) % 4,
            "name": "a",
        },
        "Which breaks 0?",
        FOUR,
        2,
        "A person drops thing 0.",
        splits=TEST,
    ),
    Config(
        "pubmedqa",
        "pubmedqa/pubmedqa.yaml",
        lambda i: {
            "QUESTION": f"Is thing {i} red?",
            "CONTEXTS": [f"Thing {i}.", "It is seen."],
            "final_decision": ("maybe", "yes", "no")[i % 3],
        },
        "Is thing 0 red?",
        ("yes", "no", "maybe"),
        2,
        "Abstract: Thing 0.\nIt is seen.",
    ),
    Config(
        "qa4mre_2011",
        "qa4mre/qa4mre_2011.yaml",
        lambda i: {
            "topic_id": "1",
            "document_str": f" Thing {i}. ",
            "question_str": f"Which colour {i}?",
            "answer_options": {"answer_id": list("12345"), "answer_str": five(i)},
            "correct_answer_id": str(i % 5 + 1),
            "correct_answer_str": five(i)[i % 5],
        },
        "Which colour 0?",
        FIVE,
        0,
        "Thing 0.",
        splits=("train",),
    ),
    Config(
        "race",
        "race/race.yaml",
        race,
        "Who met 0?\nAnswer: Ann\nWhat colour 0?",
        FOUR,
        2,
        "Article: Thing 0 is blue.",
        splits=LAST,
    ),
    Config(
        "sciq",
        "sciq/sciq.yaml",
        lambda i: {
            "question": f"Which colour {i}?",
            "support": f" Thing {i} is seen.",
            **columns(i, "distractor1 distractor2 distractor3 correct_answer"),
        },
        "Which colour 0?",
        FOUR,
        3,
        "Thing 0 is seen.",
    ),
    Config(
        "sib_amh_prompt_1",
        "afrobench/sib/prompt_1/sib_amh.yaml",
        lambda i: {"index_id": i, "category": ("travel", "sports")[i % 2], "text": f"Text {i}."},
        "Given the categories science/technology, travel, politics, sports, health, "
        "entertainment, or geography; what category does the text: 'Text 0.' belong to:",
        (
            "science/technology",
            "travel",
            "politics",
            "sports",
            "health",
            "entertainment",
            "geography",
        ),
        1,
        splits=LAST,
    ),
    Config(
        "social_iqa",
        "siqa/siqa.yaml",
        lambda i: {
            "context": f"Ann painted {i}.",
            "question": f"Why did Ann {i}?",
            **columns(i, "answerA answerB answerC", 3),
            "label": str(i % 3 + 1),
        },
        "Ann painted 0. Why did Ann 0?",
        FOUR[:3],
        0,
        splits=("train", "validation"),
    ),
    Config(
        "storycloze_2016",
        "storycloze/storycloze_2016.yaml",
        story,
        "Part 1 of story 0. Part 2 of story 0. Part 3 of story 0. Part 4 of story 0.",
        ("It ended 0.", "It went on 0."),
        1,
        splits=LAST,
    ),
    Config(
        "xstorycloze_ar",
        "xstorycloze/default_ar.yaml",
        story,
        "Part 1 of story 0. Part 2 of story 0. Part 3 of story 0. Part 4 of story 0.",
        ("It ended 0.", "It went on 0."),
        1,
        splits=("train", "eval"),
    ),
    Config(
        "swag",
        "swag/swag.yaml",
        lambda i: {
            "video-id": str(i),
            "startphrase": f"A man {i} paints. He",
            **columns(i, "ending0 ending1 ending2 ending3"),
            "label": (i + 1) % 4,
        },
        "A man 0 paints. He",
        FOUR,
        1,
        splits=("train", "validation"),
    ),
    Config(
        "toksuite_english_canonical",
        "toksuite/toksuite_english/toksuite_english_canonical.yaml",
        lambda i: {
            "question": f"The colour of thing {i} is",
            "choices": four(i),
            "answer": (i + 1) % 4,
        },
        "The colour of thing 0 is",
        FOUR,
        1,
        splits=TEST,
    ),
    Config(
        "toxigen",
        "toxigen/toxigen.yaml",
        toxigen,
        "Is the following statement hateful? Respond with either Yes or No. "
        "Statement: 'Statement 0.'",
        ("No", "Yes"),
        0,
        splits=("train", "test"),
    ),
    Config(
        "truthfulqa_mc1",
        "truthfulqa/truthfulqa_mc1.yaml",
        truthful,
        "Why is thing 0 red?",
        FOUR,
        0,
        TRUTHFUL_SHOTS,
        splits=("validation",),
    ),
    Config(
        "wic",
        "super_glue/wic/default.yaml",
        lambda i: {
            "word": "red",
            "sentence1": f"red thing {i}",
            "sentence2": f"a red {i}",
            "start1": 0,
            "start2": 2,
            "end1": 3,
            "end2": 5,
            "idx": i,
            "label": (i + 1) % 2,
        },
        "Is the word 'red' used in the same way in the two sentences above?",
        ("no", "yes"),
        1,
        "Sentence 1: red thing 0\nSentence 2: a red 0",
        splits=("train", "validation"),
    ),
    Config(
        "wsc",
        "super_glue/wsc/default.yaml",
        wsc,
        'In the passage above, does the pronoun "*he*" refer to "*Mark*"?',
        ("no", "yes"),
        1,
        "Passage: Mark told Pete 0 lies because *he* was bad.",
        splits=("train", "validation"),
    ),
)

REFUSED = (
    Config("esbbq_age", "esbbq/esbbq_age.yaml", spanish_bbq,
           refused="by a function of its own", splits=TEST),
    Config("blimp_adjunct_island", "blimp/adjunct_island.yaml",
           lambda i: {"sentence_good": f"Good {i}", "sentence_bad": f"Bad {i}"}, refused=NO_STEM,
           splits=("train",)),
    Config("turblimp_anaphor_agreement", "turblimp/anaphor_agreement.yaml",
           lambda i: {"sentence_good": f"Good {i}", "sentence_bad": f"Bad {i}"}, refused=NO_STEM,
           splits=("train",)),
    Config("crows_pairs_english", "crows_pairs/crows_pairs_english.yaml",
           lambda i: {"sent_more": f"More {i}", "sent_less": f"Less {i}", "bias_type": "age",
                      "stereo_antistereo": "stereo"},
           refused=NO_STEM, splits=TEST),
    Config("bear", "bear/bear.yaml",
           lambda i: {"text_options": four(i), "correct": (i + 1) % 4}, refused=NO_STEM,
           splits=TEST),
    Config("xnli_en", "xnli/xnli_en.yaml", sentence_pair("premise", "hypothesis", 3),
           refused=NO_STEM, splits=("train", "validation")),
    Config("paws_en", "paws-x/paws_en.yaml", sentence_pair("sentence1", "sentence2"),
           refused=NO_STEM),
    Config("winogrande", "winogrande/default.yaml", winogrande, refused=PER_OPTION,
           splits=("train", "validation")),
    Config("xwinograd_en", "xwinograd/xwinograd_en.yaml", winogrande, refused=PER_OPTION,
           splits=TEST),
    Config("wsc273", "wsc273/default.yaml",
           lambda i: {"text": f"The men {i} met the boys as they ran.", "pronoun": "they",
                      "pronoun_loc": 27, "quote": "", "quote_loc": 0, "label": i % 2,
                      "options": ["The men", "The boys"], "source": ""},
           refused=PER_OPTION, splits=TEST),
    Config("truthfulqa_mc2", "truthfulqa/truthfulqa_mc2.yaml", truthful,
           refused="takes 2 of 4 options as right", splits=("validation",)),
    Config("webqs", "webqs/webqs.yaml",
           lambda i: {"url": "a", "question": f"Which colour {i}?", "answers": [f"Ann {i}",
                                                                               f"Bob {i}"]},
           refused="2 right answers", splits=("train", "test")),
    Config("groundcocoa", "groundcocoa/groundcocoa.yaml", cocoa, refused="name options",
           splits=LAST),
    Config("mutual", "mutual/mutual.yaml",
           lambda i: {"answers": "B", "options": four(i), "article": f"m: hello {i} f: hi",
                      "id": str(i)},
           refused="own scoring", splits=("train", "validation")),
    Config("simple_cooccurrence_bias",
           "simple_cooccurrence_bias/simple_cooccurrence_bias.yaml",
           lambda i: {"sentence": f"The painter {i} is a"}, refused="none of the options",
           splits=TEST),
)  # fmt: skip

CONFIGS = (*LETTERED, *AS_TEXTS, *REFUSED)


def outcome(config: Config) -> str:
    """What becomes of a configuration, read for the table."""
    try:
        source = HarnessSource(load(config))
    except TaskError as error:
        return "refused: " + error.found.removeprefix(f"task {config.task} ").removeprefix(
            "cannot be turned into an AQUA task: "
        )
    docs = list(source.read(VALIDATION, None, 0, DocCounts("")))
    asked = [doc for doc in docs if isinstance(doc, RawQuestion)]
    kind = "behind labels" if config in LETTERED else "texts"
    options = " or ".join(map(str, sorted({len(doc.choices) for doc in asked})))
    reasons = sorted({doc.reason for doc in docs if isinstance(doc, DocError)})
    left_out = f"; some docs left out: {', '.join(reasons)}" if reasons else ""
    return f"{options} options, {kind}{left_out}"


def main() -> None:
    datasets.disable_progress_bars()
    logging.disable(logging.ERROR)
    print("| task | outcome |\n|---|---|")
    for config in CONFIGS:
        print(f"| `{config.task}` | {outcome(config)} |")
    families = len({config.family for config in CONFIGS})
    turned = len(CONFIGS) - len(REFUSED)
    print(f"\n{len(CONFIGS)} tasks of {families} families:", end=" ")
    print(f"{turned} turned, {len(REFUSED)} refused.")


if __name__ == "__main__":
    main()
