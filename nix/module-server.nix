# services.tang-attest: the server.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.tang-attest;
  inherit (lib)
    literalExpression
    mkDefault
    mkEnableOption
    mkIf
    mkMerge
    mkOption
    types
    ;

  name = "tang-attest";
  state = "/var/lib/tang-attest";
  configFile = (pkgs.formats.toml { }).generate "tang-attest.toml" (
    lib.filterAttrs (_: value: value != null) cfg.settings
  );

  # By itself, the server starts as many workers as the unit's memory has room for.
  manyWorkers = cfg.settings.workers != null && cfg.settings.workers > 2;

  # --- settings: the server's own description of them, as options -------------------------------------------------

  schema = (lib.importJSON ./settings.json).properties;
  # The unit's state directory is fixed, and a file with the port would be for tests.
  offered = removeAttrs schema [
    "port_file"
    "state"
  ];

  largest = 9223372036854775807;
  toType =
    setting:
    if setting ? anyOf then
      types.nullOr (
        toType (builtins.head (builtins.filter (kind: kind.type or "" != "null") setting.anyOf))
      )
    else if setting ? enum then
      types.enum setting.enum
    else if setting ? pattern then
      # Nix anchors a pattern by itself.
      types.strMatching (lib.removePrefix "^" (builtins.head (builtins.match "(.*[^$])[$]?" setting.pattern)))
    else if setting.type == "array" then
      types.listOf (toType setting.items)
    else if setting.type == "boolean" then
      types.bool
    else if setting.type == "integer" then
      types.ints.between (setting.minimum or (-largest)) (setting.maximum or largest)
    else if setting.type == "string" && setting.format or "" == "path" then
      # Not types.path: a path literal would copy the file, a private key for example, into the store.
      types.strMatching "/.*"
    else if setting.type == "string" then
      types.str
    else if setting.type == "object" then
      types.attrsOf (types.attrsOf types.anything)
    else
      throw "nix/settings.json: no type for ${builtins.toJSON setting}";

  toOption =
    _: setting:
    mkOption {
      type = toType setting;
      inherit (setting) default description;
    };

  credentials = "/run/credentials/${name}.service";
  inStore = path: path != null && lib.hasPrefix builtins.storeDir path;

  # --- the server's own TPM ---------------------------------------------------------------------------------------

  inDevice = cfg.settings.server_tpm != null && lib.hasPrefix "device:" cfg.settings.server_tpm;
  tpmDevice = lib.removePrefix "device:" cfg.settings.server_tpm;

  # The command for operators: as root it becomes the service's user first, as on Debian.
  command = pkgs.writeScriptBin "tang-attest" (
    builtins.replaceStrings
      [
        "program=/usr/lib/tang-attest/bin/python"
        "\"$program\" -I -m tang_attest"
        "set -eu\n"
      ]
      [
        "program=${cfg.package}/bin/tang-attest"
        "\"$program\""
        (
          "set -eu\nPATH=${lib.makeBinPath [ pkgs.coreutils pkgs.gnused pkgs.util-linux ]}:$PATH\n"
          # The service's own settings, for every command too.
          + "export TANG_ATTEST_CONFIG=\"\${TANG_ATTEST_CONFIG-${configFile}}\"\n"
        )
      ]
      (builtins.readFile ../packaging/tang-attest)
  );
