"""Loreloop: train, serve and keep improving language models with LoRA, over the Tinker protocol."""

__version__ = "0.3.0"
