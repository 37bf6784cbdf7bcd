#!/bin/sh
# Before anything of the root is run or sourced, in an initrd without systemd.
until /usr/lib/clevis-attest/clevis-attest-root-check "$NEWROOT"; do
    emergency_shell "The root is not a volume that was opened."
done
