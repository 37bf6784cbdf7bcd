"""Compute the PCR values of the next boot from the event log of this one and from the files on the disk.

Runs on the enrolled machine, never in an initrd, with Python 3.11 or newer and its standard library alone.
``clevis-attest-predict`` (bash) calls it; options, bindings, the TPM and the network stay there.

    log of this boot --measured--> events by kind --loaders--> log of the next boot --replay--> values

Rules of this package:

* An event is exchanged only if it is known what it measures: its data says so and, if the old file or text is
  still there, its digest agrees.  All else ends in :meth:`Plan.give_up`, never in a guess.
* Event logs are parsed and replayed by the server's own ``tang_attest.protocol.eventlog``, installed beside
  this package.  GRUB's scripts, PE images and Authenticode digests are the only formats that are read here
  (docs/decisions/pin/0028-prediction-in-python.md says why).
* Text is bytes: one character for each byte (Latin-1), as GRUB and the firmware hash bytes, not characters.
* Every input has a limit before it is read, and every refusal is one sentence.
"""
