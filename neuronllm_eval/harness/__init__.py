"""The only code that knows lm_eval's private interfaces: tasks, requests, tokenisation, results.

Read first: `tasks.py`.
"""
