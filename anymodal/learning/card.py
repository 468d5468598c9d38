"""The card of a model that a run made: what it is, how it came about, how to use it."""

from collections.abc import Mapping
from typing import Any

import yaml

from anymodal import __version__
from anymodal.configuration import to_dict
from anymodal.model.folder import ModelFolder
from anymodal.tokens.weights import num_parameters


def write_card(parts: ModelFolder, base: str, sections: Mapping[str, Any]) -> str:
    """Return the card of trained `parts`; `sections` are the run's, `base` what it began from, or empty."""
    config = parts.model.config
    looks = "as codes" if config.understanding is None else "through an understanding encoder"
    writes = "one shared head" if config.heads == "shared" else "a head a modality"
    begun = (
        f"It began from `{base}`; what that model's card says of data and licences holds here, too.\n\n" if base else ""
    )
    settings = yaml.safe_dump(to_dict(sections), sort_keys=False, default_flow_style=None, width=120)
    return f"""# A model trained with anymodal

{num_parameters(parts.model):,} parameters that look at pictures {looks} and write with {writes}: pictures in
{parts.image_tokenizer.codebook_size:,} codes, text in {parts.text_tokenizer.vocab_size:,} tokens.

{begun}Trained with anymodal {__version__} by:

```yaml
{settings}```

```python
import anymodal

pipe = anymodal.from_pretrained("this folder")
image = pipe.generate_image("...")[0]
print(pipe.answer(image, "What is this?"))
```

It was not scored yet: see `anymodal sample score --help`.
"""
