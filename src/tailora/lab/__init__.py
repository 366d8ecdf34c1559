"""The laboratory: tasks whose right allocation is known, and everybody who claims to find it."""
