"""Whole numbers: divisors and multiples, and how an error names those next to a wrong value."""

from __future__ import annotations

from math import isqrt


def divisors(number: int) -> list[int]:
    """Every divisor of a positive ``number``, in increasing order."""
    small = [divisor for divisor in range(1, isqrt(number) + 1) if number % divisor == 0]
    return sorted({*small, *(number // divisor for divisor in small)})


def nearest_multiples(value: int, multiple: int) -> str:
    """The multiples next to ``value``, below (when there is one) and above, in words."""
    below = value // multiple * multiple
    return f"{below} or {below + multiple}" if below else str(multiple)


def nearest_divisors(value: int, number: int) -> str:
    """The divisors of ``number`` next to ``value``, below and above (when there is one), in words."""
    found = divisors(number)
    below = max((divisor for divisor in found if divisor < value), default=None)
    above = min((divisor for divisor in found if divisor > value), default=None)
    return " or ".join(str(divisor) for divisor in (below, above) if divisor is not None)
