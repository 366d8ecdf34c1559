"""Which points nothing beats in both score and size."""

from __future__ import annotations

from collections.abc import Sequence


def pareto_front(points: Sequence[tuple[float, float]], *, higher_is_better: bool = True) -> list[int]:
    """Return the points for which no other is at least as small and at least as good, and better in one of the two.

    Args:
        points: Pairs of size and score; a smaller size is better.
        higher_is_better: Whether a larger score is better.

    Returns:
        Places of the front's points, smallest size first; equal points are all on it.
    """
    sign = 1 if higher_is_better else -1
    front: list[int] = []
    best = float("-inf")
    order = sorted(range(len(points)), key=lambda place: (points[place][0], -sign * points[place][1]))
    for place in order:
        size, score = points[place][0], sign * points[place][1]
        twin = bool(front) and points[front[-1]] == (size, points[place][1])
        if score > best or twin:
            front.append(place)
            best = max(best, score)
    return front
