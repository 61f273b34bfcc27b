"""The bits of a spec's `flags`, as JobQueue reads them."""

from enum import IntFlag


class JobFlag(IntFlag):
    GUARDED = 1  # the recipe's access is asked again at the claim; due when the recipe is guarded
    PUBLISH = 2  # publication of the output is part of the job
    PRIVATE = 4  # input and output are sealed
    AUDITABLE = 8  # a private job's key is given to drawn verifiers
