"""One published result with this engine's result."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One result.

    source: who published it. tolerance: the largest |ours - published|, in the units of the quantity.
    """

    quantity: str
    source: str
    published: float
    ours: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether this engine's result equals the published one within the tolerance."""
        return bool(abs(self.ours - self.published) <= self.tolerance)
