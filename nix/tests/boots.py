# The testScript of boots.nix: `client`, `server`, `start_all` and `subtest` are NixOS' test driver.
# ruff: noqa: D100, D103, F821, S101, S105 - a script for that driver, not a module of this project

PASSPHRASE = "typed by a person"
OPENS, REFUSES = "unlocked by attestation", "refused \\(pcr-mismatch\\)"

# Each boot: the line of the console, whether a passphrase has to be typed, and the operator's command then.
BOOTS = [
    ("encrypted", OPENS, False, None),
    ("updated", REFUSES, True, "tang-attest approve client --label updated"),
    ("updated", OPENS, False, None),
    # A rollback: values that were approved stay valid.
    ("encrypted", OPENS, False, "announce"),
    ("announced", OPENS, False, None),
    ("encrypted", OPENS, False, "tang-attest device remove client --yes"),
    ("encrypted", "refused \\(key-unknown\\)", True, None),
]


def entry(name):
    # By its title: the name of the file has the generation in it, or since 26.11 a hash.
    return client.succeed(f"grep -lx 'title .*({name})' /boot/loader/entries/*.conf").strip()


def boot(name, words, typed):
    client.succeed(f"bootctl set-default $(basename {entry(name)})", "sync")
    client.crash()
    client.start()
    if words:
        client.wait_for_console_text(words)
    if typed:
        client.wait_for_console_text("[Pp]assphrase")
        client.send_console(f"{PASSPHRASE}\n")
    client.wait_for_unit("multi-user.target")
    client.succeed("findmnt --noheadings --output SOURCE / | grep -x /dev/mapper/root")


def announce():
    system = client.succeed(
        f"sed -n 's,^options .*init=\\([^ ]*\\)/init.*,\\1,p' {entry('announced')}"
    ).strip()
    client.succeed(f"{system}/sw/bin/tang-attest-announce {system}")
    staged = server.succeed("tang-attest policy staged")
    assert "predicted" in staged, staged
    server.succeed("tang-attest policy stage client --announced NixOS")


start_all()
server.wait_for_open_port(7500)
thumbprint = server.succeed("journalctl -u tang-attest-init -o cat | grep -oE '^[A-Za-z0-9_-]{43}$'").strip()
token = server.succeed("tang-attest token create --name client --record --allow-unverified-ek").strip()

# The disk, with a passphrase; then its own system, in which the machine enrolls.
client.wait_for_unit("multi-user.target")
client.succeed(f"printf %s '{PASSPHRASE}' | cryptsetup luksFormat -q --iter-time 1 /dev/vdb -")
boot("encrypted", None, True)
client.succeed(
    f"umask 077; printf %s '{token}' >/root/token; printf %s '{PASSPHRASE}' >/root/passphrase",
    f"clevis attest enroll --url $(cat /etc/clevis-attest-test/url) --name client --thp {thumbprint} "
    "--token-file /root/token",
    'clevis luks bind -y -k /root/passphrase -d /dev/vdb attest "$(cat /etc/clevis-attest/bind.json)"',
    "rm /root/token /root/passphrase",
)

for name, words, typed, then in BOOTS:
    with subtest(f"{name}: {words}"):
        boot(name, words, typed)
        # The cap: root on the running machine cannot open the disk.
        client.fail("clevis luks pass -d /dev/vdb -s 1")
        if then == "announce":
            announce()
        elif then:
            server.succeed(then)
