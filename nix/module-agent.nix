# services.clevis-attest-agent: answers the server's questions about the running system.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.clevis-attest-agent;
  inherit (lib) mkOption types;
in
{
  options.services.clevis-attest-agent = {
    enable = lib.mkEnableOption "the agent that shows quotes of the running system to a tang-attest server";

    package = mkOption {
      type = types.package;
      default = pkgs.clevis-pin-attest or (pkgs.callPackage ./clevis-pin-attest.nix { });
      defaultText = lib.literalExpression "pkgs.clevis-pin-attest";
      description = "The package with the agent in it.";
    };

    urls = mkOption {
      type = types.listOf (types.strMatching "https?://[^/].*");
      default = [ ];
      example = [ "https://10.0.0.1:7500" ];
      description = "The server's addresses, tried in this order.";
    };

    kid = mkOption {
      type = types.nullOr (types.strMatching "[A-Za-z0-9_-]{43}");
      default = null;
      description = "The thumbprint of this machine's exchange key, which names it at the server; `clevis attest enroll` prints it.";
    };

    interval = mkOption {
      type = types.nullOr types.ints.positive;
      default = null;
      description = "Seconds between two connections when the server does not say; the agent's own default without it.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = cfg.urls != [ ];
        message = "services.clevis-attest-agent.urls: no address of a server.";
      }
      {
        assertion = cfg.kid != null;
        message = "services.clevis-attest-agent.kid: enroll this machine (clevis attest enroll), and give the thumbprint that it prints.";
      }
    ];

    environment.etc."clevis-attest/agent.conf".text =
      lib.concatMapStrings (url: "url=${url}\n") cfg.urls
      + lib.optionalString (cfg.kid != null) "kid=${cfg.kid}\n"
      + lib.optionalString (cfg.interval != null) "interval=${toString cfg.interval}\n";

    systemd.services.clevis-attest-agent = {
      description = "Show quotes of this system to a tang-attest server";
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      after = [ "network-online.target" ];
      restartTriggers = [ config.environment.etc."clevis-attest/agent.conf".text ];
      serviceConfig = {
        ExecStart = "${cfg.package}/bin/clevis-attest-agent";
        Restart = "always";
        RestartSec = 10;
        RuntimeDirectory = "clevis-attest-agent";
        CapabilityBoundingSet = "";
        DeviceAllow = [ "/dev/tpmrm0 rw" ];
        DevicePolicy = "closed";
        LockPersonality = true;
        MemoryDenyWriteExecute = true;
        NoNewPrivileges = true;
        PrivateTmp = true;
        ProtectClock = true;
        ProtectControlGroups = true;
        ProtectHome = true;
        ProtectHostname = true;
        ProtectKernelModules = true;
        ProtectKernelTunables = true;
        ProtectSystem = "strict";
        RestrictAddressFamilies = [
          "AF_INET"
          "AF_INET6"
          "AF_UNIX"
        ];
        RestrictNamespaces = true;
        RestrictRealtime = true;
        RestrictSUIDSGID = true;
        SystemCallArchitectures = "native";
        SystemCallFilter = [ "@system-service" ];
        UMask = "0077";
      };
    };
  };
}
