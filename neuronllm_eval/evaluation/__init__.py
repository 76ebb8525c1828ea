"""What each condition did to the benchmark, with interval, test and random controls.

Read first: `condition_effects.py`.
"""
