"""NeuronLLM for EleutherAI's lm-evaluation-harness (arXiv 2601.04548)."""

__version__ = "0.1.0"
