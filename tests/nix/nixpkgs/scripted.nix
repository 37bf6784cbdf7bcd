# The options of the scripted stage 1, whose end NixOS has announced.  NixOS without this file is the time after it.
{ lib, ... }:
let
  inherit (lib) mkOption types;
  option = type: default: mkOption { inherit type default; };
  lines = option types.lines "";
in
{
  options.boot.initrd = {
    extraFiles = option (types.attrsOf (types.submodule { options.source = option types.path null; })) { };
    extraUtilsCommands = lines;
    extraUtilsCommandsTest = lines;
    luks.devices = mkOption {
      type = types.attrsOf (
        types.submodule {
          options = {
            fallbackToPassword = option types.bool false;
            postOpenCommands = lines;
            preOpenCommands = lines;
          };
        }
      );
    };
    network.udhcpc = {
      enable = option types.bool false;
      extraArgs = option (types.listOf types.str) [ ];
    };
    postDeviceCommands = lines;
    postMountCommands = lines;
    postResumeCommands = lines;
    preFailCommands = lines;
  };
}
