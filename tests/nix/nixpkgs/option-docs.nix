# Every option that the modules in nix/ declare, for docs/nixos-options.md.
let
  lib = import ./lib.nix;
  inherit
    (lib.evalModules {
      modules = [
        ../../../nix/module-agent.nix
        ../../../nix/module-initrd.nix
        ../../../nix/module-server.nix
      ];
      specialArgs.pkgs = throw "an option's documentation depends on a package: give it a defaultText";
    })
    options
    ;

  text =
    value:
    if value._type or "" == "literalExpression" then value.text else builtins.toJSON value;

  describe =
    path: option:
    [
      (
        {
          name = lib.showOption path;
          type = option.type.description;
          # None where a module only adds to what NixOS declares.
          description = option.description or "";
        }
        // lib.optionalAttrs (option ? default) { default = text (option.defaultText or option.default); }
        // lib.optionalAttrs (option ? example) { example = text option.example; }
      )
    ]
    ++ inside path option.type;

  # What a submodule has, under <name>.
  inside =
    path: type:
    # A function where a module adds to what NixOS declares.
    if type.sub or null == null || !(type.sub ? module) || builtins.isFunction type.sub.module then
      [ ]
    else
      walk (path ++ [ "<name>" ]) type.sub.module.options;

  walk =
    path: tree:
    if tree._type or "" == "option" then
      describe path tree
    else
      lib.concatLists (lib.mapAttrsToList (name: walk (path ++ [ name ])) tree);
in
walk [ ] options
