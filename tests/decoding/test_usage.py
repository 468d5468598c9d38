from anymodal.decoding.usage import Usage


def test_a_report_is_one_line() -> None:
    usage = Usage(tokens=260, seconds=0.5, rows=4)
    assert usage.report("image") == "4 images, 260 tokens in 0.50 s (520 tokens/s)\n"
    assert usage.report("answer", 1).startswith("1 answer,")
    assert Usage(tokens=0, seconds=0.0).tokens_per_second == 0
