"""The three ways in which prediction ends early; each carries one sentence for a person."""

from __future__ import annotations


class Unpredictable(Exception):
    """One PCR, file or image is not understood; the rest of the prediction goes on."""


class NoPrediction(Exception):
    """Nothing can be predicted: there is no usable event log."""


class WrongCommandLine(Exception):
    """The caller asks for a boot that this machine cannot have."""
