"""Coverage: the parts of a boot that a PCR selection binds, as far as an event log proves it.

PURE, and with the standard library only, because machines without the server's dependencies use it too.

    log --read_boot--> Boot (part -> PCRs) --coverage(selection)--> Coverage --propose--> Proposal

Rules of this package:

* **Only digests and the bytes that hash to them count.**  Event types, labels, file names and device paths
  are written by the sender of a log.  None of them is read here, so no change of them turns a part covered.
* A part is *measured* where the boot chain of the log extends it.  A chain is recognized by proven bytes: the
  commands of GRUB in PCR 8, the section names of systemd-stub in PCR 11, the version of U-Boot in PCR 0,
  images in PCR 4, and the number of digests that Linux' EFI stub adds to PCR 9 (first the load options, then
  the initrd).
* The digest of a constant measures nothing: separators, error separators, announcements, and the labels that
  U-Boot hashes in place of an empty range.

NOT checked here: that the log replays to quoted values.  An event of a PCR outside of the selection is the
word of its sender even then.
"""

from tang_attest.protocol.coverage.assess import Assessment, acceptance, assess, require_covered
from tang_attest.protocol.coverage.boot import Boot, BootPart, Chain, read_boot
from tang_attest.protocol.coverage.parts import (
    ENFORCED,
    Coverage,
    PartCoverage,
    coverage,
    parse_part,
)
from tang_attest.protocol.coverage.proposal import Proposal, propose

__all__ = [
    "ENFORCED",
    "Assessment",
    "Boot",
    "BootPart",
    "Chain",
    "Coverage",
    "PartCoverage",
    "Proposal",
    "acceptance",
    "assess",
    "coverage",
    "parse_part",
    "propose",
    "read_boot",
    "require_covered",
]
