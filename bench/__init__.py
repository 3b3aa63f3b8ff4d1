"""One module for each claim about speed, memory or quality; ``python -m bench.NAME`` from the project's root.

Each prints a table, appends a record (date, commit, hardware, versions, what
else kept the machine busy) to ``bench/results/NAME.json``, and writes the
newest documented run as ``bench/results/NAME.md``.  Working files go to
``bench/work/``.  The exit code is 1 where a claim was not met.
"""
