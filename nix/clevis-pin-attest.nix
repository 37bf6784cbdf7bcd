# clevis with the attest pin in it: in the running system, and as boot.initrd.clevis.package in stage 1.
{
  lib,
  bash,
  clevis,
  coreutils,
  cryptsetup,
  curl,
  gnugrep,
  gnused,
  jose,
  luksmeta,
  makeWrapper,
  python3,
  tpm2-openssl,
  tpm2-tools,
  util-linux,
}:
let
  # With which curl's OpenSSL signs with a key of the TPM.
  providers = "${tpm2-openssl}/lib/ossl-modules";

  tools = lib.makeBinPath [
    coreutils
    cryptsetup
    curl
    gnugrep
    gnused
    jose
    luksmeta
    python3
    tpm2-tools
    util-linux
  ];

  # The server's parser of event logs, with which the running system predicts its next boot.
  eventlog = builtins.path {
    name = "tang-attest-eventlog";
    path = ../.;
    filter =
      path: _:
      builtins.any
        (
          kept: path == kept || lib.hasPrefix "${path}/" kept || lib.hasPrefix "${kept}/" path
        )
        (
          map toString [
            ../tang_attest/__init__.py
            ../tang_attest/errors.py
            ../tang_attest/protocol/__init__.py
            ../tang_attest/protocol/coverage
            ../tang_attest/protocol/eventlog
            ../tang_attest/protocol/values
          ]
        )
      && builtins.match ".*/__pycache__" path == null;
  };

  # The scripted stage 1 copies clevis-decrypt* and nothing else, so this one holds its functions itself.  A running
  # NixOS has no /bin/bash, and stage 1 has not this machine's store: hence /bin/sh, which both have, to find bash.
  header = builtins.toFile "clevis-decrypt-attest-header" ''
    #!/bin/sh
    if [ -z "''${BASH_VERSION-}" ] || [ -o posix ]; then
        if [ -x @bash@/bin/bash ]; then
            exec @bash@/bin/bash "$0" "$@"
        fi
        exec bash "$0" "$@"
    fi
    PATH=$PATH:@tools@
    export OPENSSL_MODULES="''${OPENSSL_MODULES:-@providers@}"
  '';
in
clevis.overrideAttrs (old: {
  pname = "clevis-pin-attest";
  nativeBuildInputs = old.nativeBuildInputs or [ ] ++ [ makeWrapper ];

  # After clevis' own, which wraps `clevis` so that it finds its subcommands here.
  postInstall = (old.postInstall or "") + ''
    make -C ${../clevis-pin} install PREFIX=$out SERVER=${eventlog}
  '';

  # After the fix-up, which would give clevis-decrypt-attest a shell that stage 1 has not.
  postFixup = (old.postFixup or "") + ''
    for script in $out/bin/clevis-*attest*; do
      case $script in
        */clevis-decrypt-attest)
          for functions in clevis-attest-functions clevis-attest-signed-functions; do
            grep -q '\. "$lib/'$functions'"$' ${../clevis-pin}/clevis-decrypt-attest
          done
          {
            sed -e 's,@bash@,${bash},; s,@tools@,${tools},; s,@providers@,${providers},' ${header}
            while IFS= read -r text; do
              case $text in
                # the search for its functions
                here=* | 'for lib in '*) ;;
                *'. "$lib/clevis-attest-'*'-functions"' | '. "$lib/clevis-attest-functions"')
                  text=''${text##*/}
                  cat ${../clevis-pin}/lib/''${text%\"}
                  ;;
                *) printf '%s\n' "$text" ;;
              esac
            done < ${../clevis-pin}/clevis-decrypt-attest
          } > inlined
          install -m 755 inlined "$script"
          ;;
        *) wrapProgram "$script" --suffix PATH : "${tools}:$out/bin" --prefix OPENSSL_MODULES : "${providers}" ;;
      esac
    done
  '';

  meta = old.meta or { } // {
    description = "clevis with a pin that shows a quote of the TPM to a tang-attest server";
    mainProgram = "clevis";
  };
})
