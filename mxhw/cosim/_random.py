"""The generator behind the random stalls, the same in Python and in ``driver.cc``.

It is SplitMix64: a 64-bit counter stepped by a fixed odd number and hashed. One draw compares the
upper 53 bits of the hash with a threshold, so that both engines stall in the same cycles.
"""

__all__ = ["GOLDEN_GAMMA", "Stalls", "initial_state", "threshold"]

GOLDEN_GAMMA = 0x9E37_79B9_7F4A_7C15
_MASK = (1 << 64) - 1


def _hash(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58_476D_1CE4_E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D0_49BB_1331_11EB) & _MASK
    return value ^ (value >> 31)


def initial_state(seed: int, stream: int) -> int:
    """Return the state in which the generator of stream number ``stream`` starts.

    The number of the stream is hashed in, because streams that share a seed would otherwise stall
    in the same cycles and hide the errors that stalls are meant to show.
    """
    return _hash(seed & _MASK) ^ _hash((stream + 1) * GOLDEN_GAMMA & _MASK)


def threshold(probability: float) -> int:
    """Return the 53-bit threshold for ``probability``; 1.0 is met by every draw."""
    return int(probability * (1 << 53))


class Stalls:
    """One generator: :meth:`draw` is true with the probability that was last set."""

    def __init__(self, state: int) -> None:
        self.state = state
        self.threshold = threshold(1.0)

    def draw(self) -> bool:
        """Step the generator and return its decision."""
        self.state = (self.state + GOLDEN_GAMMA) & _MASK
        return (_hash(self.state) >> 11) < self.threshold
