# Virtual machines that really boot: a server, and a client with a TPM and an encrypted root.  One row of `scenarios`
# is one test; what happens in it is the table in boots.py.
#
#   nix build .#checks.x86_64-linux.boots-systemd
#
# Not run by this project's own CI, which has no nixpkgs; tests/nix/test_machines.py evaluates and reads all of it.
{ pkgs }:
let
  scenarios = {
    boots-scripted.systemd = false;
    boots-systemd.systemd = true;
  };
in
builtins.mapAttrs (
  name: scenario: pkgs.testers.runNixOSTest (import ./boots.nix ({ inherit name; } // scenario))
) scenarios
