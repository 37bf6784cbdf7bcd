# The options of NixOS that the modules in nix/ set or read, with NixOS' types.  A misspelled one does not exist.
# Beside them the content of NixOS 26.05 that meets ours: defaults, assertions, modules and units of its own.
{
  config,
  lib,
  pkgs,
  ...
}:
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
      secrets = option (types.attrsOf (types.nullOr (types.either types.str types.path))) { };
      clevisLuksAskpass = {
        enable = bool;
        package = option types.package pkgs.clevis;
        useTang = bool;
      };
      luks.devices = submodules {
        device = mkOption { type = types.str; };
        keyFile = option (types.nullOr types.str) null;
      };
      network = {
        enable = bool;
        ssh.enable = bool;
      };
      systemd = {
        enable = option types.bool true; # since 26.05
        tpm2.enable = option types.bool true;
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
    boot.loader.supportsInitrdSecrets = option types.bool true;
    boot.loader.efi.efiSysMountPoint = option types.str "/boot";

    fileSystems = submodules {
      device = option (types.nullOr types.str) null;
      fsType = option types.str "auto";
      neededForBoot = bool;
    };

    environment = {
      etc = submodules {
        source = option (types.nullOr types.path) null;
        text = option types.lines "";
      };
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

    systemd = {
      inherit packages services sockets;
      targets = submodules unitOptions;
    };

    users.groups = set;
    users.users = submodules {
      description = option types.str "";
      extraGroups = strings;
      group = option types.str "";
      home = option types.str "/var/empty";
      isSystemUser = bool;
    };
  };

  config = {
    assertions = [
      {
        assertion =
          config.boot.loader.supportsInitrdSecrets
          || builtins.all (file: file == null || builtins.isPath file) (
            builtins.attrValues config.boot.initrd.secrets
          );
        message = "boot.initrd.secrets values must be unquoted paths when using a bootloader that doesn't natively support initrd secrets.";
      }
    ];

    boot.initrd.availableKernelModules =
      lib.mkIf (config.boot.initrd.systemd.enable && config.boot.initrd.systemd.tpm2.enable)
        [
          "tpm-tis"
          "tpm-crb"
        ];

    # One attempt before the prompt.
    boot.initrd.systemd.services =
      lib.mkIf (config.boot.initrd.clevis.enable && config.boot.initrd.systemd.enable)
        (
          lib.genAttrs
            (map (name: "cryptsetup-clevis-${name}") (
              builtins.filter (name: config.boot.initrd.luks.devices ? ${name}) (
                builtins.attrNames config.boot.initrd.clevis.devices
              )
            ))
            (_: {
              after = lib.optional config.boot.initrd.clevis.useTang "network-online.target";
              wants = lib.optional config.boot.initrd.clevis.useTang "network-online.target";
              serviceConfig.Type = "oneshot";
            })
        );

    # The service is up before postgresql-setup.service has made databases and their owners.
    systemd.targets = lib.mkIf config.services.postgresql.enable {
      postgresql = {
        after = [
          "postgresql.service"
          "postgresql-setup.service"
        ];
        requires = [
          "postgresql.service"
          "postgresql-setup.service"
        ];
      };
    };
  };
}
