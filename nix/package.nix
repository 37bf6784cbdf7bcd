# The server.  Its dependencies are those of pyproject.toml, by the names that nixpkgs has for them, so a new one needs
# no change here.  Lower bounds count: with older packages the build says which (pythonRuntimeDepsCheck).
{
  lib,
  python3Packages,
}:
let
  project = (lib.importTOML ../pyproject.toml).project;

  # "sqlalchemy[asyncio]>=2.1": the name, and the extras that it asks for
  requirement =
    text:
    let
      parts = builtins.match "([A-Za-z0-9._-]+)(\\[([A-Za-z0-9,._-]+)])?.*" text;
      extras = builtins.elemAt parts 2;
    in
    {
      name = builtins.head parts;
      extras = lib.optionals (extras != null) (builtins.filter builtins.isString (builtins.split "," extras));
    };

  packagesOf =
    { name, extras }:
    let
      package = python3Packages.${name};
    in
    [ package ] ++ lib.concatMap (extra: package.optional-dependencies.${extra}) extras;

  version = builtins.head (
    builtins.match ".*__version__ = \"([^\"]+)\".*" (builtins.readFile ../tang_attest/__init__.py)
  );
in
python3Packages.buildPythonApplication {
  pname = project.name;
  inherit version;
  pyproject = true;

  src = builtins.path {
    name = "tang-attest-source";
    path = ../.;
    filter =
      path: _:
      (
        path == toString ../tools
        || builtins.any (kept: lib.hasPrefix (toString kept) path) [
        ../LICENSE
        ../pyproject.toml
        ../tang_attest
        ../tools/generate_manual.py
        ../tools/generate_share.py
      ])
      && builtins.match ".*/__pycache__" path == null;
  };

  build-system = [ python3Packages.setuptools ];
  dependencies = lib.concatMap (text: packagesOf (requirement text)) project.dependencies;

  # The hardened unit is the one that Debian has; module-server.nix replaces its paths.
  # Manual pages and completions are made by the program; nixpkgs has another place for those of zsh than Debian.
  postInstall = ''
    python -B -m tools.generate_share $out/share site-functions
    install -D -m 644 ${../packaging/systemd/tang-attest.service} $out/lib/systemd/system/tang-attest.service
  '';

  # The tests want a software TPM, clevis, cryptsetup and a PostgreSQL: `make test` in the repository runs them.
  doCheck = false;
  pythonImportsCheck = [
    "tang_attest.cli"
    "tang_attest.web"
  ];

  meta = {
    inherit (project) description;
    license = lib.licenses.gpl3Plus;
    mainProgram = "tang-attest";
    platforms = lib.platforms.linux;
  };
}
