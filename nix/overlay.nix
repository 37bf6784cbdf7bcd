# pkgs.tang-attest, the server, and pkgs.clevis-pin-attest, clevis with the pin.
final: _: {
  tang-attest = final.callPackage ./package.nix { };
  clevis-pin-attest = final.callPackage ./clevis-pin-attest.nix { };
}
