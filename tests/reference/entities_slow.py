"""Entities found by trying every range of words, against the one pass of the package."""

from __future__ import annotations


def begins(tags, place):
    """A word begins an entity if its tag says so, or if it goes on with nothing before it."""
    if tags[place] == "O":
        return False
    before = tags[place - 1] if place else "O"
    return tags[place][0] == "B" or before == "O" or before[2:] != tags[place][2:]


def spans_slow(tags):
    found = []
    for start in range(len(tags)):
        for stop in range(start + 1, len(tags) + 1):
            inside = tags[start:stop]
            one_type = all(tag != "O" and tag[2:] == inside[0][2:] for tag in inside)
            whole = begins(tags, start) and not any(begins(tags, place) for place in range(start + 1, stop))
            ended = stop == len(tags) or tags[stop] == "O" or begins(tags, stop)
            if one_type and whole and ended:
                found.append((inside[0][2:], start, stop))
    return found
