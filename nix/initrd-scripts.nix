# What stage 1 runs: the scripts that every initrd of this project has, and the one that answers NixOS' prompts.
# Unwrapped, with #!/bin/sh, because stage 1 has its own programs on PATH.  To be at /usr/lib/clevis-attest there.
{ runCommand }:
runCommand "clevis-attest-initrd" { } ''
  mkdir $out
  install -m 755 ${../initrd/clevis-attest-cap} $out/clevis-attest-cap
  install -m 755 ${../initrd/clevis-attest-close} $out/clevis-attest-close
  install -m 755 ${../initrd/systemd/clevis-attest-opened} $out/clevis-attest-opened
  install -m 755 ${../initrd/systemd/clevis-attest-wait-network} $out/clevis-attest-wait-network
  install -m 755 ${./stage-1/clevis-attest-answer} $out/clevis-attest-answer

  # The setting has another name here than in dracut, for which the script was written.
  grep -q 'attest_shell_without_tpm=yes in the image' ${../initrd/systemd/clevis-attest-before-shell}
  sed 's/attest_shell_without_tpm=yes in the image/boot.initrd.tang-attest.shellWithoutTpm/' \
    ${../initrd/systemd/clevis-attest-before-shell} > $out/clevis-attest-before-shell
  chmod 755 $out/clevis-attest-before-shell

  # Only stage 1 with systemd looks here.
  units=$out/lib/systemd/system
  install -D -m 644 ${../initrd/systemd/clevis-attest-cap.service} $units/clevis-attest-cap.service
  for shell in debug-shell emergency rescue; do
    install -D -m 644 ${../initrd/systemd/before-shell.conf} $units/$shell.service.d/50-clevis-attest.conf
  done
''
