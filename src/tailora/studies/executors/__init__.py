"""Where the runs of a study are executed: in this process, in worker processes, on a Ray cluster.

Each module has one function ``execute(jobs, settings)``, which does every run once and yields messages as they come.
"""
