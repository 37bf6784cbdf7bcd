{
  description = "A Tang-compatible server that answers only after a TPM 2.0 quote passes, and its clevis pin";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      systems = [
        "aarch64-linux"
        "x86_64-linux"
      ];
      forEach = f: nixpkgs.lib.genAttrs systems (system: f (import nixpkgs {
        inherit system;
        overlays = [ self.overlays.default ];
      }));

      # A module, and the packages that it takes from pkgs.
      withOverlay = module: {
        imports = [ module ];
        nixpkgs.overlays = [ self.overlays.default ];
      };
    in
    {
      overlays.default = import ./nix/overlay.nix;

      lib.pcrSignature = import ./nix/pcr-signature.nix;

      nixosModules = {
        agent = withOverlay ./nix/module-agent.nix;
        initrd = withOverlay ./nix/module-initrd.nix;
        server = withOverlay ./nix/module-server.nix;
        default.imports = [
          self.nixosModules.agent
          self.nixosModules.initrd
          self.nixosModules.server
        ];
      };

      packages = forEach (pkgs: {
        inherit (pkgs) clevis-pin-attest tang-attest;
        default = pkgs.tang-attest;
      });

      # The virtual machines need KVM, and on aarch64 somebody who has tried them there.
      checks = forEach (
        pkgs:
        { inherit (pkgs) clevis-pin-attest tang-attest; }
        // nixpkgs.lib.optionalAttrs pkgs.stdenv.hostPlatform.isx86_64 (import ./nix/tests { inherit pkgs; })
      );
    };
}
