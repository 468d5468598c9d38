"""Model folders to break, runs to harm, processes that load the ones and start the others, and a tally of all harm."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import pytest
import torch

ROLES = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "boi_token": "<boi>", "eoi_token": "<eoi>"}

ROOM = 256 * 2**20
"""Bytes that refusing a folder may take; a bomb wants gigabytes."""


@dataclass
class Tally:
    """Count the faults that a test makes, and those of them that were survived as they must be."""

    made: int = 0
    survived: int = 0

    @contextmanager
    def fault(self) -> Iterator[None]:
        """Count a fault, which is survived where nothing is raised."""
        self.made += 1
        yield
        self.survived += 1


@pytest.fixture
def tally(record_property: Callable[[str, object], None]) -> Iterator[Tally]:
    """Count faults for `--record`; a test that asks for this and counts none makes one."""
    counted = Tally()
    yield counted
    record_property("faults", (counted.made, counted.survived))


class Record:
    """Write how many faults every test made into a JSON file; what is not run stays as it was noted."""

    def __init__(self, path: Path, form: str) -> None:
        self.path, self.form = path, form
        self.outcomes: dict[str, str] = {}
        self.counts: dict[str, list[int]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self.outcomes[report.nodeid] = report.outcome
        counted = dict(report.user_properties).get("faults")
        outcome = self.outcomes.get(report.nodeid, "skipped")
        if report.when != "teardown" or not isinstance(counted, Sequence) or outcome == "skipped":
            return
        made, survived = counted if counted[0] else (1, int(outcome == "passed"))
        total = self.counts.setdefault(report.nodeid.partition("[")[0].rpartition("/")[2], [0, 0])
        total[0] += made
        total[1] += survived

    def pytest_sessionfinish(self) -> None:
        from anymodal.scoring.machine import facts

        git = ["git", "-C", str(Path(__file__).parent)]
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
        clean = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", ":(top)*.py"], check=False).returncode == 0
        about = {
            "date": datetime.now(UTC).date().isoformat(),
            "commit": commit.stdout.strip() + "-dirty" * (not clean),
            "machine": facts()["Processor"].rpartition(",")[0],
        }
        found = json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {}
        for name, (made, survived) in self.counts.items():
            found.setdefault(self.form, {})[name] = {"made": made, "survived": survived, **about}
        self.path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--record")
    if path is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Record(path.absolute(), "long" if config.getoption("--long") else "short"))


@dataclass(frozen=True)
class Outcome:
    """What came of loading a folder: the error's class and words, None where it was loaded, and bytes of memory."""

    error: str | None
    message: str
    grown: int


@pytest.fixture(scope="session")
def load(root: Path) -> Iterator[Callable[..., Outcome]]:
    """Load a folder as a user would, in a process of its own."""
    command = [sys.executable, str(root / "tests" / "faults" / "loader.py")]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "RUST_BACKTRACE": "0"}
    loader = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True
    )
    assert loader.stdin is not None and loader.stdout is not None, "both are pipes"
    ends = loader.stdin, loader.stdout

    def ask(folder: Path, *, allow_pickle: bool = False, **environment: str) -> Outcome:
        request = {"folder": str(folder), "allow_pickle": allow_pickle, "environment": environment}
        ends[0].write(json.dumps(request) + "\n")
        ends[0].flush()
        return Outcome(**json.loads(ends[1].readline()))

    yield ask
    loader.kill()
    loader.wait()
    for end in ends:
        end.close()


