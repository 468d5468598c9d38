import torch

from anymodal.scoring.machine import cpu_name, facts, peak_memory_bytes


def test_facts_name_processor_cores_and_versions() -> None:
    found = facts()
    assert found["Processor"].startswith(cpu_name())
    assert "core" in found["Processor"]
    assert torch.__version__ in found["Software"]


def test_peak_memory_is_in_bytes_and_never_falls() -> None:
    before = peak_memory_bytes()
    held = bytearray(64 * 2**20)
    assert peak_memory_bytes() >= max(before, len(held))
    assert before > 50 * 2**20, "Python with torch holds more than that"
