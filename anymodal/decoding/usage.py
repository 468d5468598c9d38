"""What sampling cost."""

from collections.abc import Sequence
from dataclasses import dataclass

from anymodal.decoding.request import Ticket


@dataclass(frozen=True)
class Usage:
    """What the last call cost.

    Attributes:
        tokens: ids written, by all rows.
        seconds: that it took, with reading the prompts.
        rows: requests that were written.
        passes: forward passes behind the prompts, each for all that ran.
        row_passes: the passes that each request took part in, over all requests.
        guessed: ids of pictures that speculation guessed and a pass judged.
        held: those that were kept.
    """

    tokens: int
    seconds: float
    rows: int = 0
    passes: int = 0
    row_passes: int = 0
    guessed: int = 0
    held: int = 0

    @classmethod
    def of(cls, tickets: Sequence[Ticket], *, seconds: float, passes: int) -> "Usage":
        """Add up what requests took."""
        return cls(
            tokens=sum(len(ticket.written) for ticket in tickets),
            seconds=seconds,
            rows=len(tickets),
            passes=passes,
            row_passes=sum(ticket.passes for ticket in tickets),
            guessed=sum(ticket.guessed for ticket in tickets),
            held=sum(ticket.held for ticket in tickets),
        )

    def report(self, what: str, count: int | None = None) -> str:
        """Return one line, such as "4 images, 260 tokens in 0.5 s (520 tokens/s)", and how speculation guessed."""
        number = self.rows if count is None else count
        things = f"{number} {what}{'s' * (number != 1)}"
        guesses = f", {self.passes_per_row:.1f} passes a request, {self.held_share:.0%} of guesses held"
        return (
            f"{things}, {self.tokens} tokens in {self.seconds:.2f} s ({self.tokens_per_second:.0f} tokens/s)"
            f"{guesses if self.guessed else ''}\n"
        )

    @property
    def tokens_per_second(self) -> float:
        """Ids a second over all rows."""
        return self.tokens / max(self.seconds, 1e-9)

    @property
    def passes_per_row(self) -> float:
        """Passes that a request took part in; plain sampling takes one an id."""
        return self.row_passes / max(self.rows, 1)

    @property
    def held_share(self) -> float:
        """Share of the guesses that held."""
        return self.held / max(self.guessed, 1)
