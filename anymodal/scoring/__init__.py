"""Scores of drawings, answers and image tokenizers."""
