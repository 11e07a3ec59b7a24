"""One published result beside this engine's."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One result. tolerance: of |ours - published|, in the quantity's own units."""

    what: str
    source: str
    published: float
    ours: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether ours is the published one, within the tolerance."""
        return bool(abs(self.ours - self.published) <= self.tolerance)
