"""Every published shape trains on shards through the programs, and goes out again as it came in."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

import anymodal
from anymodal.__main__ import main

# the layout that comes in -> the layout that goes out, its class in transformers
LAYOUTS = {
    "janus": ("janus", "JanusForConditionalGeneration"),
    "janus_original": ("janus", "JanusForConditionalGeneration"),
    "chameleon": ("chameleon", "ChameleonForConditionalGeneration"),
    "chameleon_meta": ("chameleon", "ChameleonForConditionalGeneration"),
    "emu3": ("emu3", "Emu3ForConditionalGeneration"),
}


@pytest.mark.parametrize("came", LAYOUTS)
def test_it_learns_both_and_goes_out_again(
    came: str,
    tmp_path: Path,
    fast_tokenizer: Any,
    spread: Any,
    parity: Any,
    toy: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import transformers

    folder, coded, tuned, out = (tmp_path / name for name in ("published", "coded", "tuned", "out"))
    layout, kind = LAYOUTS[came]
    if came == "chameleon_meta":
        parity(came).write_release(folder, fast_tokenizer, shards=2)
    else:
        parity(came).write_tiny(folder, fast_tokenizer, spread)
    pipe = anymodal.from_pretrained(folder, device="cpu", dtype="float32", allow_pickle=True)
    side = pipe.parts.layout.sizes[0][0] * pipe.image_tokenizer.config.down_sampling
    words = ["tokenizers", "codes", "--shards", toy.plain, "--image_tokenizer", str(folder), "--size", str(side)]
    assert main([*words, "--out", str(coded), "--allow_pickle", "true"]) == 0
    words = [
        "train",
        "finetune",
        "--allow_pickle",
        "true",
        "--model",
        str(folder),
        "--data.train",
        str(coded),
        "--out",
        str(tuned),
    ]
    words += ["--stage.ratios", "{draw: 0.5, answer: 0.5}", "--stage.seq_len", "256", "--stage.questions_per_picture"]
    words += ["1", "--run.steps", "30", "--run.batch_size", "6", "--run.log_every", "1", "--run.precision", "float32"]
    assert main([*words, "--data.num_workers", "0", "--optimizer.learning_rate", "0.003"]) == 0
    rows = list(csv.DictReader((tuned / "logs" / "metrics.csv").read_text().splitlines()))
    for loss in ("train_text_loss", "train_image_loss"):
        seen = [float(row[loss]) for row in rows if row.get(loss)]
        assert sum(seen[-5:]) < 0.9 * sum(seen[:5]), loss
    words = ["train", "export", "--model", str(tuned / "model"), "--layout", layout, "--out", str(out)]
    assert main(words) == 0
    assert capsys.readouterr().out.endswith(f"{out}: {layout}\n")
    theirs = getattr(transformers, kind).from_pretrained(out).eval()
    pipe = anymodal.from_pretrained(tuned / "model", device="cpu", dtype="float32")
    ids = torch.tensor([pipe.text_tokenizer.encode("a red apple left of a dog")])
    text = torch.tensor(
        [index for index in pipe.text_tokenizer.text_ids if not pipe.vocabulary.is_code(torch.tensor(index))]
    )
    with torch.no_grad():
        ours, others = pipe.model(ids).logits[..., text], theirs(input_ids=ids).logits[..., text]
    assert float((ours - others).abs().max() / others.abs().max()) < 1e-4
