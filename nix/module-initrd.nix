# boot.initrd.tang-attest: opens volumes in stage 1 by attestation, in the scripted one and in the one with systemd.
#
# NixOS' own boot.initrd.clevis brings clevis and its programs; it would try once, before the prompt.  Here the prompt
# is there at once, and stage-1/clevis-attest-answer answers it as soon as the server agrees.
{
  config,
  lib,
  options,
  pkgs,
  ...
}:
let
  cfg = config.boot.initrd.tang-attest;
  initrd = config.boot.initrd;

  # NixOS announced the end of the scripted stage 1 and of its options.  An option that is not there may not be
  # defined either, not even behind mkIf.
  hasScripted = isThere options.boot.initrd "postDeviceCommands";
  withSystemd = !hasScripted || initrd.systemd.enable;
  # mkRemovedOptionModule leaves an invisible option behind, which throws when it is read.
  isThere = declared: name: declared ? ${name} && (declared.${name}.visible or true) != false;
  inherit (lib)
    literalExpression
    mkAfter
    mkBefore
    mkDefault
    mkEnableOption
    mkIf
    mkMerge
    mkOption
    optionalAttrs
    types
    ;

  names = builtins.attrNames cfg.devices;
  luks = name: initrd.luks.devices.${name};
  known = builtins.filter (name: initrd.luks.devices ? ${name}) names;

  scripts = pkgs.callPackage ./initrd-scripts.nix {
    systemd = initrd.systemd.package;
    roots = map (below (if withSystemd then "/sysroot" else "/mnt-root")) cfg.checkedFileSystems;
    hibernation = resumesInside;
  };
  ours = "/usr/lib/clevis-attest";

  etc = pkgs.runCommand "clevis-attest-initrd-etc" { } ''
    mkdir $out
    echo ${toString cfg.capPcr} > $out/cap-pcr
    echo ${toString cfg.retryPause} > $out/pause
    cat > $out/devices <<'END'
    ${lib.concatMapStringsSep "\n" (name: "${name} ${(luks name).device}") known}
    END
    ${lib.concatMapStringsSep "\n" (
      name:
      lib.optionalString (
        cfg.devices.${name}.secretFile != null
      ) "install -m 444 ${cfg.devices.${name}.secretFile} $out/${name}.jwe"
    ) names}
    ${lib.optionalString cfg.shellWithoutTpm "touch $out/shell-without-tpm"}
    ${lib.optionalString cfg.espIsMeasured "touch $out/esp-is-measured"}
  '';

  # OpenSSL looks for providers in its own store path; what signs with a key of the TPM is in another.
  showsCertificate = cfg.server.clientKey != null;
  providers = if withSystemd then "${pkgs.tpm2-openssl}/lib/ossl-modules" else "$extraUtils/lib";

  environment = {
    CLEVIS_ATTEST_CONNECT_TIMEOUT = toString cfg.timeouts.connect;
    CLEVIS_ATTEST_REQUEST_TIMEOUT = toString cfg.timeouts.request;
    CLEVIS_ATTEST_TOTAL_TIMEOUT = toString cfg.timeouts.total;
  }
  // optionalAttrs showsCertificate { OPENSSL_MODULES = providers; };
  assignments = lib.concatMapStringsSep " " (variable: "${variable}=${environment.${variable}}") (
    builtins.attrNames environment
  );

  # A path literal is in the store, and so in the initrd whatever the boot loader can do: the only way with extlinux.
  isLiteral = file: builtins.isPath file;
  place = file: name: if isLiteral file then "/etc/clevis-attest/${name}" else file;
  certificatePlace = place cfg.server.clientCertificate "client.crt";
  keyPlace = place cfg.server.clientKey "client.key";
  bothLiteral = isLiteral cfg.server.clientCertificate && isLiteral cfg.server.clientKey;
  isTpmKey = file: lib.hasPrefix "-----BEGIN TSS2 PRIVATE KEY-----" (builtins.readFile file);
  keepsSecrets = config.boot.loader.supportsInitrdSecrets or true;

  # --- hibernation ------------------------------------------------------------------------------------------------

  # A hibernated system is resumed with the keys of every open volume in memory, so it has to come from one of them.
  resumes = config.boot.resumeDevice != "";
  resumesInside = builtins.elem config.boot.resumeDevice (
    map (name: "/dev/mapper/${name}") (builtins.attrNames initrd.luks.devices)
  );

  # --- the root ---------------------------------------------------------------------------------------------------

  # Mount points of NixOS' own that stage 1 always mounts (nixos/lib/utils.nix, pathsNeededForBoot).
  always = [
    "/"
    "/nix"
    "/nix/store"
    "/var"
    "/var/log"
    "/var/lib"
    "/var/lib/nixos"
    "/etc"
    "/usr"
  ];
  fileSystem = mountPoint: config.fileSystems.${mountPoint} or { };
  isNeeded =
    mountPoint:
    builtins.elem mountPoint always || (fileSystem mountPoint).neededForBoot or false;
  deviceOf = mountPoint: (fileSystem mountPoint).device or null;
  # ZFS and bcachefs have no block device that the kernel names; memory and the network have none at all.
  isOnBlockDevice =
    mountPoint:
    deviceOf mountPoint != null
    && lib.hasPrefix "/dev/" (deviceOf mountPoint)
    && !(builtins.elem ((fileSystem mountPoint).fsType or "auto") [
      "bcachefs"
      "zfs"
    ]);
  neededFileSystems = builtins.filter (mountPoint: isNeeded mountPoint && isOnBlockDevice mountPoint) (
    builtins.attrNames config.fileSystems
  );
  below = directory: mountPoint: if mountPoint == "/" then directory else "${directory}${mountPoint}";

  # A pool that boot.initrd.clevis opens is imported after the place for resuming.
  opensPools = builtins.any (name: !(initrd.luks.devices ? ${name})) (
    builtins.attrNames initrd.clevis.devices
  );
  # After NixOS' own commands of the same place, which open volumes or import pools (mkAfter).
  capLast = lib.mkOrder 2000 ''
    NEWROOT=/mnt-root ${ours}/clevis-attest-opened || fail
    attest_check() {
      attest_ticks=0
      while [ ! -e "$1" ] && [ "$attest_ticks" -lt 20 ]; do
        sleep 1
        attest_ticks=$((attest_ticks + 1))
      done
      ${ours}/clevis-attest-root-check "$1" || fail
    }
    ${lib.concatMapStrings (device: ''
      attest_check ${lib.escapeShellArg device}
    '') (lib.unique (map deviceOf cfg.checkedFileSystems))}
  '';

  # --- what the assertions look at --------------------------------------------------------------------------------

  tpmDrivers = [
    "tpm_crb"
    "tpm_ftpm_tee"
    "tpm_tis"
    "tpm_tis_i2c"
    "tpm_tis_i2c_cr50"
    "tpm_tis_spi"
  ];
  underscored = map (builtins.replaceStrings [ "-" ] [ "_" ]);
  # NixOS adds these two whatever the machine has, so they say nothing about its TPM.
  addedByNixos = lib.optionals (withSystemd && initrd.systemd.tpm2.enable or false) [
    "tpm_crb"
    "tpm_tis"
  ];
  included =
    builtins.filter (driver: !builtins.elem driver addedByNixos) (
      underscored (initrd.availableKernelModules ++ initrd.kernelModules)
    )
    ++ underscored cfg.tpm.modules;

  # The prompt that is answered has to come: with a key file there is none, unless its failure leads to one.
  silent =
    name:
    let
      volume = luks name;
    in
    volume.keyFile != null && !withSystemd && !(volume.fallbackToPassword or false);

  # Volumes that NixOS' own module tries once before their prompt.
  triedByNixos = builtins.filter (name: initrd.luks.devices ? ${name}) (
    builtins.attrNames initrd.clevis.devices
  );

  isHttps = url: builtins.match "https://.*" url != null;
