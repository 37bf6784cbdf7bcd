# As much of nixpkgs as the modules in nix/ use, made of this machine's programs.  Whatever is made here is really
# built, into the tests' own store, so that the tests can run it.
{ lib }:
let
  system = builtins.currentSystem;

  # What nixpkgs' stdenv and its hooks offer to a build script.
  prelude = ''
    set -eu -o pipefail
    export PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin
    wrapProgram() {
        local program=$1 hidden
        shift
        hidden="''${program%/*}/.''${program##*/}-wrapped"
        mv "$program" "$hidden"
        printf '#!/bin/bash -e\n' >"$program"
        while (($#)); do
            case $1 in
                --prefix) printf 'export %s=%q%s"''${%s:-}"\n' "$2" "$4" "$3" "$2" >>"$program" ;;
                --suffix) printf 'export %s="''${%s:-}"%s%q\n' "$2" "$2" "$3" "$4" >>"$program" ;;
                *) echo "wrapProgram: $1 is not known here" >&2; exit 1 ;;
            esac
            shift 4
        done
        printf 'exec -a "$0" %q "$@"\n' "$hidden" >>"$program"
        chmod 755 "$program"
    }
    installManPage() {
        local page
        for page; do install -D -m 644 "$page" "$out/share/man/man''${page##*.}/''${page##*/}"; done
    }
  '';

  build =
    name: environment: script:
    derivation (
      removeAttrs environment [
        "meta"
        "passthru"
      ]
      // {
        inherit name system;
        builder = "/bin/bash";
        args = [
          "-c"
          ". \"$scriptPath\""
        ];
        script = prelude + script;
        passAsFile = [ "script" ] ++ environment.passAsFile or [ ];
      }
    )
    // {
      meta = environment.meta or { };
    }
    // environment.passthru or { };

  # The fix-up gives every script of $out/bin a shell of the store, as nixpkgs' does.
  mkDerivation =
    arguments:
    build (arguments.name or "${arguments.pname}-${arguments.version}")
      {
        meta = arguments.meta or { };
        passthru = (arguments.passthru or { }) // {
          overrideAttrs = change: mkDerivation (arguments // change arguments);
          inherit arguments;
        };
      }
      ''
        ${lib.optionalString (arguments ? src) ''
          cp -r ${arguments.src} source
          chmod -R u+w source
          cd source
        ''}
        ${arguments.installPhase or ""}
        ${arguments.postInstall or ""}
        for program in $out/bin/*; do
          sed -i '1s,^#! */bin/\(bash\|sh\),#!${pkgs.bash}/bin/\1,' "$program"
        done
        ${arguments.postFixup or ""}
      '';

  # A package of programs that this machine has.
  host =
    name: programs:
    build name { } ''
      mkdir -p $out/bin
      for program in ${lib.concatStringsSep " " programs}; do
        ln -s "$(type -P "$program")" "$out/bin/$program"
      done
    '';

  writeText =
    name: text:
    build name {
      inherit text;
      passAsFile = [ "text" ];
    } ''cp "$textPath" $out'';

  # Whatever pyproject.toml names; whether nixpkgs has it, tests/nix/test_package.py knows.
  pythonNames = [
    "setuptools"
  ]
  ++ map (text: builtins.head (builtins.match "([A-Za-z0-9._-]+).*" text)) (
    (lib.importTOML ../../../pyproject.toml).project.dependencies
  );
  pythonPackage = name: { inherit name; } // lib.optionalAttrs (name == "sqlalchemy") {
    optional-dependencies.asyncio = [ { name = "greenlet"; } ];
  };

  pkgs = {
    inherit lib;
    inherit (pkgs.stdenv) mkDerivation;
    stdenv.mkDerivation = mkDerivation;
    runCommand = build;
    inherit writeText;
    writeScriptBin =
      name: text:
      build name {
        inherit text;
        passAsFile = [ "text" ];
        meta.mainProgram = name;
      } ''install -D -m 755 "$textPath" $out/bin/${name}'';

    formats.toml = _: {
      type = lib.types.anything;
      # A JSON string is a TOML string, and so are numbers and booleans; a table is inline here.
      generate =
        let
          pair = key: setting: "${key} = ${inline setting}";
          inline =
            setting:
            if builtins.isAttrs setting then
              "{ ${builtins.concatStringsSep ", " (lib.mapAttrsToList pair setting)} }"
            else
              builtins.toJSON setting;
        in
        name: value: writeText name (lib.concatLines (lib.mapAttrsToList pair value));
    };

    callPackage =
      file: overrides:
      let
        function = import file;
      in
      function (
        builtins.mapAttrs (
          name: _: overrides.${name} or pkgs.${name} or (throw "${toString file}: no package '${name}'")
        ) (builtins.functionArgs function)
      );

    python3Packages = lib.genAttrs pythonNames pythonPackage // {
      buildPythonApplication =
        arguments:
        mkDerivation (
          arguments
          // {
            # The program of this checkout stands for the one that would be built.
            installPhase = ''
              mkdir -p $out/bin
              printf '#!/bin/sh\nexec ${toString ../../..}/.venv/bin/python -m tang_attest "$@"\n' >$out/bin/tang-attest
              chmod 755 $out/bin/tang-attest
              # As nixpkgs' own, with the dependencies on its path.
              python() { ${toString ../../..}/.venv/bin/python "$@"; }
            '';
          }
        );
    };
    installShellFiles = { };
    makeWrapper = { };

    bash = build "bash" { } ''
      mkdir -p $out/bin
      ln -s /bin/bash $out/bin/bash
      ln -s bash $out/bin/sh
    '';

    # Debian's clevis, wrapped as nixpkgs has it.
    clevis = mkDerivation {
      pname = "clevis";
      version = "0";
      installPhase = ''
        mkdir -p $out/bin
        for program in /usr/bin/clevis /usr/bin/clevis-*; do
          case $program in *attest*) ;; *) cp "$program" $out/bin ;; esac
        done
      '';
      postInstall = ''
        wrapProgram $out/bin/clevis --prefix PATH : "${lib.makeBinPath [ pkgs.coreutils pkgs.jose ]}:$out/bin"
      '';
    };

    coreutils = host "coreutils" [
      "cat"
      "chmod"
      "cut"
      "head"
      "id"
      "kill"
      "mkdir"
      "mktemp"
      "mv"
      "od"
      "readlink"
      "rm"
      "sha256sum"
      "sleep"
      "sort"
      "stat"
      "sync"
      "tail"
      "timeout"
      "tr"
    ];
    cryptsetup = host "cryptsetup" [ "cryptsetup" ];
    curl = host "curl" [ "curl" ];
    gnugrep = host "gnugrep" [ "grep" ];
    gnused = host "gnused" [ "sed" ];
    iproute2 = host "iproute2" [ "true" ]; # stands for ip, which nothing here runs
    jose = host "jose" [ "jose" ];
    luksmeta = host "luksmeta" [ "luksmeta" ];
    lvm2 = host "lvm2" [ "true" ]; # stands for dmsetup, which nothing here runs
    python3 = build "python3" { } ''
      mkdir -p $out/bin
      ln -s /usr/bin/python3 $out/bin/python3
    '';
    systemd = host "systemd" [ "systemctl" ];
    tpm2-openssl = build "tpm2-openssl" { } ''
      mkdir -p $out/lib/ossl-modules
      ln -s /usr/lib/*/ossl-modules/tpm2.so $out/lib/ossl-modules/tpm2.so
    '';
    tpm2-tools = host "tpm2-tools" [ "tpm2" ];
    tpm2-tss = host "tpm2-tss" [ ];
    util-linux = host "util-linux" [
      "blkid"
      "setpriv"
    ];
  };
in
pkgs
