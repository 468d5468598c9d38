"""Published checkpoints: one file a layout, their names to ours and back."""
