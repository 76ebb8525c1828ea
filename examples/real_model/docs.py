"""Which of the demo's questions the tasks beside this file ask."""

from __future__ import annotations

import datasets

_FACTS = ("capital", "continent", "currency", "language")


def facts(docs: datasets.Dataset) -> datasets.Dataset:
    """Questions on countries."""
    return docs.select([index for index, kind in enumerate(docs["subfamily"]) if kind in _FACTS])


def clear_reviews(docs: datasets.Dataset) -> datasets.Dataset:
    """Reviews without a negation that are for something or against it, not neither or both."""
    answers = [choices[n] for choices, n in zip(docs["choices"], docs["answer"], strict=True)]
    return docs.select(
        [
            index
            for index, kind in enumerate(docs["subfamily"])
            if kind == "no negation" and answers[index] in ("positive", "negative")
        ]
    )
