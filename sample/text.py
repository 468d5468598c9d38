"""Answer questions about a picture.

    anymodal sample text --image dog.png "What is this?" "Is it an animal?"

Every question is answered on its own; answers are written to standard output, one a line (or as JSON lines to --out).
"""

from pathlib import Path

from anymodal.decoding.config import EngineConfig, Native


def main(
    questions: list[str],
    *,
    image: Path,
    model: str = "emoji",
    out: Path | None = None,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    allow_pickle: bool = False,
    native: Native = "auto",
    engine: EngineConfig = EngineConfig(),  # noqa: B008  (frozen)
) -> None:
    """Answer every question.

    Args:
        questions: what to answer.
        image: picture that the questions are about.
        model: model folder, or the name of an embedded model.
        out: file of JSON lines with question and answer.
        max_new_tokens: longest answer.
        temperature: of the text; 0 takes the most likely tokens.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the fewest tokens whose probability reaches p.
        seed: of the answers.
        device: cpu, cuda, ... or auto.
        dtype: float32, bfloat16 or int8 (of the weights, on a CPU), float64, stored or auto.
        allow_pickle: also read weights that are stored as pickles; only for folders whose makers you trust.
        native: sample with a kernel that the system's C compiler builds, once; auto: where it can, on a CPU.
        engine: how the sampler works.
    """
    import json
    import sys

    from anymodal.data.pictures import read_picture
    from anymodal.pipeline import from_pretrained

    picture = read_picture(image)
    pipe = from_pretrained(model, device=device, dtype=dtype, allow_pickle=allow_pickle, native=native, engine=engine)
    answers = pipe.answer(
        picture,
        questions,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
    )
    for answer in answers:
        print(answer)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"question": question, "answer": answer} for question, answer in zip(questions, answers, strict=True)]
        out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    sys.stderr.write(pipe.usage.report("answer"))
