# services.clevis-attest-agent: shows the server, whenever it asks, what the running system is.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.clevis-attest-agent;
  inherit (lib) mkOption types;

  # The unit is packaging/systemd/clevis-attest-agent.service, hardening and all.
  unit = pkgs.runCommand "clevis-attest-agent-unit" { } ''
    install -D -m 644 ${../packaging/systemd/clevis-attest-agent.service} \
      $out/lib/systemd/system/clevis-attest-agent.service
  '';
  agentConf = config.environment.etc."clevis-attest/agent.conf".text;
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
      description = "The server's addresses, tried in this order; those of this machine's one enrollment if there are none.";
    };

    kid = mkOption {
      type = types.nullOr (types.strMatching "[A-Za-z0-9_-]{43}");
      default = null;
      description = "The thumbprint of this machine's exchange key, if it is enrolled more than once.";
    };

    spki = mkOption {
      type = types.nullOr (types.strMatching "sha256//[A-Za-z0-9+/]{43}=(;sha256//[A-Za-z0-9+/]{43}=)*");
      default = null;
      description = "For https: the server's pinned public key.";
    };

    clientCertificate = mkOption {
      type = types.nullOr (types.strMatching "/[A-Za-z0-9._+@/-]+");
      default = null;
      description = "For https: this machine's certificate (PEM), if the server demands one.";
    };

    clientKey = mkOption {
      type = types.nullOr (types.strMatching "/[A-Za-z0-9._+@/-]+");
      default = null;
      description = "The certificate's key, in a file or in the TPM (a TSS2 PRIVATE KEY).";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = (cfg.clientCertificate == null) == (cfg.clientKey == null);
        message = "services.clevis-attest-agent: clientCertificate and clientKey are given together or not at all.";
      }
    ];

    environment.etc."clevis-attest/agent.conf".text =
      lib.concatMapStrings (url: "url=${url}\n") cfg.urls
      + lib.optionalString (cfg.kid != null) "kid=${cfg.kid}\n"
      + lib.optionalString (cfg.spki != null) "spki=${cfg.spki}\n"
      + lib.optionalString (cfg.clientCertificate != null) "client_cert=${cfg.clientCertificate}\n"
      + lib.optionalString (cfg.clientKey != null) "client_key=${cfg.clientKey}\n";

    systemd.packages = [ unit ];
    systemd.services.clevis-attest-agent = {
      wantedBy = [ "multi-user.target" ];
      restartTriggers = [ agentConf ];
      serviceConfig.ExecStart = [
        ""
        "${cfg.package}/bin/clevis-attest-agent"
      ];
    };
  };
}
