"""Faults, injected into real trainings, services and registries of a tiny project, and whether each ends as promised.

    make chaos                      # every fault, some 30 minutes on 2 cores
    make chaos FAULTS="1 4 14"      # these alone

Each fault is a function with a number, a sentence that says what is broken, and the promise. It raises `PromiseError`
if the promise does not hold, and `NotHereError` if this machine cannot show it. `docs/reliability.md` holds the table
of a run.
"""
