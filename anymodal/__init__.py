"""Train, load and sample unified models that read and write text and images as one stream of tokens."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anymodal.model.unified import AnyModal
    from anymodal.pipeline import Pipeline, from_pretrained
    from anymodal.tokens.document import Codes, Draw, Look, Say, Turn
    from anymodal.tokens.image import ImageTokenizer
    from anymodal.tokens.text import TextTokenizer

__version__ = "0.1.0"
__all__ = [
    "AnyModal",
    "Codes",
    "Draw",
    "ImageTokenizer",
    "Look",
    "Pipeline",
    "Say",
    "TextTokenizer",
    "Turn",
    "__version__",
    "from_pretrained",
]

_HOMES = {
    "AnyModal": "anymodal.model.unified",
    "Codes": "anymodal.tokens.document",
    "Draw": "anymodal.tokens.document",
    "ImageTokenizer": "anymodal.tokens.image",
    "Look": "anymodal.tokens.document",
    "Pipeline": "anymodal.pipeline",
    "Say": "anymodal.tokens.document",
    "TextTokenizer": "anymodal.tokens.text",
    "Turn": "anymodal.tokens.document",
    "from_pretrained": "anymodal.pipeline",
}

if not TYPE_CHECKING:  # type checkers read the imports above

    def __getattr__(name: str) -> object:
        """Import a public name when it is first used, so that `import anymodal` takes milliseconds."""
        if name not in _HOMES:
            raise AttributeError(f"module 'anymodal' has no attribute {name!r}; it has {', '.join(__all__)}.")
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
