"""A condition for tools that do not know this package: PEFT adapters, merged checkpoints.

Read first: `ia3_adapter.py`.
"""
