"""Studies: a set of runs that are compared, expanded from one file, run where there is room, and resumed at will."""
