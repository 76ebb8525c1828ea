"""Where neurons are chosen, and where they are edited."""

from __future__ import annotations

# Positions whose logits decide between the options: the last context token and, of options of
# several tokens, those before the last. The paper's setting.
SCORED = "scored"
# Every position of the context and of the options, as an exported adapter acts.
ALL = "all"
POSITIONS = (SCORED, ALL)
