# `nixos-rebuild switch` tells the server what the new generation will measure, before it is booted.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.boot.initrd.tang-attest;

  # A volume with its JWE in the configuration has no binding in its header to find the server by.
  jwes = builtins.filter (file: file != null) (
    map (device: device.secretFile) (builtins.attrValues cfg.devices)
  );

  # Bytes that the boot loader appends to the initrd of every generation, and that a renewal changes.
  appended = cfg.server.clientCertificate != null && !builtins.isPath cfg.server.clientCertificate;
  which = if appended then "--all" else "\"$systemConfig\"";

  announce = pkgs.writeScriptBin "tang-attest-announce" (
    builtins.replaceStrings
      [ "#!/bin/sh\n" ]
      [
        ''
          #!/bin/sh
          PATH=${
            lib.makeBinPath [
              cfg.package
              pkgs.coreutils
              pkgs.gnugrep
              pkgs.gnused
            ]
          }
          DEVICE=${lib.escapeShellArg cfg.deviceName}
          JWE=${lib.optionalString (jwes != [ ]) (lib.escapeShellArg "${builtins.head jwes}")}
          BOOT_DIRECTORIES=${lib.escapeShellArg "/boot ${config.boot.loader.efi.efiSysMountPoint}"}
        ''
      ]
      (builtins.readFile ./tang-attest-announce)
  );
in
{
  options.boot.initrd.tang-attest.announce.enable = lib.mkOption {
    type = lib.types.bool;
    default = true;
    description = ''
      At `nixos-rebuild switch`, compute what the new generation will measure and send it to the server.
      If that cannot be computed, it prints the two commands that remain; it never makes the switch fail.
      After `nixos-rebuild boot` run `tang-attest-announce`.
      A renewed file of `boot.initrd.secrets` changes every generation that the boot loader offers, so with a client
      certificate outside of the store all of them are announced.
    '';
  };

  config = lib.mkIf (cfg.enable && cfg.announce.enable) {
    environment.systemPackages = [ announce ];
    # Not while booting: /run/booted-system is there afterwards.  Not for `test`, which is never booted.
    system.activationScripts.tang-attest-announce = ''
      if [ "''${NIXOS_ACTION-}" != test ] && [ -e /run/booted-system ] &&
        [ "$(readlink -f /run/booted-system)" != "$(readlink -f "$systemConfig")" ]; then
        ${announce}/bin/tang-attest-announce ${which} </dev/null || true
      fi
    '';
  };
}
