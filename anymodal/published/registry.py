"""Which published layouts there are, and which one a folder has."""

from pathlib import Path

from anymodal.model.folder import ModelFolder, here_or_embedded
from anymodal.published import chameleon, chameleon_meta, emu3, janus, janus_original, llamagen
from anymodal.published.layout import Layout, PublishedFolder
from anymodal.tokens.folders import staged_folder
from anymodal.tokens.image import ImageTokenizer

LAYOUTS: dict[str, Layout] = {
    part.LAYOUT.name: part.LAYOUT for part in (chameleon, chameleon_meta, emu3, janus, janus_original)
}


def layout_of(folder: PublishedFolder) -> Layout | None:
    """Return the layout that a folder has, None where it is no published one."""
    return next((layout for layout in LAYOUTS.values() if layout.fits(folder)), None)


def load_published(path: Path, *, allow_pickle: bool = False) -> ModelFolder:
    """Read a folder in the layout that it came in.

    Raises:
        ValueError: no layout that is known here, a pickle that is not allowed, or a broken folder.
    """
    folder = PublishedFolder.open(path, allow_pickle=allow_pickle)
    layout = layout_of(folder)
    if layout is None:
        if (path / "model" / "config.json").is_file():
            raise ValueError(f"{path} is the folder of a run; its model is {path / 'model'}.")
        says = f"its config.json says model_type {folder.config.get('model_type')!r}"
        says = says if (path / "config.json").is_file() else "it holds no config.json"
        raise ValueError(
            f"{path} is no model folder that is known here: {says}; known are models made with anymodal and the "
            f"layouts {', '.join(LAYOUTS)}."
        )
    return _load(layout, folder)


def load_image_tokenizer(path: Path, *, allow_pickle: bool = False) -> ImageTokenizer:
    """Read an image tokenizer: its folder, a model folder of any known layout, an embedded model, a file of LlamaGen.

    Raises:
        ValueError: there is none, or its folder is broken.
    """
    path = here_or_embedded(path)
    if path.is_file():
        return llamagen.load_image_tokenizer(path, allow_pickle=allow_pickle)
    folder = PublishedFolder.open(path, allow_pickle=allow_pickle)
    if "format" in folder.config:
        return ImageTokenizer.from_pretrained(path / "image_tokenizer")
    if folder.config.get("model_type") == emu3.IMAGE_TOKENIZER:
        return emu3.load_image_tokenizer(path, allow_pickle=allow_pickle)
    layout = layout_of(folder)
    return ImageTokenizer.from_pretrained(path) if layout is None else _load(layout, folder).image_tokenizer


def _load(layout: Layout, folder: PublishedFolder) -> ModelFolder:
    """Load a folder whose config may hold anything where its layout has a number."""
    try:
        return layout.load(folder)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"{folder.path} has the layout {layout.name!r}, but its files say what no such model is "
            f"({type(error).__name__}: {error}); copy or download the folder again."
        ) from error


def save_published(parts: ModelFolder, folder: Path, layout: str) -> None:
    """Write a model in a published layout, whole or not at all.

    Raises:
        ValueError: an unknown layout, one that cannot be written or cannot express the model, or a folder in use.
        OSError: the disk is full or read-only.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}.")
    write = LAYOUTS[layout].save
    if write is None:
        raise ValueError(f"models are read from the layout {layout!r}, not written in it; save without a layout.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty; export into a new folder.")
    with staged_folder(folder) as partial:
        write(parts, partial)
