# Evaluates the modules of nix/ with a configuration.  With `nixpkgs`, in a whole NixOS of it; with `nixpkgsLib`, with
# its lib and the options of nixos.nix; with neither, with lib.nix and those options.
{
  nixpkgs ? "",
  nixpkgsLib ? "",
  # False: a NixOS after the end of the scripted stage 1.
  scripted ? true,
}:
let
  lib =
    if nixpkgs != "" then
      import (nixpkgs + "/lib")
    else if nixpkgsLib != "" then
      import nixpkgsLib
    else
      import ./lib.nix;
  pkgs = if nixpkgs != "" then import nixpkgs { } else import ./pkgs.nix { inherit lib; };
  ours = [
    ../../../nix/module-agent.nix
    ../../../nix/module-initrd.nix
    ../../../nix/module-server.nix
  ];

  # A unit's text, of what NixOS' options say about it.
  render =
    kind: sections:
    let
      value = setting: if builtins.isBool setting then lib.boolToString setting else toString setting;
      line =
        name: setting:
        map (one: "${name}=${value one}\n") (if builtins.isList setting then setting else [ setting ]);
      section =
        name: settings:
        "[${name}]\n" + lib.concatStrings (lib.concatLists (lib.mapAttrsToList line settings));
      words = unit: name: key: lib.optionalAttrs (unit.${key} != [ ]) { ${name} = toString unit.${key}; };
    in
    lib.mapAttrs' (
      name: unit:
      lib.nameValuePair "${name}.${kind}" (
        section "Unit" (
          lib.optionalAttrs (unit.description != "") { Description = unit.description; }
          // words unit "After" "after"
          // words unit "Before" "before"
          // words unit "Conflicts" "conflicts"
          // words unit "Requires" "requires"
          // words unit "Wants" "wants"
          // unit.unitConfig
        )
        + lib.concatStrings (
          lib.mapAttrsToList section (builtins.mapAttrs (_: settings: settings unit) sections)
        )
      )
    );
  services = render "service" {
    Service =
      unit:
      lib.optionalAttrs (unit.environment != { }) {
        Environment = lib.mapAttrsToList (name: setting: "\"${name}=${setting}\"") unit.environment;
      }
      // unit.serviceConfig;
  };
  sockets = render "socket" { Socket = unit: unit.socketConfig; };

  evaluated =
    modules:
    if nixpkgs != "" then
      import (nixpkgs + "/nixos/lib/eval-config.nix") {
        inherit (pkgs.stdenv.hostPlatform) system;
        modules =
          modules
          ++ ours
          ++ [
            {
              system.stateVersion = lib.trivial.release;
              fileSystems."/".device = "/dev/mapper/root";
              boot.loader.grub.device = "nodev";
            }
          ];
      }
    else
      lib.evalModules {
        modules = modules ++ ours ++ [ ./nixos.nix ] ++ lib.optional scripted ./scripted.nix;
        specialArgs = { inherit pkgs; };
      };
in
{
  inherit lib pkgs;
  with' =
    modules:
    let
      inherit (evaluated modules) config options;
      texts = builtins.mapAttrs (_: unit: unit.text);
    in
    {
      inherit config options pkgs;
      failed = map (one: one.message) (builtins.filter (one: !one.assertion) config.assertions);
      units =
        if nixpkgs != "" then
          texts config.systemd.units
        else
          services config.systemd.services // sockets config.systemd.sockets;
      initrdUnits =
        if nixpkgs != "" then
          texts config.boot.initrd.systemd.units
        else
          services config.boot.initrd.systemd.services;
    };
}
