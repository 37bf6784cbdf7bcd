# What a volume's opening is in NixOS' scripted stage 1, as far as a password agent sees it: the shell of the module
# around a prompt that reads the terminal and, once a second, /crypt-ramfs/passphrase.  Run by busybox, after
# preOpenCommands and before postOpenCommands; @...@ are replaced by the test.
# shellcheck shell=busybox
while :; do
    if [ -e @ramfs@/passphrase ]; then
        passphrase=$(cat @ramfs@/passphrase)
    else
        printf %s '@device@' >@ramfs@/device
        passphrase=''
        IFS= read -r -t 1 passphrase
        [ -n "$passphrase" ] || continue
    fi
    if printf %s "$passphrase" | cryptsetup open --test-passphrase --key-file=- '@device@'; then
        echo "opened with $passphrase"
        rm -f @ramfs@/passphrase
        break
    fi
    echo 'that does not open it'
    rm -f @ramfs@/passphrase
done