@pytest.fixture(scope="session")
def sound(load: Any, toy: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write a sound folder of our own, and one of a published layout, while `load` starts."""
    from anymodal.published.registry import save_published
    from anymodal.tokens.image import ImageTokenizer
    from anymodal.tokens.image_config import ImageTokenizerConfig, QuantizerConfig

    folder = tmp_path_factory.mktemp("sound")
    parts = toy.parts(heads="decoupled", image_head_dim=16)
    parts.save(folder / "ours")
    torch.manual_seed(0)
    quantizer = QuantizerConfig(kind="l2-vq", codebook_size=16, codebook_dim=8, codebook_update="gradient")
    image = ImageTokenizerConfig(
        architecture="diffusers", channels=(32, 32, 32), blocks=1, latent_channels=8, attention_stages=(2,),
        quantizer=quantizer,
    )  # fmt: skip
    parts.image_tokenizer = ImageTokenizer(image).eval()
    save_published(parts, folder / "janus", "janus")
    (folder / "janus" / "tokenizer_config.json").write_text(json.dumps({**ROLES, "image_token": "<look>"}))
    return {kind: folder / kind for kind in ("ours", "janus")}


@pytest.fixture(params=["ours", "janus"])
def folder(sound: dict[str, Path], tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Copy a sound folder, to be broken."""
    return Path(shutil.copytree(sound[request.param], tmp_path / "model"))


@pytest.fixture
def refuse(load: Callable[..., Outcome], tally: Tally) -> Callable[..., None]:
    """Check that a folder is refused with words, without running code, and without taking memory."""

    def check(folder: Path, message: str, **how: Any) -> None:
        with tally.fault():
            outcome = load(folder, **how)
            assert outcome.error == "ValueError", outcome
            assert message in outcome.message, outcome
            assert outcome.grown < ROOM, outcome
            assert not list(folder.parent.rglob("owned")), "code was run"

    return check


@dataclass(frozen=True)
class Ended:
    """How a command line ended: its exit code (negative: a signal), what it wrote, whether processes outlived it."""

    code: int
    log: str
    seconds: float
    left: bool


@dataclass(frozen=True)
class Programs:
    """Run command lines of a tiny training run, each in a process group of its own, harmed as asked."""

    ends: tuple[IO[str], IO[str]]
    words: Sequence[str]

    def __call__(self, out: Path, *words: str, diary: bool = False, **fault: Any) -> Ended:
        asked = {"words": [*self.words, "--out", str(out), *words], "fault": fault, "diary": ""}
        if diary:
            out.mkdir(parents=True, exist_ok=True)
            asked["diary"] = str(out / "diary.jsonl")
        return Ended(**self.ask(asked))

    def ask(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        self.ends[0].write(json.dumps(asked) + "\n")
        self.ends[0].flush()
        answer: dict[str, Any] = json.loads(self.ends[1].readline())
        return answer


@pytest.fixture(scope="session")
def numbered(toy: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write the toy's samples anew, such that every document of every task tells the number of its sample."""
    from anymodal.data.index import ShardIndex
    from anymodal.data.shards import Sample, write_shards

    folder, index = tmp_path_factory.mktemp("numbered"), ShardIndex.open(toy.coded)
    samples = []
    for number in range(len(index)):
        members = dict(index.read(number).members)
        asked = [{"question": f"q {number} .", "answer": "yes"}]
        members |= {"txt": f"n {number} .".encode(), "json": json.dumps({"questions": asked}).encode()}
        samples.append(Sample(f"{number:03d}", members))
    write_shards(samples, f"{folder}/%06d.tar", samples_per_shard=5)
    return str(folder)


@pytest.fixture(scope="session")
def programs(toy: Any, numbered: str, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    """Start the process that forks runs: packing, a mixture, dropout, validation, an average, steps in pieces."""
    words = [
        *("train", "pretrain", "--data.train", numbered, "--data.held_out", numbered, "--data.num_workers", "0"),
        *("--text_tokenizer", str(toy.text_tokenizer), "--image_tokenizer", str(toy.image_tokenizer)),
        *("--model.transformer.dim", "32", "--model.transformer.depth", "2", "--model.transformer.num_heads", "2"),
        *("--model.transformer.num_kv_heads", "1", "--model.transformer.head_dim", "16"),
        *("--model.transformer.hidden_dim", "64", "--model.transformer.dropout", "0.1"),
        *("--model.understanding.image_size", "16", "--model.understanding.dim", "16"),
        *("--model.understanding.num_heads", "2", "--model.understanding.depth", "1"),
        *("--stage.seq_len", "256", "--stage.prompt_dropout", "0", "--stage.code_noise", "0.3"),
        *("--stage.ratios.draw", "0.4", "--stage.ratios.answer", "0.4", "--stage.ratios.text", "0.2"),
        *("--run.batch_size", "10", "--run.accumulate", "2", "--run.ema_decay", "0.5", "--run.precision", "float32"),
        *("--run.log_every", "1", "--run.checkpoint_every", "2", "--run.steps", "12"),
        *("--run.validate_every", "4", "--run.validation_steps", "1", "--optimizer.warmup_steps", "2"),
    ]
    process = subprocess.Popen(
        [sys.executable, str(root / "tests" / "faults" / "runner.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None, "both are pipes"
    made = Programs((process.stdin, process.stdout), words)
    out = tmp_path_factory.mktemp("warm")
    made.ask({"warm": True, "words": [*words, "--out", str(out), "--run.steps", "2", "--run.validate_every", "2"]})
    yield made
    process.kill()
    process.wait()
    for end in made.ends:
        end.close()
