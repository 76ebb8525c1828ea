"""Whether an adapter that was exported is on the weights that it was made for."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import nn

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.export.manifest import EXPORT_FILE, Export
from neuronllm_eval.models.fingerprints import base_model_hash
from neuronllm_eval.models.hub import Reference, fetch, is_repo_id
from neuronllm_eval.models.precision import dtype_name

logger = logging.getLogger(__name__)


def warn_of_other_base(model: nn.Module, peft: str, revision: str | None, name: str) -> None:
    """Log a warning if an adapter that `export` made is on other weights than it was made for.

    Args:
        model: with the adapter.
        peft: its folder, or its name on the Hub.
        revision: of it, on the Hub.
        name: of the base model.
    """
    folder = Path(peft)
    if not folder.is_dir() and is_repo_id(peft):
        try:
            folder = fetch(Reference(peft, revision), EXPORT_FILE).path.parent
        except ArtifactError as error:
            logger.debug("nothing is known of where %s is from: %s", peft, error)
    if not (folder / EXPORT_FILE).is_file():
        return
    known = Export.load(folder).provenance
    if dtype_name(model) == known.dtype and base_model_hash(model) != known.model_hash:
        logger.warning(
            "the adapter %s was made for other weights than those of %s (for those of %s), or "
            "lm_eval has fitted the vocabulary to the tokenizer's, as it does with peft=",
            peft, name, known.model,
        )  # fmt: skip
