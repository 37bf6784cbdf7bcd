#!/bin/sh
# Before the emergency shell of an initrd without systemd; comes back only if there may be one.
until /usr/lib/clevis-attest/clevis-attest-before-shell; do
    sleep 5
done
