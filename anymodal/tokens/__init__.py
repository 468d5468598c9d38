"""Media to token ids and back."""
