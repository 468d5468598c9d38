"""What is measured and counted: speed, memory, costs, faults."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from anymodal.configuration import from_dict
from anymodal.learning.config import ImageObjectiveConfig, Ratios, RunConfig, StageConfig
from anymodal.tokens.image_config import ImageTokenizerConfig, QuantizerConfig


@pytest.fixture(scope="module")
def written(programs: dict[str, ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks")
    (folder / "README.md").write_text("before\n<!-- sampling:begin -->old<!-- sampling:end -->\nbehind\n")
    threads = torch.get_num_threads()
    programs["sampling"].main(
        ["--quick", "--out", str(folder / "sampling.json"), "--readme", str(folder / "README.md")]
    )
    assert torch.get_num_threads() == threads
    return folder


@pytest.fixture(scope="module")
def toy(written: Path) -> dict[str, Any]:
    """Return what was measured on this machine by family."""
    found = json.loads((written / "sampling.json").read_text())["toy"]
    return {family: next(iter(machines.values())) for family, machines in found["families"].items()}


@pytest.mark.parametrize("family", ["janus", "emu3"])
def test_all_take_part_and_draw_the_same(toy: dict[str, Any], programs: dict[str, ModuleType], family: str) -> None:
    samplers = toy[family]["samplers"]
    variants = {("anymodal", variant.name) for variant in programs["ours"].VARIANTS if not variant.compiles}
    peers = {
        (name, precision) for name in programs["peers"].FAMILIES[family].peers for precision in ("float32", "bfloat16")
    }
    assert {(each["name"], each["precision"]) for each in samplers} == variants | peers
    for each in samplers:
        assert set(each["pictures"]) == {"1", "3"}
        for pictures in each["pictures"].values():
            assert pictures["tokens_per_s"] > 0
            assert 0 < pictures["of_bandwidth"] < 1
            if each["precision"] == "float32":
                assert pictures["same_greedy_codes"] == 1.0


def test_distances_and_mixed_requests(toy: dict[str, Any], programs: dict[str, ModuleType]) -> None:
    kl = {(each["name"], each["precision"]): each["kl"] for each in toy["janus"]["samplers"]}
    assert kl.pop(("transformers", "float32")) is None
    assert 0 <= kl["anymodal", "float32"] < 1e-7 < kl["transformers", "bfloat16"] < 1e-2
    assert all(value < 1e-1 for value in kl.values())
    mixed = toy["janus"]["mixed"]
    assert [each["precision"] for each in mixed] == [
        variant.name for variant in programs["ours"].VARIANTS if not variant.compiles
    ]
    assert all(min(*each["apart_s"], *each["together_s"]) > 0 for each in mixed)
    assert programs["figures"].times([1.0, 2.0, 4.0], [3.0, 4.0, 4.0]) == 2.0


def test_figures_stand_beside_what_they_were_measured_on(toy: dict[str, Any], written: Path) -> None:
    readme = (written / "README.md").read_text()
    assert readme.startswith("before\n<!-- sampling:begin -->\n\n**toy**, Janus of")
    assert readme.endswith("<!-- sampling:end -->\nbehind\n")
    for family in toy.values():
        for fact in (family["date"], family["commit"], family["torch"], family["machine"]["Processor"]):
            assert fact in readme
    assert "| anymodal float32 |" in readme
    bars = sum(len(each["pictures"]) for family in toy.values() for each in family["samplers"])
    assert (written / "sampling.svg").read_text().count("<rect") == bars


def test_what_cannot_run_says_so_and_what_was_measured_stays(
    programs: dict[str, ModuleType], toy: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "sampling.json"
    here = programs["sampling"].machine_of(toy["janus"])
    old = {name: {"elsewhere": {**family, "date": "long ago"}} for name, family in toy.items()}
    long_ago = {"families": old}
    out.write_text(json.dumps({"toy": long_ago, "1b": long_ago}))
    programs["sampling"].main(["--shapes", "1b", "7b", "--out", str(out)])
    assert json.loads(out.read_text()) == {"toy": long_ago, "1b": long_ago, "7b": {"not_measured": "no CUDA device"}}
    assert "**7b**: not measured (no CUDA device)." in capsys.readouterr().out
    programs["sampling"].main(["--quick", "--families", "janus", "--out", str(out)])
    families = json.loads(out.read_text())["toy"]["families"]
    dates = {name: {machine: each["date"] for machine, each in family.items()} for name, family in families.items()}
    assert dates == {
        "janus": {"elsewhere": "long ago", here: toy["janus"]["date"]}, "emu3": {"elsewhere": "long ago"},
    }  # fmt: skip


def test_mistakes_are_named(programs: dict[str, ModuleType], tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        programs["sampling"].main(["--tokens", "65"])
    assert "--tokens must be a square such as 64, got 65" in capsys.readouterr().err
    (tmp_path / "README.md").write_text("no markers")
    with pytest.raises(ValueError, match="must hold the lines <!-- sampling:begin -->"):
        programs["figures"].splice(tmp_path / "README.md", "")


def test_speculation_saves_passes(programs: dict[str, ModuleType], tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("<!-- speculation:begin --><!-- speculation:end -->")
    out, readme = tmp_path / "speculation.json", tmp_path / "README.md"
    words = ["--count", "2", "--rounds", "1", "--windows", "16", "--out", str(out), "--readme", str(readme)]
    programs["speculation"].main(words)
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == 9
    for row in rows:
        assert row["passes"] == 64 if row["engine"] == "none" else row["passes"] < 40
        assert row["equal"] == 1.0 or row["engine"].startswith("accept")
    assert readme.read_text().count("| jacobi, window 16 |") == 3


def test_training_computes_the_loss_of_transformers(programs: dict[str, ModuleType], tmp_path: Path) -> None:
    out, readme = tmp_path / "training.json", tmp_path / "README.md"
    readme.write_text("<!-- training:begin --><!-- training:end -->")
    programs["training"].main(["--quick", "--out", str(out), "--readme", str(readme)])
    found = json.loads(out.read_text())
    (steps,) = found["steps"].values()
    for rows in steps["rows"].values():
        assert set(rows["steps"]) == {"transformers", "anymodal", "anymodal, activations computed again"}
        losses = [step["loss"] for step in rows["steps"].values()]
        assert losses == pytest.approx(losses[:1] * len(losses), rel=1e-5)
        assert rows["flops"] > 0
    assert list(found["heads"]["toy float32"]["heads"])[0] == "full logits"
    assert readme.read_text().count("| packed documents | anymodal |") == 1
    assert readme.read_text().count("on a GPU: not measured (no CUDA device).") == 3


def test_a_gpu_trains_what_the_goals_ask_for(
    programs: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerated, out, readme = programs["accelerated"], tmp_path / "training.json", tmp_path / "README.md"
    readme.write_text("<!-- training:begin --><!-- training:end -->")
    out.write_text(json.dumps({"steps": {}, "heads": {}, "gpu": {"7b": {"not_measured": "no CUDA device"}}}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a GPU")
    measure = accelerated.measure
    toy = accelerated.TRAININGS["toy"]
    monkeypatch.setattr(accelerated, "measure", lambda training, device, rounds: measure(toy, "cpu", rounds))
    words = ["--device", "cuda", "--shapes", "160m", "--rounds", "2", "--out", str(out), "--readme", str(readme)]
    programs["training"].main(words)
    found = json.loads(out.read_text())["gpu"]["160m"]["steps"]
    assert found.keys() == set(toy.names)
    first = found["anymodal"]
    for each in found.values():
        assert each["loss"] == pytest.approx(first["loss"], abs=0.3), "the same rows, and weights that are drawn anew"
        assert each["parameters"] == first["parameters"]
        assert each["flops"] == first["flops"] > 0
        assert len(each["seconds"]) == 2
    page = readme.read_text()
    assert "**160m** on a GPU, bfloat16, 2 x 64 tokens of packed documents" in page
    assert "**7b** on a GPU: not measured (no CUDA device)." in page
    for name, millions in {"160m": 160, "1b": 1700, "7b": 6900}.items():
        model = accelerated.ours_of(accelerated.TRAININGS[name].shape, 2048, torch.device("meta"))
        assert sum(each.numel() for each in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.1)


def test_loading_stands_beside_webdataset(programs: dict[str, ModuleType], tmp_path: Path) -> None:
    out, readme = tmp_path / "loading.json", tmp_path / "README.md"
    readme.write_text("<!-- loading:begin --><!-- loading:end -->")
    programs["loading"].main(["--quick", "--out", str(out), "--readme", str(readme)])
    samples = json.loads(out.read_text())["samples"]
    assert set(samples) == set(programs["loading"].WEBDATASET)
    for what, name in programs["loading"].WEBDATASET.items():
        assert samples[what]["count"] > 0
        assert all(len(seconds) == 1 and seconds[0] > 0 for seconds in samples[what]["seconds"].values())
        assert name in samples[what]["seconds"]
    assert readme.read_text().count("| token samples | anymodal, codes from records |") == 1
    assert "Where 1 % more samples are bad, batches of pictures take " in readme.read_text()


def test_costs_are_counted_for_every_stage(programs: dict[str, ModuleType], tmp_path: Path, root: Path) -> None:
    costs, page = programs["costs"], tmp_path / "page.md"
    page.write_text("<!-- costs:begin --><!-- costs:end -->")
    costs.main(["--readme", str(page)])
    staged = [path for path in root.glob("configs/*/*.yaml") if "\nstage:" in path.read_text(encoding="utf-8")]
    written = (root / "docs" / "training.md").read_text(encoding="utf-8")
    for path in staged:
        name = f"| `{path.parent.name}/{path.stem}` |"
        (line,) = (line for line in page.read_text().splitlines() if line.startswith(name))
        counted = line.split("|")[2:6]  # what does not depend on the machine
        assert any(other.startswith(name) and other.split("|")[2:6] == counted for other in written.splitlines())
    llama = costs._llama(4096, 32, 32, 32, 11008)
    model = costs.Model(costs.AnyModalConfig(transformer=llama), text_size=57_344, codebook_size=8192, picture=1024)
    stage = StageConfig(ratios=Ratios(draw=1.0, answer=0.0, text=0.0))
    tokens, flops = costs.step(model, stage, RunConfig(batch_size=2))
    assert tokens == 2 * (1024 + 32)
    by_hand = 6 * 6.476e9 * tokens + 12 * 32 * 4096 * 1056 * tokens + 6 * 65_537 * 4096 * 2 * 1025
    assert flops == pytest.approx(by_hand, rel=1e-3)
    assert [costs.span(seconds) for seconds in (30, 90, 7200, 86400 * 900)] == ["30 s", "1.5 min", "2 h", "2.5 years"]


def test_image_tokenizers_cost_what_their_products_take(programs: dict[str, ModuleType], root: Path) -> None:
    costs = programs["picture_costs"]
    quantizer = QuantizerConfig(kind="l2-vq", codebook_size=512, codebook_dim=4)
    config = ImageTokenizerConfig(channels=(8, 16), blocks=1, latent_channels=12, patch=2, quantizer=quantizer)
    picture = costs.Picture.of(config, 32)
    fine, coarse = 16**2, 8**2  # places of either width
    encoder = fine * (12 * 8 + 2 * 9 * 8 * 8) + coarse * (4 * 8 * 16 + 2 * 16 * 16 + 16 * 12)
    decoder = coarse * 9 * (12 * 16 + 4 * 16 * 16 + 16 * 32) + fine * 9 * (4 * 8 * 8 + 8 * 12)
    assert picture.codes == coarse
    assert picture.encode == 2 * (encoder + coarse * (12 * 4 + 512 * 4))
    assert picture.decode == 2 * (decoder + coarse * 4 * 12)
    run, plain = RunConfig(steps=100), ImageObjectiveConfig(size=32)
    assert picture.learning(plain, run) == 3 * (picture.encode + picture.decode)
    assert picture.learning(replace(plain, trains="decoder"), run) == picture.encode + 3 * picture.decode
    judged = replace(plain, adversarial_weight=0.5, adversarial_start=75)
    assert picture.learning(judged, run) - picture.learning(plain, run) == 0.25 * 9 * picture.judge
    written = (root / "docs" / "training.md").read_text(encoding="utf-8")
    for path in root.glob("configs/*/*.yaml"):
        if "\nlosses:" in path.read_text(encoding="utf-8"):
            shape = from_dict(ImageTokenizerConfig, costs.shape_of(path), "tokenizer")
            encode = costs.Picture.of(shape, 64).encode
            assert f"| `{path.parent.name}/{path.stem}` | 64 | {encode / 1e9:,.3g} | " in written


def test_faults_are_counted_and_told(programs: dict[str, ModuleType], tmp_path: Path, root: Path) -> None:
    record, page = tmp_path / "faults.json", tmp_path / "page.md"
    page.write_text("<!-- faults:begin --><!-- faults:end -->")
    about = {"machine": "a machine", "date": "long ago", "commit": "0"}
    record.write_text(json.dumps({"long": {"test_x.py::test_y_z": {"made": 1000, "survived": 999, **about}}}))
    for name in ("test_no_flip_in_a_payload_is_silent", "test_one_step_is_left_out"):
        file = "test_broken_shards.py" if "flip" in name else "test_not_finite.py"
        words = ["-q", "-p", "no:cacheprovider", f"{root}/tests/faults/{file}::{name}", "--record", str(record)]
        assert subprocess.run([sys.executable, "-m", "pytest", *words], cwd=root, check=False).returncode == 0
    found = json.loads(record.read_text())
    assert {name: (each["made"], each["survived"]) for name, each in found["short"].items()} == {
        "test_broken_shards.py::test_no_flip_in_a_payload_is_silent": (100, 100),
        "test_not_finite.py::test_one_step_is_left_out": (2, 2),  # two of four wait for the long form
    }
    programs["faults"].main(["--record", str(record), "--readme", str(page)])
    assert "The long form: 999 of 1,000 faults survived. a machine; long ago, commit 0." in page.read_text()
    assert "| x: y z | 1,000 | 999 |" in page.read_text()
    assert "The short form: 102 of 102 faults survived." in page.read_text()
