"""The embedded demo: a tiny multiple-choice model and its questions.

Importing this package reads no file and does not import torch.
"""

from neuronllm_eval.demo.shipped import (
    FAMILIES,
    MODEL_DIR,
    QUESTIONS_DIR,
    SPLITS,
    load_questions,
)

__all__ = ["FAMILIES", "MODEL_DIR", "QUESTIONS_DIR", "SPLITS", "load_questions"]
