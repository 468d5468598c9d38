"""Everyone who takes a step of training in `training.py`, in a process of its own."""

import ctypes
import multiprocessing
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from peers import PRECISIONS, Shape
from sampling import race, settings
from torch import Tensor

from anymodal.learning.allocation import keep_freed_memory
from anymodal.learning.config import OptimizerConfig, RunConfig
from anymodal.learning.optimizer import build_optimizer, trainable
from anymodal.learning.passing import through_of
from anymodal.model.config import AnyModalConfig
from anymodal.model.unified import AnyModal
from anymodal.published.llama import backbone_rules, read_transformer
from anymodal.published.names import Names
from anymodal.tokens.batch import Batch
from anymodal.tokens.vocabulary import Vocabulary

ROWS, LENGTH = 4, 288
VOCABULARY, CODES = 20480, 16384
KINDS = {"a document a row": False, "packed documents": True}
RUNS = {
    "": RunConfig(),
    " compiled": RunConfig(compile=True),
    ", activations computed again": RunConfig(checkpoint_activations=True),
}
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Rows:
    """Rows of ids and what follows each; the documents that share a row, where they do."""

    batch: Batch
    mask: Tensor | None

    @classmethod
    def draw(cls, vocabulary: int, *, packed: bool, count: int = ROWS, length: int = LENGTH) -> "Rows":
        """Draw rows of random ids: one document each, or documents of a few dozen tokens behind each other."""
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(3, vocabulary, (count, length + 1), generator=generator)
        positions = torch.arange(length).expand(count, -1)
        batch = Batch(ids=ids[:, :-1].contiguous(), targets=ids[:, 1:].contiguous(), positions=positions)
        if not packed:
            return cls(batch, None)
        begins = torch.rand(count, length, generator=generator) < 1 / 48
        begins[:, 0] = True
        batch.documents = begins.flatten().cumsum(0).view(count, length) - 1
        batch.positions = positions - torch.where(begins, positions, 0).cummax(1).values
        same = batch.documents[:, None, :, None] == batch.documents[:, None, None, :]
        return cls(batch, same & torch.ones(length, length, dtype=torch.bool).tril())


def llama(shape: Shape, vocabulary: int, length: int = 1024) -> Any:
    """Build transformers' model."""
    import transformers  # noqa: PLC0415

    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=shape.dim, intermediate_size=shape.hidden_dim, rms_norm_eps=1e-6,
        num_hidden_layers=shape.depth, num_attention_heads=shape.num_heads, num_key_value_heads=shape.num_heads,
        max_position_embeddings=length, tie_word_embeddings=False,
    )).train()  # fmt: skip


def unified(theirs: Any, codes: int) -> AnyModal:
    """Build ours with the weights of theirs: one head over text and codes."""
    size = theirs.config.vocab_size
    vocabulary = Vocabulary.build(text_size=size - codes, specials={"pad": 0}, codebook_size=codes)
    model = AnyModal(AnyModalConfig(transformer=read_transformer(theirs.config.to_dict())), vocabulary)
    weights = {name: weight.clone() for name, weight in theirs.state_dict().items()}
    Names(backbone_rules("model.", tied=False)).read(weights, model, "Llama")
    return model.train()


