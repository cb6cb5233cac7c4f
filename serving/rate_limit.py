"""A token bucket: so many units a second on average, and a burst after a rest."""

from dataclasses import dataclass


@dataclass
class Bucket:
    """A call that finds anything left is let in whole, and the rest is owed: so one that is larger
    than the burst has its turn too, and the average holds all the same."""

    rate: float  # units a second
    burst: float  # units
    left: float
    at: float  # when `left` was so, monotonic clock

    def take(self, units: float, now: float) -> float:
        """0 if the units are granted; else the seconds until something would be left, and none is
        taken."""
        self.left = min(self.burst, self.left + self.rate * (now - self.at))
        self.at = now
        if self.left <= 0:
            return max(-self.left / self.rate, 1e-3)
        self.left -= units
        return 0.0
