# The scripts and units of this project in stage 1: those of every initrd, and the one that answers NixOS' prompts.
# Unwrapped, with #!/bin/sh, because stage 1 has its own programs on PATH.  To be at /usr/lib/clevis-attest there.
{
  lib,
  runCommand,
  systemd,
  # Mount points whose file systems have to lie on opened volumes.
  roots,
  # Resuming a hibernated system is allowed, from a volume that stage 1 opens.
  hibernation ? false,
}:
runCommand "clevis-attest-initrd" { } ''
  make --silent -C ${../initrd} install-systemd DESTDIR=$out PREFIX= LIBDIR=
  install -m 755 ${./stage-1/clevis-attest-answer} $out/clevis-attest-answer
  rm -r $out/systemd-network

  # Only stage 1 with systemd looks here.
  mkdir -p $out/lib/systemd
  mv $out/systemd $out/lib/systemd/system
  units=$out/lib/systemd/system

  # Units of NixOS' own that run what is on the root.
  for unit in initrd-find-nixos-closure initrd-nixos-activation; do
    install -D -m 644 ${../initrd/systemd/drop-ins/needs-cap.conf} $units/$unit.service.d/40-clevis-attest-cap.conf
    install -D -m 644 ${../initrd/systemd/drop-ins/check-root.conf} $units/$unit.service.d/41-clevis-attest-root.conf
  done
  ${lib.optionalString hibernation "rm $units/systemd-hibernate-resume*.service.d/41-clevis-attest-resume.conf"}

  # replace FILE FROM TO: what is not there to be replaced ends the build
  replace() {
    grep -qF -- "$2" $out/$1
    sed -i "s,$2,$3,g" $out/$1
  }
  check() {
    :
    ${lib.concatMapStrings (root: ''
      printf '%s=/usr/lib/clevis-attest/clevis-attest-root-check %s\n' "$1" ${lib.escapeShellArg root}
    '') roots}
  }
  for file in $units/clevis-attest-root.service $units/*.d/41-clevis-attest-root.conf; do
    for key in ExecStart ExecStartPre; do
      grep -q "^$key=" $file || continue
      check $key > lines
      sed -i -e "/^$key=/r lines" -e "/^$key=/d" $file
    done
  done
  # Nothing to check is not a failure.
  ${lib.optionalString (roots == [ ]) ''
    echo 'ExecStart=/bin/touch /run/clevis-attest/root-checked' >> $units/clevis-attest-root.service
  ''}

  # systemd is in the store, and settings have other names than in dracut.
  replace clevis-attest-init /usr/lib/systemd/systemd ${systemd}/lib/systemd/systemd
  replace clevis-attest-look programs=/usr/lib/systemd programs=${systemd}/lib/systemd
  replace clevis-attest-before-shell 'attest_shell_without_tpm=yes in the image' boot.initrd.tang-attest.shellWithoutTpm
''
