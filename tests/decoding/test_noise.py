import math

import torch

from anymodal.decoding.noise import gumbel


def noise(seeds: list[int], positions: list[int], size: int = 100) -> torch.Tensor:
    return gumbel(torch.tensor(seeds), torch.tensor(positions), torch.arange(size))


def test_equals_splitmix64_and_lowbias32_in_plain_integers() -> None:
    """The references of Steele, Lea and Flood and of Wellons on Python's unbounded integers."""
    word, golden, half = 2**64 - 1, 0x9E3779B97F4A7C15, 2**32 - 1

    def mix(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & word
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & word
        return x ^ (x >> 31)

    def low(x: int) -> int:
        x = ((x ^ (x >> 16)) * 0x7FEB352D) & half
        x = ((x ^ (x >> 15)) * 0x846CA68B) & half
        return x ^ (x >> 16)

    for seed, position, index in [(0, 0, 0), (7, 130, 99), (2**62, 5, 42), (-3, 9, 17)]:
        key = mix((mix(seed * golden & word) + position * golden) & word)
        bits = low((low((index * 0x9E3779B9 + (key & half)) & half) + (key >> 32)) & half) & 0x7FFFFFFF
        expected = -math.log(-math.log1p(-(bits + 0.5) * 2.0**-31))
        got = noise([seed], [position])
        assert got.dtype == torch.float64
        assert math.isclose(float(got[0, index]), expected, rel_tol=1e-12)


def test_float32_has_the_same_noise() -> None:
    seeds, positions, ids = torch.arange(50), torch.arange(50) * 3, torch.arange(20_000)
    wide, narrow = gumbel(seeds, positions, ids), gumbel(seeds, positions, ids, torch.float32)
    assert torch.isfinite(narrow).all()
    high = wide > -2  # what could win
    torch.testing.assert_close(narrow.double()[high], wide[high], atol=5e-5, rtol=1e-5)
    assert (narrow[~high] < -1.99).all()


def test_depends_on_seed_and_position_alone() -> None:
    batch = noise([3, 4, 3], [10, 10, 11])
    assert torch.equal(batch[1], noise([4], [10])[0])
    assert torch.equal(noise([3], [10])[0, :7], noise([3], [10], 7)[0])
    assert not torch.isclose(batch[0], batch[1]).any()
    assert not torch.isclose(batch[0], batch[2]).any()


def test_is_uniform_and_uncorrelated() -> None:
    drawn = torch.stack([noise([seed], [position], 1000)[0] for seed in range(10) for position in range(20)])
    uniform = torch.exp(-torch.exp(-drawn))
    counts = torch.histc(uniform, bins=50, min=0, max=1)
    chi_square = float(((counts - 4000) ** 2 / 4000).sum())
    assert 20 < chi_square < 90  # 49 degrees of freedom: mean 49, deviation 10
    assert abs(float(drawn.mean()) - 0.5772156649) < 0.01  # Euler's constant
    flat = uniform - 0.5
    for one, other in [(flat[:, :-1], flat[:, 1:]), (flat[:-1], flat[1:]), (flat[:-20], flat[20:])]:
        assert abs(float((one * other).mean()) * 12) < 0.01
