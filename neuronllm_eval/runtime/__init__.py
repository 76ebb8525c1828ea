"""Which process does which unit of work, and nothing is lost: checkpoints, locks, signals.

Read first: `resumable_work.py`.
"""
