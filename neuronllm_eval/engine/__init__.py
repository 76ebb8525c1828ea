"""Prompts and edits become option log-likelihoods or path integrals, exact up to rounding.

Two engines behind one interface, and everything they need:

| module | idea |
|---|---|
| `interface` | targets F, results, and the `Engine` protocol: `score` and `integrate` |
| `build` | chooses an engine for a model, by checking it on the run's own prompts |
| `fan_out` | the fast engine: every edit is one more query token over a shared cache |
| `scaled_copies` | its copies along alpha * h_l, joining at the layer or at its output |
| `shared_prefix` | its cache: what prompts have in common is prefilled once; its 4-D masks |
| `option_logits` | logits -> log-likelihoods of options; the LM head for their tokens alone |
| `replay` | the general engine: one full forward pass per edit; the oracle of the tests |
| `batching` | how many prompts fit into memory, and smaller batches when they do not |

Read first: `interface.py`, then `fan_out.py`.
"""
