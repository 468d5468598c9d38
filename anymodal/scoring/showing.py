"""What a model draws while it learns."""

from collections.abc import Callable, Sequence
from pathlib import Path

from anymodal.data.sheet import contact_sheet
from anymodal.pipeline import Pipeline


def drawings(pipe: Pipeline, prompts: Sequence[str], folder: Path) -> Callable[[int], None]:
    """Return a function that draws the prompts at a step and writes them as one picture."""

    def show(step: int) -> None:
        sheet = contact_sheet(pipe.generate_image(list(prompts)), captions=list(prompts), scale=2)
        folder.mkdir(parents=True, exist_ok=True)
        sheet.save(folder / f"step-{step:08d}.png")

    return show