class Trainings:
    """Everyone who takes a step: two models of the same weights, each as it is and compiled."""

    def __init__(self, shape: Shape, vocabulary: int, codes: int, precision: str) -> None:
        """Build the models and their optimizers."""
        self.theirs = llama(shape, vocabulary)
        self.ours = unified(self.theirs, codes)
        self.compiled = torch.compile(self.theirs)
        dtype = PRECISIONS[precision]
        self.autocast = nullcontext if dtype == torch.float32 else partial(torch.autocast, "cpu", dtype)
        config = OptimizerConfig()
        self.optimizers = {
            "ours": build_optimizer(trainable(self.ours), config),
            "theirs": torch.optim.AdamW(self.theirs.parameters(), lr=config.learning_rate, fused=True),
        }
        self.through = {name: through_of(run) for name, run in RUNS.items()}

    def runners(self, rows: Rows, *, quick: bool) -> dict[str, Callable[[], Tensor]]:
        """Return what computes the loss of everyone by name."""
        ours = {f"anymodal{name}": partial(self.ours_loss, rows, name) for name in RUNS}
        runners = {
            "transformers": partial(self.their_loss, rows, self.theirs),
            "transformers compiled": partial(self.their_loss, rows, self.compiled),
            **ours,
        }
        return {name: runner for name, runner in runners.items() if not (quick and "compiled" in name)}

    def ours_loss(self, rows: Rows, run: str) -> Tensor:
        """Compute our loss a token."""
        self.ours.transformer.through = self.through[run]
        with self.autocast():
            losses = self.ours(rows.batch).losses
        return torch.stack([part.total for part in losses.values()]).sum() / rows.batch.targets.numel()

    def their_loss(self, rows: Rows, model: Any) -> Tensor:
        """Compute their loss a token; documents of a row are kept apart by a dense mask."""
        batch = rows.batch
        with self.autocast():
            out = model(
                input_ids=batch.ids, attention_mask=rows.mask, position_ids=batch.positions, labels=batch.targets,
                shift_labels=batch.targets, use_cache=False,
            )  # fmt: skip
        return out.loss  # type: ignore[no-any-return]

    def forget(self) -> None:
        """Let go of all gradients."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()

    def step(self, name: str, loss_of: Callable[[], Tensor]) -> None:
        """Take a step."""
        model, optimizer = (
            (self.ours, self.optimizers["ours"]) if "anymodal" in name else (self.theirs, self.optimizers["theirs"])
        )
        optimizer.zero_grad()
        loss_of().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


class Contestant:
    """A process of its own for everyone who takes a step: what one does with memory is not the others' business."""

    def __init__(self, name: str, shape: Shape, precision: str, *, quick: bool) -> None:
        """Start the process, which builds its models."""
        context = multiprocessing.get_context("spawn")
        self.connection, there = context.Pipe()
        arguments = (there, name, shape, precision, torch.get_num_threads(), quick)
        self.process = context.Process(target=serve, args=arguments, daemon=True)
        self.process.start()
        there.close()

    def ask(self, what: str, kind: str) -> Any:
        """Return the loss, the seconds of a step, or the bytes that one holds at most.

        Raises:
            EOFError: the process has died.
        """
        self.connection.send((what, kind))
        return self.connection.recv()

    def end(self) -> None:
        """End the process."""
        self.connection.close()
        self.process.join()


def serve(connection: Connection, name: str, shape: Shape, precision: str, threads: int, quick: bool) -> None:
    """Answer what a contestant is asked, until nobody asks any more."""
    vocabulary, codes = sizes(quick=quick)
    with settings(threads):
        if "anymodal" in name:
            keep_freed_memory()  # as `fit` does
        trainings = Trainings(shape, vocabulary, codes, precision)
        kinds = {kind: Rows.draw(vocabulary, packed=packed) for kind, packed in KINDS.items()}
        runs = {kind: trainings.runners(rows, quick=quick)[name] for kind, rows in kinds.items()}
        with suppress(EOFError):
            while True:
                what, kind = connection.recv()
                step = partial(trainings.step, name, runs[kind])
                if what == "loss":
                    with torch.no_grad():
                        connection.send(float(runs[kind]()))
                elif what == "memory":
                    connection.send(peak_bytes(step, trainings.forget))
                else:
                    connection.send(race({name: lambda _, step=step: step()}, 1, clock())[name][0])  # type: ignore[misc]


def sizes(*, quick: bool) -> tuple[int, int]:
    """Return how many ids there are, and how many of them are codes."""
    return (512, 384) if quick else (VOCABULARY, CODES)


def clock() -> Callable[[], float]:
    """Return what tells the time: that of this process alone, where it has one thread, so that no neighbour counts."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def peak_bytes(run: Callable[[], Any], forget: Callable[[], None]) -> int | None:
    """Return the most memory that a run holds beyond what `forget` leaves; None where the system does not tell."""
    if not (STATUS.is_file() and RESET.is_file()):
        return None
    run()  # what is made once is there
    forget()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc keeps what is freed
        trim(0)
    before = _status("VmRSS")
    RESET.write_text("5", encoding="utf-8")  # sets VmHWM back
    run()
    return max(0, _status("VmHWM") - before)


def _status(key: str) -> int:
    line = next(line for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])
