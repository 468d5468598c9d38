import csv
import json
from pathlib import Path

from anymodal.scoring.public import submissions
from anymodal.scoring.public.questions import Question, lettered

OPTIONS = lettered(["a dog", "a cat"])


def test_pope_lines_a_file(tmp_path: Path) -> None:
    questions = [
        Question(f"{name}", (), ("no",), row={"text": "Is there?", "file": f"coco_pope_{name}.json"})
        for name in ("random", "popular")
    ]
    submissions.write_pope(questions, ["No", "yés"], tmp_path)
    assert (tmp_path / "coco_pope_random.json").read_text() == '{"question": "Is there?", "answer": "No"}\n'
    assert json.loads((tmp_path / "coco_pope_popular.json").read_text())["answer"] == "yés"


def test_mme_has_four_cells_a_line(tmp_path: Path) -> None:
    row = {"picture": "1.png", "question": "Is it red?", "answer": "Yes"}
    submissions.write_mme([Question("1", (), ("yes",), group="OCR", row=row)] * 2, ["Yes,\n\tit is", ""], tmp_path)
    assert (tmp_path / "OCR.txt").read_text() == "1.png\tIs it red?\tYes\tYes, it is\n1.png\tIs it red?\tYes\t\n"


def test_mmmu_has_a_letter_or_text_an_id(tmp_path: Path) -> None:
    questions = [Question("validation_Art_1", (), ("B",), OPTIONS), Question("validation_Math_1", (), ("7",))]
    submissions.write_mmmu(questions, ["(B).", "so 7"], tmp_path)
    written = json.loads((tmp_path / "total_val_output.json").read_text())
    assert written == {"validation_Art_1": "B", "validation_Math_1": "so 7"}


def test_mathvista_and_ocrbench_keep_their_entries(tmp_path: Path) -> None:
    row = {"answer_type": "integer", "answer": "4", "metadata": {"task": "counting"}}
    submissions.write_mathvista([Question("12", (), ("4",), row=row)], ["4 are left"], tmp_path)
    problem = json.loads((tmp_path / "output.json").read_text())["12"]
    assert problem == {**row, "response": "4 are left", "extraction": "4"}
    submissions.write_ocrbench([Question("0", (), ("x",), row={"answers": "x"})], ["it is x"], tmp_path)
    assert json.loads((tmp_path / "OCRBench.json").read_text()) == [{"answers": "x", "predict": "it is x"}]


def test_tables_get_a_prediction(tmp_path: Path) -> None:
    rows = [{"index": "1", "A": "a dog", "answer": "A"}, {"index": "2", "A": "one\ttwo", "B": "b", "answer": "B"}]
    submissions.write_choices([Question(row["index"], (), (), row=row) for row in rows], ["A", "two\nlines"], tmp_path)
    with (tmp_path / "predictions.tsv").open(newline="") as file:
        first, second = csv.DictReader(file, delimiter="\t")
    assert (first["prediction"], first["B"]) == ("A", "")
    assert (second["A"], second["prediction"]) == ("one\ttwo", "two\nlines")