in
{
  imports = [ ./module-announce.nix ];

  options.boot.initrd.tang-attest = {
    enable = mkEnableOption "opening volumes in stage 1 by a quote of the TPM, which a tang-attest server checks";

    package = mkOption {
      type = types.package;
      default = pkgs.clevis-pin-attest or (pkgs.callPackage ./clevis-pin-attest.nix { });
      defaultText = literalExpression "pkgs.clevis-pin-attest";
      description = "clevis with the attest pin in it; also becomes `boot.initrd.clevis.package`.";
    };

    devices = mkOption {
      default = { };
      example = literalExpression ''{ root = { }; data.secretFile = ./data.jwe; }'';
      description = ''
        The volumes to open, by their names in `boot.initrd.luks.devices`.
        Volumes that `boot.initrd.clevis.devices` has too are tried once by NixOS, before their prompt, and then from here.
      '';
      type = types.attrsOf (
        types.submodule {
          options.secretFile = mkOption {
            type = types.nullOr types.path;
            default = null;
            example = literalExpression "./root.jwe";
            description = ''
              A JWE that `clevis encrypt attest` made of one of the volume's passphrases: text, whose end of line does not matter.
              It is no secret: only this machine's TPM and the server together open it.
              Without it the volume's own LUKS2 tokens count, which `clevis luks bind` makes.
            '';
          };
        }
      );
    };

    server = {
      urls = mkOption {
        type = types.listOf (types.strMatching "https?://[^/].*");
        default = [ ];
        example = [ "https://10.0.0.1:7500" ];
        description = ''
          The server's addresses, tried in this order. In stage 1 a number works where a name may not.
          With it, /etc/clevis-attest/bind.json has the configuration for `clevis luks bind`.
        '';
      };
      spki = mkOption {
        type = types.nullOr (types.strMatching "sha256//[A-Za-z0-9+/]{43}=(;sha256//[A-Za-z0-9+/]{43}=)*");
        default = null;
        example = "sha256//AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        description = "The server's pinned public key. It needs no clock, which a Raspberry Pi does not have in stage 1.";
      };
      clientCertificate = mkOption {
        type = types.nullOr (types.either (types.strMatching "/[A-Za-z0-9._+@/-]+") types.path);
        default = null;
        example = "/etc/clevis-attest/client.crt";
        description = ''
          This machine's certificate (PEM), if the server demands one. `boot.initrd.secrets` puts it into stage 1.
          With a boot loader that cannot add files to an initrd, such as extlinux, give an unquoted path: `./client.crt`.
        '';
      };
      clientKey = mkOption {
        type = types.nullOr (types.either (types.strMatching "/[A-Za-z0-9._+@/-]+") types.path);
        default = null;
        example = "/etc/clevis-attest/client.key";
        description = ''
          The certificate's key, which goes into stage 1 too. Keep it in the TPM (a TSS2 PRIVATE KEY), as docs/how-to/tls.md says:
          any reader of the boot partition has any other. An unquoted path is copied to the store, so there it has to be such a key.
        '';
      };
      thumbprints = mkOption {
        type = types.listOf (types.strMatching "[A-Za-z0-9_-]{43}");
        default = [ ];
        description = "Thumbprints of the signing keys to trust when a volume is bound; `tang-attest keys list` prints them.";
      };
    };

    deviceName = mkOption {
      type = types.strMatching "[A-Za-z0-9][A-Za-z0-9._-]{0,62}";
      default = config.networking.hostName;
      defaultText = literalExpression "config.networking.hostName";
      description = "This machine's name at the server.";
    };

    network.enable = mkOption {
      type = types.bool;
      default = true;
      description = ''
        Bring up the network in stage 1: DHCP on every Ethernet card, or what `ip=` on the command line says.
        The card's driver has to be in `boot.initrd.availableKernelModules`.
        Turn it off to configure stage 1's network yourself.
      '';
    };

    tpm = {
      raspberryPi = mkEnableOption "the drivers of a TPM on a Raspberry Pi's SPI bus, in stage 1";
      modules = mkOption {
        type = types.listOf types.str;
        default =
          if cfg.tpm.raspberryPi then
            [
              "spi_bcm2835"
              "tpm_tis_spi"
            ]
          else
            [
              "tpm_crb"
              "tpm_tis"
            ];
        defaultText = literalExpression ''if tpm.raspberryPi then [ "spi_bcm2835" "tpm_tis_spi" ] else [ "tpm_crb" "tpm_tis" ]'';
        description = "The TPM's kernel modules. Each has to be in the kernel, as a module or built in.";
      };
    };

    capPcr = mkOption {
      type = types.ints.between 0 15;
      default = 15;
      description = "The cap PCR of this machine's policy: extended once the volumes are open, before anything on them is mounted, and before any shell.";
    };

    retryPause = mkOption {
      type = types.ints.between 1 300;
      default = 5;
      description = "Seconds between two attempts, while the prompt is there. The server may ask for more.";
    };

    timeouts = {
      connect = mkOption {
        type = types.ints.between 1 99999;
        default = 3;
        description = "Seconds for connecting to one server.";
      };
      request = mkOption {
        type = types.ints.between 1 99999;
        default = 10;
        description = "Seconds for one request.";
      };
      total = mkOption {
        type = types.ints.between 1 99999;
        default = 60;
        description = "Seconds for one attempt, with all servers.";
      };
    };

    checkedFileSystems = mkOption {
      type = types.listOf types.str;
      default = neededFileSystems;
      defaultText = literalExpression "the mount points that stage 1 mounts from a block device";
      example = [
        "/"
        "/nix"
      ];
      description = ''
        Mount points that have to lie on opened volumes where attestation opened one; otherwise the volumes are closed and the boot stops.
        A file system on ZFS or bcachefs cannot be followed to its volumes and is not checked.
      '';
    };

    espIsMeasured = mkOption {
      type = types.bool;
      default = false;
      description = ''
        The policy's selection has PCR 12 and 13, so credentials and extensions on the EFI system partition are measured.
        Without it, a boot that has any of them is capped before systemd starts. Only stage 1 with systemd takes them.
      '';
    };

    shellWithoutTpm = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Give stage 1's emergency shell even where no TPM could be capped.
        Wrong on a machine with a TPM: one whose driver comes late is then not capped when the shell appears.
      '';
    };
  };

  # Into the volumes that are declared, and without declaring any.
  options.boot.initrd.luks.devices = mkOption {
    type = types.attrsOf (
      types.submodule (
        { name, ... }:
        {
          config = optionalAttrs hasScripted (mkIf (cfg.enable && !withSystemd && cfg.devices ? ${name}) {
            preOpenCommands = mkMerge [
              # NixOS' own attempt comes between the two.
              (mkIf (initrd.clevis.devices ? ${name}) (mkBefore ''
                export ${assignments}
              ''))
              (mkAfter ''
                # bash and jose want it
                [ -e /dev/fd ] || ln -s /proc/self/fd /dev/fd
                ${assignments} setsid ${ours}/clevis-attest-answer scripted ${lib.escapeShellArg name} </dev/null >/dev/null 2>&1 &
                attest_answer=$!
              '')
            ];
            postOpenCommands = ''
              # with all that it started, or before it could become a group
              kill -- "-$attest_answer" 2>/dev/null || kill "$attest_answer" 2>/dev/null
              attest_answer=
              rm -f ${lib.escapeShellArg "/crypt-ramfs/.attest.${name}"}
            '';
          });
        }
      )
    );
  };

  config = mkIf cfg.enable (mkMerge [
    {
      assertions = [
        {
          assertion = names != [ ] || initrd.clevis.devices != { };
          message = "boot.initrd.tang-attest: no device. Name the volumes to open, for example: boot.initrd.tang-attest.devices.root = { };";
        }
        {
          assertion = initrd.network.enable || initrd.systemd.network.enable;
          message = "boot.initrd.tang-attest: no network in stage 1, so no server can be asked. Leave boot.initrd.tang-attest.network.enable on, or set boot.initrd.network.enable.";
        }
        {
          assertion = builtins.any (driver: builtins.elem driver included) tpmDrivers;
          message = "boot.initrd.tang-attest: no TPM driver in stage 1. Set boot.initrd.tang-attest.tpm.raspberryPi for a TPM on a Raspberry Pi's SPI bus, or name the driver in boot.initrd.tang-attest.tpm.modules (${toString tpmDrivers}).";
        }
        {
          assertion = !builtins.any isHttps cfg.server.urls || cfg.server.spki != null;
          message = "boot.initrd.tang-attest.server: an https address needs spki, the server's pinned public key: in stage 1 there is no clock to check a certificate with. docs/how-to/tls.md says how to get it.";
        }
        {
          assertion = (cfg.server.clientCertificate == null) == (cfg.server.clientKey == null);
          message = "boot.initrd.tang-attest.server: clientCertificate and clientKey are given together or not at all.";
        }
        {
          assertion = !isLiteral cfg.server.clientKey || isTpmKey cfg.server.clientKey;
          message = "boot.initrd.tang-attest.server.clientKey: an unquoted path is copied to the Nix store, where everybody can read it, and this is not a key in the TPM (TSS2 PRIVATE KEY). docs/how-to/tls.md says how to make one.";
        }
        {
          assertion = !showsCertificate || keepsSecrets || bothLiteral;
          message = "boot.initrd.tang-attest.server: this boot loader cannot add files to an initrd, so clientCertificate and clientKey have to be unquoted paths, and the key one of the TPM (TSS2 PRIVATE KEY).";
        }
        {
          assertion = !resumes || (resumesInside && !opensPools);
          message = "boot.resumeDevice: a writer of ${config.boot.resumeDevice} could resume a system of their own with the keys of the open volumes in memory. Put the swap on a volume of boot.initrd.luks.devices and name it /dev/mapper/NAME, or leave boot.resumeDevice empty.";
        }
      ]
      ++ map (name: {
        assertion = initrd.luks.devices ? ${name};
        message = "boot.initrd.tang-attest.devices.${name}: there is no boot.initrd.luks.devices.${name}. The names have to be the same.";
      }) names
      ++ map (name: {
        assertion = !silent name;
        message = "boot.initrd.luks.devices.${name}.keyFile: with a key file nobody is asked, so attestation has no prompt to answer. Remove it, or set fallbackToPassword.";
      }) known;

      warnings =
        lib.optional initrd.network.ssh.enable "boot.initrd.network.ssh: who may log in there, before a volume is open, can open every volume that attestation opens."
        ++ lib.optional (initrd.clevisLuksAskpass.enable or false)
          "boot.initrd.clevisLuksAskpass: boot.initrd.tang-attest answers the same prompts, with pauses that the server asks for. Turn boot.initrd.clevisLuksAskpass off.";

      # The kernel then resumes nothing.
      boot.kernelParams = lib.optional (!resumesInside) "nohibernate";

      boot.initrd = {
        clevis = {
          enable = true;
          package = mkDefault cfg.package;
          # It makes NixOS' one attempt wait for the network, and the prompt with it.  A volume gets further attempts
          # from here while its prompt is there; a pool does not.
          useTang = mkDefault opensPools;
        };
        availableKernelModules = cfg.tpm.modules;
        kernelModules = [ "af_packet" ];
      }
      // optionalAttrs (options.boot.initrd ? clevisLuksAskpass) {
        # Other volumes may be left to it.
        clevisLuksAskpass.package = mkDefault cfg.package;
      };

      environment.systemPackages = [ cfg.package ];
      environment.etc = mkIf (cfg.server.urls != [ ]) {
        "clevis-attest/bind.json".text = builtins.toJSON (
          {
            url = cfg.server.urls;
            name = cfg.deviceName;
          }
          // optionalAttrs (cfg.server.spki != null) { inherit (cfg.server) spki; }
          // optionalAttrs showsCertificate {
            client_cert = certificatePlace;
            client_key = keyPlace;
          }
          // optionalAttrs (cfg.server.thumbprints != [ ]) { thp = cfg.server.thumbprints; }
        );
      };
    }

    (mkIf (showsCertificate && cfg.server.clientCertificate != null) {
      boot.initrd.secrets = {
        ${certificatePlace} = cfg.server.clientCertificate;
        ${keyPlace} = cfg.server.clientKey;
      };
      # The running system looks in the same place.
      environment.etc = mkMerge [
        (mkIf (isLiteral cfg.server.clientCertificate) {
          "clevis-attest/client.crt".source = cfg.server.clientCertificate;
        })
        (mkIf (isLiteral cfg.server.clientKey) { "clevis-attest/client.key".source = cfg.server.clientKey; })
      ];
    })

    (mkIf (withSystemd && cfg.tpm.raspberryPi) {
      # NixOS adds tpm-crb otherwise, which the vendor's kernel lacks, and the initrd is not built.  Nothing of ours
      # needs tpm2.target.
      boot.initrd.systemd = optionalAttrs (options.boot.initrd.systemd ? tpm2) {
        tpm2.enable = mkDefault false;
      };
    })

    (mkIf (showsCertificate && withSystemd) {
      boot.initrd.systemd.storePaths = [ "${pkgs.tpm2-openssl}/lib/ossl-modules/tpm2.so" ];
    })

    (optionalAttrs hasScripted (mkIf (showsCertificate && !withSystemd) {
      # Beside the libraries, where NixOS looks for what each of them needs.
      boot.initrd.extraUtilsCommands = ''
        cp -p ${pkgs.tpm2-openssl}/lib/ossl-modules/tpm2.so $out/lib/tpm2.so
      '';
    }))

    (mkIf cfg.network.enable {
      boot.initrd.network = {
        enable = mkDefault true;
      }
      // optionalAttrs (hasScripted && options.boot.initrd.network ? udhcpc) {
        udhcpc = mkIf (!withSystemd) {
          enable = mkDefault true;
          # Two seconds in front of the prompt for each card at most; then it goes on asking in the background.
          extraArgs = [
            "-t 2"
            "-T 1"
            "-b"
          ];
        };
      };
    })

    # --- the scripted stage 1 -------------------------------------------------------------------------------------

    (optionalAttrs hasScripted (mkIf (!withSystemd) {
      boot.initrd = {
        extraFiles = {
          ${ours}.source = scripts;
          "/etc/clevis-attest".source = etc;
        };

        # Without one of these, the machine would find out at its next boot.
        extraUtilsCommandsTest = ''
          for attest_program in bash clevis clevis-decrypt-attest curl dmsetup jose modprobe setsid sha256sum tpm2 \
            ${lib.optionalString (names != [ ]) "cryptsetup"}; do
            if ! [ -x $out/bin/$attest_program ]; then
              echo "boot.initrd.tang-attest: stage 1 has no $attest_program" >&2
              exit 1
            fi
          done
          [ -e $out/lib/libtss2-tcti-device.so.0 ]
        '';

        # Before anything of a disk is resumed or mounted.
        postDeviceCommands = mkIf (!opensPools) capLast;
        postResumeCommands = mkIf opensPools capLast;

        # Once more: a device that was looked at may have got another name meanwhile.
        postMountCommands = lib.concatMapStrings (mountPoint: ''
          ${ours}/clevis-attest-root-check ${
            lib.escapeShellArg (below "/mnt-root" mountPoint)
          } || fail
        '') cfg.checkedFileSystems;

        # Before the menu that offers a shell.  If the cap or the closing of a volume fails, this does not return.
        preFailCommands = mkAfter ''
          [ -z "''${attest_answer-}" ] || kill -- "-$attest_answer" 2>/dev/null || kill "$attest_answer" 2>/dev/null
          rm -f /crypt-ramfs/passphrase /crypt-ramfs/.attest.* 2>/dev/null
          NEWROOT=/mnt-root ${ours}/clevis-attest-before-shell
        '';
      };
    }))

    # --- stage 1 with systemd -------------------------------------------------------------------------------------

    (mkIf withSystemd {
      boot.initrd.systemd = {
        contents = {
          ${ours}.source = scripts;
          "/etc/clevis-attest".source = etc;
          # PID 1 is systemd, but not before a look at what nobody measured.
          "/init".source = lib.mkForce "${scripts}/clevis-attest-init";
        };
        extraBin = {
          cryptsetup = "${pkgs.cryptsetup}/bin/cryptsetup";
          dmsetup = "${lib.getBin pkgs.lvm2}/bin/dmsetup";
          grep = "${pkgs.gnugrep}/bin/grep";
          ip = "${pkgs.iproute2}/bin/ip";
          jose = "${pkgs.jose}/bin/jose";
          sed = "${pkgs.gnused}/bin/sed";
          systemd-reply-password = "${initrd.systemd.package}/lib/systemd/systemd-reply-password";
          tpm2 = "${pkgs.tpm2-tools}/bin/tpm2";
        };
        # The program behind tpm2's wrapper, and what it loads by name.
        storePaths = [
          "${pkgs.tpm2-tools}/bin/.tpm2-wrapped"
          "${pkgs.tpm2-tss}/lib/libtss2-tcti-device.so.0"
        ];

        # clevis-attest-cap.service, clevis-attest-root.service, and drop-ins of every unit that gives a shell, or
        # mounts, checks, resumes or runs what is on a disk.
        packages = [ scripts ];
        services = lib.listToAttrs (
          # NixOS' own attempt, with the same time-outs.
          map (name: lib.nameValuePair "cryptsetup-clevis-${name}" { inherit environment; }) triedByNixos
        )
        // {
          clevis-attest-answer = {
            description = "Answer passphrase prompts by attestation";
            wantedBy = [ "cryptsetup.target" ];
            wants = [ "network-online.target" ];
            # systemd extends PCRs in the initrd, too, and each quote comes after it.
            after = [
              "systemd-pcrnvdone.service"
              "systemd-pcrosseparator.service"
              "systemd-pcrphase-initrd.service"
            ];
            # Ended before a shell is given, and before the disk's own system begins.
            conflicts = [
              "debug-shell.service"
              "emergency.service"
              "initrd-switch-root.target"
              "rescue.service"
              "shutdown.target"
            ];
            before = [
              "debug-shell.service"
              "emergency.service"
              "initrd-switch-root.target"
              "rescue.service"
              "shutdown.target"
            ];
            unitConfig = {
              DefaultDependencies = false;
              ConditionPathExists = "/etc/initrd-release";
            };
            inherit environment;
            serviceConfig = {
              # The prompt does not wait for this; 20 seconds at most.
              ExecStartPre = "${ours}/clevis-attest-wait-network";
              ExecStart = "${ours}/clevis-attest-answer systemd";
              Restart = "on-failure";
            };
          };

          # The unit is in the package; [Install] does not count there.
          clevis-attest-cap.wantedBy = [ "initrd.target" ];
        };
      };
    })

    (mkIf (withSystemd && cfg.network.enable) {
      # The last of all: for cards that nothing else configures.
      boot.initrd.systemd.network = {
        enable = mkDefault true;
        networks."zz-tang-attest" = {
          matchConfig = {
            Type = "ether";
            Kind = "!*";
          };
          networkConfig.DHCP = "yes";
        };
      };
    })
  ]);
}
