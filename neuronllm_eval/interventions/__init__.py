"""A condition's name becomes factors on every neuron, and these become scores of every doc.

| module | idea |
|---|---|
| `conditions` | names such as `suppress_good.k50.x0.random_3`, their factors, and what they edit |
| `condition_plan` | which conditions a validation scores: sweeps and random controls |
| `score_conditions` | every doc's option log-likelihoods under all of them |

Read first: `conditions.py`.
"""
