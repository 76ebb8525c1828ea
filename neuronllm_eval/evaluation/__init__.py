"""The effect of each condition on the benchmark, with interval, test and random controls.

Read first: `condition_effects.py`.
"""