in
{
  options.services.tang-attest = {
    enable = mkEnableOption "tang-attest, a Tang server that asks for a TPM quote";

    package = mkOption {
      type = types.package;
      default = pkgs.tang-attest or (pkgs.callPackage ./package.nix { });
      defaultText = literalExpression "pkgs.tang-attest";
      description = "The server.";
    };

    settings = builtins.mapAttrs toOption offered;

    initialize = mkOption {
      type = types.bool;
      default = true;
      description = ''
        Make the keys and the database when there are none.
        The signing key's thumbprint, which machines compare, is then in the journal of tang-attest-init.service.
        Turn it off to restore a backup into /var/lib/tang-attest first.
      '';
    };

    openFirewall = mkOption {
      type = types.bool;
      default = false;
      description = "Open the server's port in the firewall.";
    };

    tls = {
      certificate = mkOption {
        type = types.nullOr (types.strMatching "/.*");
        default = null;
        example = "/var/lib/acme/tang.example.org/fullchain.pem";
        description = "PEM certificate chain. systemd reads it, so its owner does not matter.";
      };
      key = mkOption {
        type = types.nullOr (types.strMatching "/.*");
        default = null;
        example = "/var/lib/acme/tang.example.org/key.pem";
        description = ''
          PEM private key of the certificate. systemd reads it as root and hands it over.
          Machines pin this key (spki): keep it when the certificate is renewed.
        '';
      };
    };

    postgresql.enable = mkEnableOption "a PostgreSQL database on this machine, for the server's state, instead of SQLite";

    socket.enable = mkEnableOption "socket activation: systemd holds the port while the server restarts";
  };

  config = mkIf cfg.enable (mkMerge [
    {
      assertions = [
        {
          assertion = (cfg.tls.certificate == null) == (cfg.tls.key == null);
          message = "services.tang-attest.tls: certificate and key are given together or not at all.";
        }
        {
          assertion = !inStore cfg.tls.key && !inStore cfg.settings.tls_key;
          message = "services.tang-attest: the TLS key is in the Nix store, where everybody can read it. Give the path of a file outside, as a string.";
        }
        {
          assertion = cfg.settings.tang_dir == null || cfg.settings.plain_tang;
          message = "services.tang-attest.settings.tang_dir needs plain_tang = true: without it no key answers without evidence.";
        }
        {
          assertion = !cfg.openFirewall || cfg.settings.port != 0;
          message = "services.tang-attest.openFirewall needs a fixed settings.port: with 0 it is not known before the server runs.";
        }
      ];

      environment.systemPackages = [
        (lib.hiPrio command)
        cfg.package
      ];
      networking.firewall.allowedTCPPorts = mkIf cfg.openFirewall [ cfg.settings.port ];

      users.users.${name} = {
        isSystemUser = true;
        group = name;
        home = state;
        description = "tang-attest server";
      };
      users.groups.${name} = { };

      # The unit is packaging/systemd/tang-attest.service, hardening and all; only what is different here follows.
      systemd.packages = [ cfg.package ];
      systemd.services.${name} = {
        wantedBy = [ "multi-user.target" ];
        serviceConfig.ExecStart = [
          ""
          "${cfg.package}/bin/tang-attest serve --config ${configFile}"
        ];
        # The unit has room for two workers.
        serviceConfig.MemoryMax = mkIf manyWorkers (
          mkDefault "${toString (256 + 400 * cfg.settings.workers)}M"
        );
        serviceConfig.TasksMax = mkIf manyWorkers (
          mkDefault (384 + 64 * cfg.settings.workers)
        );
        serviceConfig.ExecReload = [
          ""
          "${pkgs.coreutils}/bin/kill -HUP $MAINPID"
        ];
      };
    }

    (mkIf cfg.initialize {
      systemd.services.tang-attest-init = {
        description = "Make the keys and the database of tang-attest";
        unitConfig.ConditionPathExists = "!${state}/kek";
        requiredBy = [ "tang-attest.service" ];
        before = [ "tang-attest.service" ];
        environment = lib.optionalAttrs (cfg.settings.database != null) {
          TANG_ATTEST_DATABASE = cfg.settings.database;
        };
        serviceConfig = {
          Type = "oneshot";
          ExecStart = "${cfg.package}/bin/tang-attest --state ${state} init";
          User = name;
          Group = name;
          StateDirectory = name;
          StateDirectoryMode = "0700";
          UMask = "0077";
          NoNewPrivileges = true;
          PrivateTmp = true;
          ProtectHome = true;
          ProtectSystem = "strict";
        };
      };
    })

    (mkIf inDevice {
      # The kernel's resource manager, through the group that owns it.
      security.tpm2.enable = mkDefault true;
      systemd.services.${name}.serviceConfig = {
        PrivateDevices = false;
        DeviceAllow = [ "${tpmDevice} rw" ];
        SupplementaryGroups = [ config.security.tpm2.tssGroup ];
      };
      users.users.${name}.extraGroups = [ config.security.tpm2.tssGroup ]; # the command for operators
    })

    (mkIf (cfg.tls.key != null) {
      services.tang-attest.settings = {
        tls_certificate = mkDefault "${credentials}/certificate";
        tls_key = mkDefault "${credentials}/key";
      };
      systemd.services.${name}.serviceConfig.LoadCredential = [
        "certificate:${cfg.tls.certificate}"
        "key:${cfg.tls.key}"
      ];
    })

    (mkIf cfg.postgresql.enable {
      # Over its socket, where PostgreSQL knows the service's user from the kernel: there is no password.
      services.tang-attest.settings.database = mkDefault "postgresql+asyncpg://${name}@/${name}?host=/run/postgresql";
      services.postgresql = {
        enable = true;
        ensureDatabases = [ name ];
        ensureUsers = [
          {
            inherit name;
            ensureDBOwnership = true;
          }
        ];
      };
      # The target is reached when the database and its owner are there; postgresql.service comes earlier.
      systemd.services.${name} = {
        requires = [ "postgresql.target" ];
        after = [ "postgresql.target" ];
      };
      systemd.services.tang-attest-init = mkIf cfg.initialize {
        requires = [ "postgresql.target" ];
        after = [ "postgresql.target" ];
      };
    })

    (mkIf cfg.socket.enable {
      systemd.sockets.${name} = {
        description = "Port of tang-attest";
        wantedBy = [ "sockets.target" ];
        socketConfig.ListenStream =
          let
            host = cfg.settings.host;
            bracketed = if builtins.match ".*:.*" host == null then host else "[${host}]";
          in
          "${bracketed}:${toString cfg.settings.port}";
      };
      systemd.services.${name}.requires = [ "tang-attest.socket" ];
    })
  ]);
}
