"""A data set becomes checked, option-shuffled questions with metrics; pure, without torch.

Read first: `dataset.py`.
"""
