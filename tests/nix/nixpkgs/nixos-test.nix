# What the machines of nix/tests/ set besides nixos.nix: the options of NixOS' virtual machines and boot loader.
{ lib, ... }:
let
  inherit (lib) mkOption types;
  option = type: default: mkOption { inherit type default; };
  bool = option types.bool false;
in
{
  options = {
    boot.initrd.network.postCommands = option types.lines "";
    boot.loader.systemd-boot.enable = bool;
    boot.loader.timeout = option (types.nullOr types.int) 5;
    networking.primaryIPAddress = option types.str "192.168.1.1";
    specialisation = option (types.attrsOf (types.submodule {
      options.configuration = option types.anything { };
    })) { };
    virtualisation = {
      efi.OVMF = option types.package "/nowhere";
      emptyDiskImages = option (types.listOf types.int) [ ];
      fileSystems = option (types.attrsOf types.anything) { };
      mountHostNixStore = bool;
      rootDevice = option (types.nullOr types.str) null;
      tpm.enable = bool;
      useBootLoader = bool;
      useEFIBoot = bool;
    };
  };
}
