"""What sampling cost."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Usage:
    """What the last call cost: ids written, by all rows, seconds, and forward passes behind the prompts."""

    tokens: int
    seconds: float
    rows: int = 0
    passes: int = 0

    def report(self, what: str, count: int | None = None) -> str:
        """Return one line, such as "4 images, 260 tokens in 0.5 s (520 tokens/s)"."""
        number = self.rows if count is None else count
        things = f"{number} {what}{'s' * (number != 1)}"
        return f"{things}, {self.tokens} tokens in {self.seconds:.2f} s ({self.tokens_per_second:.0f} tokens/s)\n"

    @property
    def tokens_per_second(self) -> float:
        """Ids a second over all rows."""
        return self.tokens / max(self.seconds, 1e-9)
