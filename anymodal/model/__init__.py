"""The early-fusion model."""
