# As much of nixpkgs' lib as the modules in nix/ use: options, types that check, priorities, imports, submodules.
#
# The tests use it where no nixpkgs is at hand (NIXPKGS_LIB, NIXPKGS).  It is stricter than nixpkgs where it is
# simpler: what it does not know is an error, and never a silent yes.
let
  inherit (builtins)
    all
    any
    attrNames
    attrValues
    concatLists
    concatStringsSep
    elem
    elemAt
    filter
    foldl'
    head
    isAttrs
    isBool
    isFunction
    isInt
    isList
    isPath
    isString
    length
    listToAttrs
    map
    match
    replaceStrings
    sort
    toString
    ;

  # --- lists, attribute sets, strings -----------------------------------------------------------------------------

  optional = condition: value: if condition then [ value ] else [ ];
  optionals = condition: values: if condition then values else [ ];
  optionalString = condition: text: if condition then text else "";
  optionalAttrs = condition: set: if condition then set else { };
  concatMap = f: list: concatLists (map f list);
  concatMapStringsSep = separator: f: list: concatStringsSep separator (map f list);
  concatMapStrings = concatMapStringsSep "";
  concatStrings = concatStringsSep "";
  concatLines = concatMapStrings (line: line + "\n");
  reverse = foldl' (list: item: [ item ] ++ list) [ ];
  nameValuePair = name: value: { inherit name value; };
  mapAttrs' = f: set: listToAttrs (map (name: f name set.${name}) (attrNames set));
  mapAttrsToList = f: set: map (name: f name set.${name}) (attrNames set);
  filterAttrs = keep: set: removeAttrs set (filter (name: !keep name set.${name}) (attrNames set));
  genAttrs = names: f: listToAttrs (map (name: nameValuePair name (f name)) names);
  unique = list: foldl' (seen: item: if elem item seen then seen else seen ++ [ item ]) [ ] list;
  escapeShellArg =
    value:
    if match "[[:alnum:],._+:@%/-]+" (toString value) != null then
      toString value
    else
      "'${replaceStrings [ "'" ] [ "'\\''" ] (toString value)}'";
  escapeShellArgs = concatMapStringsSep " " escapeShellArg;
  hasPrefix = prefix: text: builtins.substring 0 (builtins.stringLength prefix) text == prefix;
  removePrefix =
    prefix: text:
    if hasPrefix prefix text then
      builtins.substring (builtins.stringLength prefix) (builtins.stringLength text) text
    else
      text;
  makeBinPath = concatMapStringsSep ":" (package: "${package}/bin");
  importJSON = path: builtins.fromJSON (builtins.readFile path);
  importTOML = path: builtins.fromTOML (builtins.readFile path);
  getExe = package: "${package}/bin/${package.meta.mainProgram}";
  getBin = package: package;
  boolToString = value: if value then "true" else "false";
  hiPrio = package: package // { meta = package.meta or { } // { priority = -10; }; };
  showOption = concatStringsSep ".";

  # --- definitions ------------------------------------------------------------------------------------------------

  mkIf = condition: content: {
    _type = "if";
    inherit condition content;
  };
  mkMerge = contents: {
    _type = "merge";
    inherit contents;
  };
  mkOverride = priority: content: {
    _type = "override";
    inherit priority content;
  };
  mkOrder = priority: content: {
    _type = "order";
    inherit priority content;
  };
  mkDefault = mkOverride 1000;
  mkForce = mkOverride 50;
  mkBefore = mkOrder 500;
  mkAfter = mkOrder 1500;

  isType = type: value: isAttrs value && value._type or null == type;

  # An attribute set behind mkIf and the like, as a list of plain ones whose values carry the mkIf.
  pushDown =
    value:
    if isType "if" value then
      map (set: builtins.mapAttrs (_: mkIf value.condition) set) (pushDown value.content)
    else if isType "merge" value then
      concatMap pushDown value.contents
    else if isType "override" value then
      map (set: builtins.mapAttrs (_: mkOverride value.priority) set) (pushDown value.content)
    else if isAttrs value then
      [ value ]
    else
      throw "a module's config is a ${builtins.typeOf value}, not an attribute set";

  # The definitions that a value holds, each with its priority and place.
  discharge =
    priority: order: value:
    if isType "if" value then
      optionals value.condition (discharge priority order value.content)
    else if isType "merge" value then
      concatMap (discharge priority order) value.contents
    else if isType "override" value then
      discharge value.priority order value.content
    else if isType "order" value then
      discharge priority value.priority value.content
    else
      [ { inherit priority order value; } ];

  # The values that count: of the strongest priority, in their order.
  winners =
    values:
    let
      found = concatMap (discharge 100 1000) values;
      strongest = foldl' (least: item: if item.priority < least then item.priority else least) 9999 found;
    in
    map (item: item.value) (
      sort (a: b: a.order < b.order) (filter (item: item.priority == strongest) found)
    );

  # --- options and types ------------------------------------------------------------------------------------------

  mkOption = option: option // { _type = "option"; };
  literalExpression = text: {
    _type = "literalExpression";
    inherit text;
  };
  mkEnableOption =
    what:
    mkOption {
      type = types.bool;
      default = false;
      example = true;
      description = "Whether to enable ${what}.";
    };

  wrong =
    location: type: value:
    throw "A definition for option `${showOption location}' is not of type `${type.description}': ${
      if isFunction value || isPath value || isAttrs value then
        "a ${builtins.typeOf value}"
      else
        builtins.toJSON value
    }";

  checked =
    type: location: value:
    if type.check value then value else wrong location type value;

  # For types of which there can be one definition only, or several equal ones.
  mergeEqual =
    type: location: values:
    let
      first = checked type location (head values);
    in
    if all (value: value == head values) values then
      first
    else
      throw "The option `${showOption location}' has conflicting definitions";

  mkType =
    description: check: extra:
    let
      type = {
        _type = "option-type";
        inherit description check;
        merge = mergeEqual type;
        sub = null;
      }
      // extra type;
    in
    type;
  simple = description: check: mkType description check (_: { });

  between =
    low: high: description:
    simple description (value: isInt value && value >= low && value <= high);

  types = rec {
    anything = simple "anything" (_: true);
    raw = simple "raw value" (_: true);
    bool = simple "boolean" isBool;
    int = simple "signed integer" isInt;
    str = simple "string" isString;
    singleLineStr = simple "(optionally newline-terminated) single-line string" (
      value: isString value && match "[^\n]*\n?" value != null
    );
    port = between 0 65535 "16 bit unsigned integer; between 0 and 65535 (both inclusive)";
    package = simple "package" (
      value: isAttrs value && value.type or "" == "derivation" || isPath value || isString value
    );
    path = simple "absolute path" (
      value: hasPrefix "/" (if isPath value then toString value else "${value}")
    );
    ints = {
      between =
        low: high:
        between low high "integer between ${toString low} and ${toString high} (both inclusive)";
      positive = between 1 9223372036854775807 "positive integer, meaning >0";
      unsigned = between 0 9223372036854775807 "unsigned integer, meaning >=0";
    };
    strMatching =
      pattern:
      simple "string matching the pattern ${pattern}" (
        value: isString value && match pattern value != null
      );
    enum =
      values:
      simple "one of ${concatMapStringsSep ", " builtins.toJSON values}" (value: elem value values);
    lines = mkType "strings concatenated with \"\\n\"" isString (type: {
      merge = location: values: concatMapStringsSep "\n" (checked type location) values;
    });
    nullOr =
      inner:
      mkType "null or ${inner.description}" (value: value == null || inner.check value) (type: {
        merge =
          location: values: if all (value: value == null) values then null else inner.merge location values;
      });
    either =
      one: other:
      simple "${one.description} or ${other.description}" (value: one.check value || other.check value);
    oneOf = list: foldl' either (head list) (builtins.tail list);
    listOf =
      inner:
      mkType "list of ${inner.description}" isList (type: {
        merge =
          location: values:
          concatMap (
            list:
            map (value: inner.merge location [ value ]) (
              concatMap (item: map (found: found.value) (discharge 100 1000 item)) (checked type location list)
            )
          ) values;
      });
    attrsOf =
      inner:
      mkType "attribute set of ${inner.description}" isAttrs (type: {
        merge =
          location: values:
          let
            sets = concatMap (value: pushDown (checked type location value)) values;
            definitions = name: concatMap (set: optional (set ? ${name}) set.${name}) sets;
            values' = name: winners (definitions name);
          in
          listToAttrs (
            concatMap (
              name:
              optional (values' name != [ ]) (
                nameValuePair name (inner.merge (location ++ [ name ]) (values' name))
              )
            ) (unique (concatMap attrNames sets))
          );
        sub = inner;
      });
    lazyAttrsOf = attrsOf;
    submodule =
      module:
      mkType "submodule" (value: isAttrs value || isFunction value) (_: {
        merge =
          location: values:
          (evalModules {
            modules = [ module ] ++ values;
            specialArgs.name = elemAt location (length location - 1);
            prefix = location;
          }).config;
        module = module;
      });
  };

  # --- modules ----------------------------------------------------------------------------------------------------

  evalModules =
    {
      modules,
      specialArgs ? { },
      prefix ? [ ],
    }:
    let
      arguments = {
        inherit config options lib;
      }
      // specialArgs;

      load = module: if isPath module || isString module then import module else module;
      call =
        module:
        let
          loaded = load module;
        in
        if isFunction loaded then
          let
            wanted = builtins.functionArgs loaded;
          in
          loaded (
            if wanted == { } then
              arguments
            else
              builtins.mapAttrs (name: _: arguments.${name} or (throw "no module argument '${name}'")) wanted
          )
        else
          loaded;

      normal =
        module:
        let
          called = call module;
          strange = attrNames (
            removeAttrs called [
              "_file"
              "config"
              "imports"
              "meta"
              "options"
            ]
          );
        in
        if called ? config || called ? options then
          if strange != [ ] then
            throw "a module with config or options has also: ${concatStringsSep " " strange}"
          else
            {
              imports = called.imports or [ ];
              options = called.options or { };
              config = called.config or { };
            }
        else
          {
            imports = called.imports or [ ];
            options = { };
            config =
              if called ? _type then
                called
              else
                removeAttrs called [
                  "_file"
                  "imports"
                  "meta"
                ];
          };

      # Each file once, however many modules import it.
      collect =
        before: list:
        foldl' (
          sum: module:
          let
            key = if isPath module || isString module then toString module else null;
            found = normal module;
          in
          if key != null && elem key sum.seen then
            sum
          else
            collect {
              seen = sum.seen ++ optional (key != null) key;
              modules = sum.modules ++ [ found ];
            } found.imports
        ) before list;
      collected =
        (collect {
          seen = [ ];
          modules = [ ];
        } modules).modules;

      isOption = isType "option";

      # Several modules may declare parts of the same submodules.
      joinOptions =
        location: found:
        let
          inner = map (option: option.type.sub.module or null) found;
        in
        if all (module: module != null) inner then
          foldl' (joined: option: joined // option) { } (reverse found)
          // {
            type = types.attrsOf (types.submodule { imports = inner; });
          }
        else
          throw "The option `${showOption location}' is declared more than once";

      mergeOptions =
        location: trees:
        builtins.listToAttrs (
          map (
            name:
            let
              here = location ++ [ name ];
              found = concatMap (tree: optional (tree ? ${name}) tree.${name}) trees;
            in
            nameValuePair name (
              if any isOption found then
                if length found == 1 then head found else joinOptions here found
              else
                mergeOptions here found
            )
          ) (unique (concatMap attrNames trees))
        );

      evaluate =
        location: option: values:
        let
          won = winners values;
          merged =
            if won != [ ] then
              option.type.merge location won
            else if option ? default then
              option.type.merge location [ option.default ]
            else
              throw "The option `${showOption location}' is used but not defined";
        in
        (option.apply or (value: value)) merged;

      tree =
        location: declared: sets:
        builtins.mapAttrs (
          name: option:
          let
            here = location ++ [ name ];
            values = concatMap (set: optional (set ? ${name}) set.${name}) sets;
          in
          if isOption option then
            evaluate here option values
          else
            tree here option (concatMap pushDown values)
        ) declared;

      unknown =
        location: declared: sets:
        concatMap (
          name:
          let
            here = location ++ [ name ];
            values = concatMap (set: optional (set ? ${name}) set.${name}) sets;
          in
          if !(declared ? ${name}) then
            [ (showOption here) ]
          else if isOption declared.${name} then
            [ ]
          else
            unknown here declared.${name} (concatMap pushDown values)
        ) (unique (concatMap attrNames sets));

      options = mergeOptions prefix (map (module: module.options) collected);
      # Like nixpkgs, what a module imports or comes after it is merged before it.
      sets = concatMap (module: pushDown module.config) (reverse collected);
      config = tree prefix options sets;
      strange = unknown prefix options sets;
    in
    {
      inherit options;
      config =
        if strange == [ ] then config else throw "The option `${head strange}' does not exist";
    };

  lib = {
    inherit
      all
      any
      attrNames
      attrValues
      boolToString
      concatLines
      concatLists
      concatMap
      concatMapStrings
      concatMapStringsSep
      concatStrings
      concatStringsSep
      elem
      escapeShellArg
      escapeShellArgs
      evalModules
      filter
      filterAttrs
      genAttrs
      getBin
      getExe
      hasPrefix
      head
      hiPrio
      importJSON
      importTOML
      listToAttrs
      literalExpression
      makeBinPath
      mapAttrs'
      mapAttrsToList
      mkAfter
      mkBefore
      mkDefault
      mkEnableOption
      mkForce
      mkIf
      mkMerge
      mkOption
      mkOrder
      mkOverride
      nameValuePair
      optional
      optionalAttrs
      optionalString
      optionals
      removePrefix
      showOption
      types
      unique
      ;
    inherit (builtins) mapAttrs replaceStrings;
    strings = { inherit escapeShellArg; };
    licenses.gpl3Plus = {
      spdxId = "GPL-3.0-or-later";
    };
    platforms.linux = [
      "x86_64-linux"
      "aarch64-linux"
    ];
  };
in
lib
