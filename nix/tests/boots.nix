{ name, systemd }:
{
  inherit name;

  nodes.server = {
    imports = [ ../module-server.nix ];
    services.tang-attest = {
      enable = true;
      openFirewall = true;
    };
  };

  nodes.client =
    {
      config,
      lib,
      nodes,
      pkgs,
      ...
    }:
    let
      url = "http://${nodes.server.networking.primaryIPAddress}:7500";

      # The root is encrypted, and opened by attestation.
      encrypted = more: {
        configuration.imports = [
          more
          {
            boot.initrd.luks.devices = lib.mkVMOverride { root.device = "/dev/vdb"; };
            virtualisation.rootDevice = "/dev/mapper/root";
            virtualisation.fileSystems."/".autoFormat = true;
            boot.initrd.tang-attest = {
              enable = true;
              devices.root = { };
              server.urls = [ url ];
            };
          }
        ];
      };

      address = "${config.networking.primaryIPAddress}/24";
    in
    {
      imports = [ ../module-initrd.nix ];

      virtualisation = {
        efi.OVMF = pkgs.OVMFFull.fd; # the one that measures
        emptyDiskImages = [ 1024 ];
        mountHostNixStore = true;
        tpm.enable = true;
        useBootLoader = true;
        useEFIBoot = true;
      };
      boot.loader.systemd-boot.enable = true;
      boot.loader.timeout = 0;
      boot.initrd.systemd.enable = systemd;

      # The machines' own network has no DHCP.
      boot.initrd.network = lib.mkIf (!systemd) {
        enable = true;
        postCommands = ''
          ip link set eth1 up
          ip address add ${address} dev eth1
        '';
      };
      boot.initrd.systemd.network = lib.mkIf systemd {
        enable = true;
        networks."10-machines" = {
          matchConfig.Name = "eth1";
          networkConfig.Address = address;
        };
      };

      environment.systemPackages = [
        pkgs.cryptsetup
        (pkgs.callPackage ../clevis-pin-attest.nix { })
      ];
      environment.etc."clevis-attest-test/url".text = url;

      specialisation = {
        encrypted = encrypted { };
        # Another command line stands for every update: it changes what is measured, and nothing else.
        updated = encrypted { boot.kernelParams = [ "updated=1" ]; };
        announced = encrypted { boot.kernelParams = [ "announced=1" ]; };
      };
    };

  testScript = builtins.readFile ./boots.py;
  # The table is typed for a reader, not for the driver's linters.
  skipLint = true;
  skipTypeCheck = true;
}
