"""Our models in lmms-eval, which finds them by the entry point `lmms_eval.models`.

    lmms-eval --model anymodal --model_args pretrained=emoji --tasks pope --batch_size 16

Nothing here imports lmms-eval before it asks.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from PIL import Image

from anymodal.data.progress import track
from anymodal.decoding.config import Options
from anymodal.pipeline import from_pretrained
from anymodal.scoring.public.answering import write_text
from anymodal.tokens.parts import Part

PLACE = "<image>"


class Answerer:
    """Answer lmms-eval's requests; together with its base class this is a model of it.

    A request carries (context, settings or target, doc_to_visual, doc_id, task, split).

    >>> Answerer.document("Which is red? <image> or <image>", ["a", "b"])
    ['Which is red? ', 'a', ' or ', 'b']
    """

    is_simple = True  # takes contexts and pictures, not chat messages
    task_dict: Mapping[str, Any]

    def __init__(
        self,
        pretrained: str = "emoji",
        *,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int | str = 16,
        seed: int = 0,
        allow_pickle: bool = False,
    ) -> None:
        """Load a model folder, or an embedded model by name.

        Raises:
            ValueError: there is no such model, or the batch size is no whole number from 1 on.
        """
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size must be a whole number from 1 on, got {batch_size!r}; pass --batch_size 16.")
        self.pipe = from_pretrained(pretrained, device=device, dtype=dtype, allow_pickle=allow_pickle)
        self.batch_size, self.seed = int(batch_size), seed

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Return what the model writes behind every context, up to the first of its stops.

        Raises:
            ValueError: a request shows anything but pictures, or asks for beam search.
        """
        alike: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(repr(_options(request.args[1])), []).append(number)
        parts = [numbers[start : start + self.batch_size]
                 for numbers in alike.values() for start in range(0, len(numbers), self.batch_size)]  # fmt: skip
        written: dict[int, str] = {}
        for numbers in track(parts, "requests"):
            documents = [self._asked(requests[number].args) for number in numbers]
            options = _options(requests[numbers[0]].args[1])
            options["seed"] = self.seed
            for number, answer in zip(numbers, write_text(self.pipe, documents, **options), strict=True):
                written[number] = _cut(answer, requests[number].args[1].get("until"))
        return [written[number] for number in range(len(requests))]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Return the loss of every target, in nats, and whether the model would write it by itself.

        The loss, not the log-likelihood that the name tells: lmms-eval takes the option of the least value.
        """
        found = []
        for request in track(requests, "requests"):
            target = request.args[1]
            target = target if isinstance(target, str) else target(self._doc(request.args))
            target = str(target).strip()  # the template says what stands before an answer
            document = self._asked(request.args)
            budget = len(self.pipe.text_tokenizer.encode(target)) + 1
            (written,) = write_text(self.pipe, [document], temperature=0.0, max_new_tokens=budget)
            greedy = isinstance(written, str) and written.startswith(target)
            found.append((-self.pipe.log_likelihood(document, target), greedy))
        return found

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refuse tasks of several rounds.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("anymodal answers tasks of one round; leave the tasks of several rounds out.")

    def _doc(self, args: tuple[Any, ...]) -> Any:
        number, task, split = args[3:6]
        return self.task_dict[task][split][number]

    def _asked(self, args: tuple[Any, ...]) -> list[Part]:
        visuals = args[2](self._doc(args)) or []
        strange = [visual for visual in visuals if not isinstance(visual, Image.Image)]
        if strange:
            raise ValueError(f"task {args[4]} shows {type(strange[0]).__name__}; anymodal looks at pictures alone.")
        return self.document(args[0], visuals)

    @staticmethod
    def document(context: str, visuals: Sequence[Any]) -> list[Any]:
        """Put pictures where the context names them, or before it where it does not."""
        pieces = context.split(PLACE)
        if len(pieces) != len(visuals) + 1:
            return [*visuals, context]
        parts = [part for piece, visual in zip(pieces, visuals, strict=False) for part in (piece, visual)]
        return [part for part in (*parts, pieces[-1]) if part != ""]


@cache
def model_class() -> type:
    """Return the model that lmms-eval makes."""
    from lmms_eval.api.model import lmms

    class AnyModalLMM(Answerer, lmms):  # type: ignore[misc]
        """Answer lmms-eval's requests with a model of ours."""

    return AnyModalLMM


def model_manifest() -> Any:
    """Tell lmms-eval the name of our model and where its class is."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="anymodal", simple_class_path=f"{__name__}.AnyModalLMM")


def __getattr__(name: str) -> type:
    if name == "AnyModalLMM":
        return model_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _options(settings: Mapping[str, Any]) -> Options:
    """Read lmms-eval's settings; without `do_sample` the most likely text is written."""
    if settings.get("num_beams", 1) not in (None, 1):
        raise ValueError(f"anymodal samples without beams, the task asks for {settings['num_beams']}; set num_beams=1.")
    sampled = settings.get("do_sample", bool(settings.get("temperature")))
    options = Options(temperature=float(settings.get("temperature") or 1.0) if sampled else 0.0)
    if settings.get("top_p"):
        options["top_p"] = float(settings["top_p"])
    if settings.get("max_new_tokens"):
        options["max_new_tokens"] = int(settings["max_new_tokens"])
    return options


def _cut(answer: str | ValueError, until: Sequence[str] | str | None) -> str:
    if isinstance(answer, ValueError):
        sys.stderr.write(f"a request counts as unanswered: {answer}\n")
        return ""
    for stop in [until] if isinstance(until, str) else until or []:
        answer = answer.partition(stop)[0] if stop else answer
    return answer
