"""Comparing recipes: intervals, paired tests, what they could have detected, and corrections over a table.

Arrays in, numbers out: nothing here knows a run folder. ``docs/statistics.md`` says what each number means and how
often each test is wrong in simulations.
"""
