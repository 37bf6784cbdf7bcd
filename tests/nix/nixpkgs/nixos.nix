# The options of NixOS that the modules in nix/ set or read, with NixOS' types.  A misspelled one does not exist.
{ lib, pkgs, ... }:
let
  inherit (lib) mkOption types;
  option = type: default: mkOption { inherit type default; };
  set = option (types.attrsOf types.anything) { };
  strings = option (types.listOf types.str) [ ];
  lines = option types.lines "";
  bool = option types.bool false;
  submodules = options: option (types.attrsOf (types.submodule { inherit options; })) { };

  unitOptions = {
    after = strings;
    before = strings;
    conflicts = strings;
    description = option types.str "";
    requiredBy = strings;
    requires = strings;
    unitConfig = set;
    wantedBy = strings;
    wants = strings;
  };
  services = submodules (
    unitOptions
    // {
      environment = option (types.attrsOf types.str) { };
      restartTriggers = option (types.listOf types.anything) [ ];
      # One attribute may be a list, and then each definition adds to it.
      serviceConfig = option (types.attrsOf (
        types.either (types.listOf types.str) (types.oneOf [
          types.bool
          types.int
          types.str
        ])
      )) { };
    }
  );
  sockets = submodules (unitOptions // { socketConfig = set; });
  packages = option (types.listOf types.package) [ ];
  sources = submodules { source = option types.path null; };
in
{
  options = {
    assertions = option (types.listOf types.anything) [ ];
    warnings = strings;

    security.tpm2 = {
      enable = bool;
      tssGroup = option types.str "tss";
    };
    boot.initrd = {
      availableKernelModules = strings;
      kernelModules = strings;
      clevis = {
        devices = submodules { secretFile = mkOption { type = types.path; }; };
        enable = bool;
        package = option types.package pkgs.clevis;
        useTang = bool;
      };
      extraFiles = sources;
      extraUtilsCommands = lines;
      extraUtilsCommandsTest = lines;
      secrets = option (types.attrsOf (types.nullOr types.str)) { };
      luks.devices = submodules {
        device = mkOption { type = types.str; };
        fallbackToPassword = bool;
        keyFile = option (types.nullOr types.str) null;
        postOpenCommands = lines;
        preOpenCommands = lines;
      };
      network = {
        enable = bool;
        ssh.enable = bool;
        udhcpc = {
          enable = bool;
          extraArgs = strings;
        };
      };
      postDeviceCommands = lines;
      postMountCommands = lines;
      postResumeCommands = lines;
      preFailCommands = lines;
      systemd = {
        enable = bool;
        contents = sources;
        extraBin = option (types.attrsOf types.path) { };
        network = {
          enable = bool;
          networks = submodules {
            matchConfig = set;
            networkConfig = set;
          };
        };
        package = option types.package pkgs.systemd;
        inherit packages services;
        storePaths = option (types.listOf types.anything) [ ];
      };
    };
    boot.kernelParams = strings;
    boot.resumeDevice = option types.str "";
    boot.loader.efi.efiSysMountPoint = option types.str "/boot";

    fileSystems = submodules {
      device = option (types.nullOr types.str) null;
      fsType = option types.str "auto";
      neededForBoot = bool;
    };

    environment = {
      etc = submodules { text = option types.lines ""; };
      systemPackages = packages;
    };

    networking = {
      firewall.allowedTCPPorts = option (types.listOf types.port) [ ];
      hostName = option types.str "nixos";
    };

    services.postgresql = {
      enable = bool;
      ensureDatabases = strings;
      ensureUsers = option (types.listOf (types.attrsOf types.anything)) [ ];
    };

    system.activationScripts = option (types.attrsOf types.lines) { };

    systemd = { inherit packages services sockets; };

    users.groups = set;
    users.users = submodules {
      description = option types.str "";
      extraGroups = strings;
      group = option types.str "";
      home = option types.str "/var/empty";
      isSystemUser = bool;
    };
  };
}
