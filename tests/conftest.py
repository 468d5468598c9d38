"""Check shapes and types of every call while tests run, and keep parallel workers off each other's cores."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from jaxtyping import install_import_hook

if "PYTEST_XDIST_WORKER" in os.environ:  # read by torch when it is imported, here and in the programs that tests run
    os.environ.setdefault("OMP_NUM_THREADS", "1")

install_import_hook(["anymodal"], "beartype.beartype")  # before anything imports the library

if TYPE_CHECKING:
    from anymodal.data.config import DataConfig
    from anymodal.model.folder import ModelFolder

ROOT = Path(__file__).parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="repeat the fault tests as often as a release wants")
    parser.addoption("--record", type=Path, metavar="PATH", help="note in a JSON file how many faults were survived")


@pytest.fixture(scope="session")
def long(request: pytest.FixtureRequest) -> bool:
    """Tell whether the fault tests run in their long form."""
    return bool(request.config.getoption("--long"))


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the checkout."""
    return ROOT


@pytest.fixture
def cli(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `python -m anymodal WORDS` as a user would, in an empty folder."""

    def run(*words: str, cwd: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "anymodal", *words]
        return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)

    return run


@dataclass(frozen=True)
class Toy:
    """A tiny world: 24 samples with 4 x 4 codes of 16 x 16 pixels, tokenizers, and untrained models of them."""

    folder: Path

    @property
    def plain(self) -> str:
        """Name the shards without codes."""
        return str(self.folder / "plain")

    @property
    def coded(self) -> str:
        """Name the shards with codes."""
        return str(self.folder / "coded")

    @property
    def text_tokenizer(self) -> Path:
        return self.folder / "tokenizer.json"

    @property
    def image_tokenizer(self) -> Path:
        return self.folder / "image_tokenizer"

    @property
    def data(self) -> "DataConfig":
        from anymodal.data.config import DataConfig

        return DataConfig(train=self.coded, num_workers=0)

    def parts(self, *, seed: int = 0, dropout: float = 0.0, **changes: Any) -> "ModelFolder":
        """Make an untrained model folder."""
        import torch

        from anymodal.learning.unified_run import new_model
        from anymodal.model.config import AnyModalConfig, TransformerConfig, UnderstandingConfig
        from anymodal.tokens.config import ChatTemplate

        torch.manual_seed(seed)
        transformer = TransformerConfig(
            dim=32, depth=2, num_heads=2, num_kv_heads=1, head_dim=16, hidden_dim=64, max_seq_len=512, dropout=dropout
        )
        understanding = UnderstandingConfig(
            image_size=16, patch_size=8, dim=16, depth=1, num_heads=2, hidden_dim=32, connector_depth=1
        )
        config: dict[str, Any] = {"transformer": transformer, "understanding": understanding, **changes}
        return new_model(
            AnyModalConfig(**config),
            self.data,
            text_tokenizer=self.text_tokenizer,
            image_tokenizer=self.image_tokenizer,
            template=ChatTemplate(),
        )


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """Make the tiny world once."""
    import torch

    from anymodal.data.coding import coded_samples
    from anymodal.data.emoji import emoji_samples, scene_names
    from anymodal.data.index import ShardIndex
    from anymodal.data.samples import captions_of
    from anymodal.data.scenes import scene_samples
    from anymodal.data.shards import write_shards
    from anymodal.tokens.image import ImageTokenizer
    from anymodal.tokens.image_config import ImageTokenizerConfig, QuantizerConfig
    from anymodal.tokens.text import TextTokenizer

    made = Toy(tmp_path_factory.mktemp("toy"))
    samples = [
        *emoji_samples("train", concepts=scene_names()[:8], size=16),
        *scene_samples("train", count=16, seed=0, concepts=8, size=32),
    ]
    write_shards(samples, f"{made.plain}/%06d.tar", samples_per_shard=12)
    texts = [caption for sample in samples for caption in captions_of(sample)]
    TextTokenizer.learn(texts, vocab_size=320).save(made.text_tokenizer)
    torch.manual_seed(0)
    quantizer = QuantizerConfig(kind="fsq", codebook_size=16, levels=(4, 4))
    config = ImageTokenizerConfig(channels=(8,), norm_groups=4, blocks=1, latent_channels=8, quantizer=quantizer)
    tokenizer = ImageTokenizer(config).eval()
    tokenizer.save_pretrained(made.image_tokenizer)
    index = ShardIndex.open(made.plain)
    coded = coded_samples(index, range(len(index)), tokenizer=tokenizer, size=16)
    write_shards(coded, f"{made.coded}/%06d.tar", samples_per_shard=12)
    return made


@pytest.fixture(scope="session")
def ranks() -> Callable[..., list[int]]:
    """Return what runs a function in several processes that know each other."""
    return run_ranks


def run_ranks(world: int, call: Callable[[int], Any], *, timeout_s: float = 120.0, together: bool = False) -> list[int]:
    """Call a function in as many forked processes as asked for, each with the environment that torchrun gives it.

    Returns the exit codes, 124 for a process that was still alive after `timeout_s`. `together` puts them into a
    process group of their own.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked process would wait in vain for the threads of OpenMP
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children: list[int] = []
    try:
        for rank in range(world):
            children.append(_fork(rank, world, port, call, (children[0] if children else 0) if together else None))
        deadline = time.monotonic() + timeout_s
        return [_code(child, deadline) for child in children]
    finally:
        torch.set_num_threads(threads)


def _fork(rank: int, world: int, port: int, call: Callable[[int], Any], group: int | None) -> int:
    if child := os.fork():
        if group is not None:
            os.setpgid(child, group or child)
        return child
    from lightning.pytorch.utilities import rank_zero_only

    code = 1
    try:
        if group is not None:
            os.setpgid(0, group)
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test",
        }  # fmt: skip
        cast(Any, rank_zero_only).rank = rank  # Lightning asks when it is imported, which was before
        code = call(rank) or 0
    except BaseException as error:
        print(f"process {rank}: {type(error).__name__}: {error}", flush=True)
    finally:
        os._exit(code)


def _code(child: int, deadline: float) -> int:
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return 124
