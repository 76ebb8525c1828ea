"""`AquaTask`: the harness task class of AQUA tasks (`class:` in `tasks/aqua/_aqua.yaml`).

The harness keeps built requests under a task's name (`--cache_requests`), whatever its metadata and
data are. Of an AQUA task other settings mean other questions, so the name is made to say them.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from lm_eval.api.task import ConfigurableTask


class AquaTask(ConfigurableTask):
    """A task whose cached requests are those of its own docs.

    Args:
        config: the task's configuration, as the harness reads it from YAML.
    """

    def __init__(self, config: dict[str, Any] | None = None, **options: Any) -> None:
        # The harness leaves the name of this class among a configuration's keys.
        kept = {key: value for key, value in (config or {}).items() if key != "class"}
        super().__init__(config=kept, **options)

    def build_all_requests(self, **options: Any) -> None:
        """As the harness does; requests are cached under a name that tells these docs."""
        if not options.get("cache_requests"):
            super().build_all_requests(**options)
            return
        name = self.config.task
        try:
            self.config.task = f"{name}-{self._docs_digest()}"
            super().build_all_requests(**options)
        finally:
            self.config.task = name
        for instance in self.instances:
            instance.task_name = name

    def _docs_digest(self) -> str:
        """16 hexadecimal digits that follow from all that is asked and shown."""
        state = hashlib.sha256(
            json.dumps([self.config.description, self.config.doc_to_text]).encode()
        )
        shown = self.fewshot_docs()
        for docs in [self.eval_docs, *([] if shown is None else [shown])]:
            for column in ("prompt", "answer", "letters"):
                state.update(json.dumps(list(docs[column])).encode())
        return state.hexdigest()[:16]
