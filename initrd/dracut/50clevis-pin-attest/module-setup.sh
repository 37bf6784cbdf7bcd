#!/bin/bash
# Puts the attest pin into the initrd.  A missing part ends dracut, and the old image stays: otherwise the machine
# would find out at its next boot.
#
# Settings, in /etc/dracut.conf.d/*.conf:
#   attest_cap_pcr=15              the cap PCR of this machine's policy
#   attest_files="/etc/my-ca.pem"  files that the pin's configuration names (ca, client_cert, client_key); found by
#                                  themselves in crypttab's volumes if these are there when the image is built
#   attest_shell_without_tpm=no    "yes" gives the emergency shell even if there is no TPM to cap
#   attest_any_machine=no          "yes" leaves out what the image knows of the volumes of this machine
#   attest_esp_is_measured=no      "yes": the machine's policy has PCR 12 and 13, so credentials and extensions on the EFI
#                                  system partition need not cap the boot
#
# dracut sources this file into its own shell, so every name that is ours begins with attest_: a plain `drivers`
# would overwrite dracut's setting of that name, and leave the disk's drivers out of the image.
#
# shellcheck disable=SC2154  # dracut sets initdir, moddir, dracutbasedir, systemdutildir, systemdsystemunitdir and kernel

attest_drivers='tpm_crb tpm_tis tpm_tis_spi tpm_tis_i2c tpm_tis_i2c_cr50 tpm_ftpm_tee'
attest_ours=/usr/lib/clevis-attest

attest_die() {
    dfatal "clevis-pin-attest: $1"
    exit 1
}

check() {
    # Nothing is tested here, because a module whose check fails is left out in silence.
    # shellcheck disable=SC2154
    [[ $mount_needs ]] && return 1
    return 0
}

# attest_own_cryptsetup: this dracut has a module for systemd-cryptsetup (since 104); before, its module crypt did all
attest_own_cryptsetup() {
    compgen -G "$dracutbasedir/modules.d/[0-9][0-9]systemd-cryptsetup" >/dev/null
}

depends() {
    local modules='bash clevis network'
    # Not where its program is missing: then install() says which package to install.
    if attest_own_cryptsetup && [[ -x $systemdutildir/systemd-cryptsetup ]]; then
        modules+=' systemd-cryptsetup'
    fi
    echo "$modules"
}

# attest_ancestors DEVICE: the drivers of a device and of what it hangs on (an SPI controller, a USB hub)
attest_ancestors() {
    local node
    node=$(readlink -f "$1") || return 0
    while [[ -n $node && $node != /sys/devices && $node != / ]]; do
        if [[ -e $node/driver/module ]]; then
            basename "$(readlink -f "$node/driver/module")"
        fi
        node=${node%/*}
    done
}

installkernel() {
    local driver
    # Not only what this machine has loaded: its TPM may come with another kernel's drivers.
    hostonly='' instmods '=drivers/char/tpm' af_packet ipv6
    for driver in $(attest_ancestors /sys/class/tpm/tpm0/device); do
        hostonly='' instmods "$driver"
    done
    for driver in $attest_drivers; do
        [[ -n $(find "$initdir/lib/modules/$kernel/" -name "$driver.ko*" 2>/dev/null) ]] && return 0
        grep -qs "/$driver\.ko" "/lib/modules/$kernel/modules.builtin" && return 0
    done
    derror "clevis-pin-attest: the kernel $kernel has no TPM driver ($attest_drivers)"
    return 1
}

# attest_named_files: the files (ca, client_cert, client_key) that the attest bindings of crypttab's volumes name
attest_named_files() {
    local source
    [[ -s /etc/crypttab ]] || return 0
    while read -r _ source _; do
        case $source in
            UUID=* | LABEL=* | PARTUUID=* | PARTLABEL=*) source=$(blkid -l -o device -t "$source") ;;
        esac
        [[ -e $source ]] || continue
        # shellcheck disable=SC2016  # for the inner shell
        bash -c '
            . clevis-luks-common-functions
            for slot in $(clevis_luks_used_slots "$1"); do
                jwe=$(clevis_luks_read_slot "$1" "$slot" 2>/dev/null) || continue
                for name in ca client_cert client_key; do
                    printf %s "${jwe%%.*}" | jose b64 dec -i- 2>/dev/null |
                        jose fmt -j- -O -g clevis -O -g attest -O -g "$name" -u- 2>/dev/null && echo
                done
            done' clevis-pin-attest "$source"
    done </etc/crypttab
}

attest_install_programs() {
    local program pin file
    for program in curl jose tpm2 sha256sum mkdir rm sleep sed sort ls ip modprobe blkid cryptsetup dmsetup grep mount readlink \
        tr umount dd od; do
        inst_multiple "$program" || attest_die "the program $program is missing"
    done
    pin=$(command -v clevis-decrypt-attest) || attest_die 'the program clevis-decrypt-attest is missing'
    for file in clevis-attest-cap clevis-attest-close clevis-attest-look clevis-attest-mark clevis-attest-root-check \
        clevis-attest-volumes clevis-attest-opened clevis-attest-mounted clevis-attest-before-shell clevis-attest-no-resume clevis-attest-wait-network; do
        [[ -x $attest_ours/$file ]] || attest_die "$attest_ours/$file is missing"
        inst_simple "$attest_ours/$file" || attest_die "cannot copy $attest_ours/$file"
    done
    inst_libdir_file libtss2-tcti-device.so.0 || attest_die 'the library libtss2-tcti-device.so.0 is missing'
    attest_wrap "$pin" initrd-pin
    attest_wrap "$(command -v clevis-decrypt)" initrd-decrypt
    for file in clevis-attest-functions clevis-attest-signed-functions; do
        [[ -r ${pin%/*/*}/lib/clevis-attest/$file ]] || attest_die "${pin%/*/*}/lib/clevis-attest/$file is missing"
        inst_simple "${pin%/*/*}/lib/clevis-attest/$file" "$attest_ours/$file" || attest_die "cannot copy $file"
    done
}

# attest_wrap PROGRAM WRAPPER: in the image, PROGRAM is ours, around the program itself
attest_wrap() {
    [[ -n $1 ]] || attest_die 'the program clevis-decrypt is missing'
    [[ -x $attest_ours/$2 ]] || attest_die "$attest_ours/$2 is missing"
    inst_simple "$1" "$attest_ours/${1##*/}" || attest_die "cannot copy $1"
    # Another module may have put it there.
    rm -f "$initdir/$1"
    inst_simple "$attest_ours/$2" "$1" || attest_die "cannot copy $attest_ours/$2"
}

# attest_install_key FILE: if it is a private key.  The image is not encrypted, and may be for everybody to read.
attest_install_key() {
    if grep -q '^-----BEGIN TSS2 PRIVATE KEY-----' "$1"; then
        # The provider lets curl's OpenSSL sign with it.
        inst_libdir_file ossl-modules/tpm2.so ||
            attest_die "OpenSSL's provider tpm2 is missing, which the key $1 needs: install tpm2-openssl"
    elif grep -q '^-----BEGIN .*PRIVATE KEY-----' "$1"; then
        dwarn "clevis-pin-attest: $1 is a private key: who can read the image has it; keep it in the TPM (docs/how-to/tls.md)"
    fi
}

attest_install_files() {
    local file
    for file in ${attest_files-} $(attest_named_files); do
        [[ $file == /* ]] || attest_die "'$file' in attest_files is not an absolute path"
        [[ -r $file ]] || attest_die "$file is missing, which a binding or attest_files names"
        inst_simple "$file" || attest_die "cannot copy $file"
        attest_install_key "$file"
    done
    [[ ${attest_cap_pcr:=15} =~ ^([0-9]|1[0-5])$ ]] ||
        attest_die "attest_cap_pcr=$attest_cap_pcr: the cap is a PCR from 0 to 15"
    mkdir -p "$initdir/etc/clevis-attest" "$initdir/etc/cmdline.d"
    printf '%s\n' "$attest_cap_pcr" >"$initdir/etc/clevis-attest/cap-pcr"
    if [[ ${attest_shell_without_tpm-} == yes ]]; then
        : >"$initdir/etc/clevis-attest/shell-without-tpm"
    fi
    if [[ ${attest_esp_is_measured-} == yes ]]; then
        : >"$initdir/etc/clevis-attest/esp-is-measured"
    fi
    # clevis asks for the network only where it finds a tang binding.
    printf 'noresume\nrd.neednet=1\n' >"$initdir/etc/cmdline.d/99clevis-pin-attest.conf"
}

# attest_install_signed_values: statements of this machine.  One about a PCR that covers this very image cannot be in it: that
# has its place on the EFI system partition (docs/how-to/updates/signed-updates.md).
attest_install_signed_values() {
    local file
    for file in /etc/clevis-attest/*.tang-attest.jws; do
        [[ -e $file ]] || continue
        if (($(wc -c <"$file") > 16386)); then
            dwarn "clevis-pin-attest: $file is larger than 16384 bytes; it is left out"
            continue
        fi
        inst_simple "$file" || attest_die "cannot copy $file"
    done
}

# attest_command_lines: where the kernel's command line may come from, a line "WHERE:WORDS" each
attest_command_lines() {
    local file
    # shellcheck disable=SC2154  # a setting of dracut
    [[ -z ${kernel_cmdline-} ]] || printf 'kernel_cmdline:%s\n' "$kernel_cmdline"
    for file in /proc/cmdline /etc/kernel/cmdline /etc/cmdline /etc/cmdline.d/*.conf; do
        [[ -r $file ]] || continue
        printf '%s:%s\n' "$file" "$(tr '\n' ' ' <"$file")"
    done
    for file in /boot/loader/entries/*.conf /efi/loader/entries/*.conf /boot/efi/loader/entries/*.conf; do
        [[ -r $file ]] || continue
        printf '%s:%s\n' "$file" "$(sed -n 's/^options[[:space:]]*//p' "$file" | tr '\n' ' ')"
    done
    [[ -r /etc/default/grub ]] || return 0
    sed -n "s,^GRUB_CMDLINE_LINUX[A-Z_]*=[\"']\{0\,1\}\([^\"']*\).*,/etc/default/grub:\1," /etc/default/grub
}

# attest_encrypted SOURCE: it is, or lies on, an encrypted volume of this machine
attest_encrypted() {
    local device=$1 name
    case $device in
        UUID=* | LABEL=* | PARTUUID=* | PARTLABEL=*) device=$(blkid -l -o device -t "$device") ;;
    esac
    while read -r name _; do
        [[ -n $name && $name != "#"* && $device == "/dev/mapper/$name" ]] && return 0
    done < <(cat /etc/crypttab 2>/dev/null)
    [[ -b $device ]] || return 1
    lsblk -n -s -o TYPE "$device" 2>/dev/null | grep -qx crypt
}

# attest_refuse_resume: a command line on which the kernel, or another initrd, resumes what anybody may have written
attest_refuse_resume() {
    local where words word device
    while IFS=: read -r where words; do
        [[ " $words " != *" noresume "* ]] || continue
        for word in $words; do
            [[ $word == resume=* ]] || continue
            device=${word#resume=}
            device=${device//\"/}
            attest_encrypted "$device" ||
                attest_die "$word in $where is not on an encrypted volume: who holds the disk writes what is resumed, and gets the keys. Remove it there, or add noresume"
            dwarn "clevis-pin-attest: $word in $where has no effect: this image does not resume a hibernated system"
        done
    done < <(attest_command_lines)
}

# attest_volumes: the encrypted volumes that an image for this machine may open, each as crypttab would name it
attest_volumes() {
    local source options words word file
    while read -r _ source _ options; do
        [[ -n $source && $source != "#"* ]] || continue
        case ,$options, in *,plain,* | *,swap,* | *,tmp,* | *,tcrypt,* | *,bitlk,*) continue ;; esac
        printf '%s\n' "$source"
    done < <(sed '/^[[:space:]]*#/d' /etc/crypttab 2>/dev/null)
    while IFS=: read -r _ words; do
        for word in $words; do
            word=${word//\"/}
            case $word in
                rd.luks.uuid=* | luks.uuid=* | rd.luks.name=* | luks.name=*) word=${word#*=} word=${word#luks-} ;;
                *) continue ;;
            esac
            [[ ${word%%=*} =~ ^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$ ]] && printf 'UUID=%s\n' "${word%%=*}"
        done
    done < <(attest_command_lines)
    for file in /sys/block/dm-*/dm/uuid; do
        [[ -r $file && $(<"$file") =~ ^CRYPT-LUKS[12]-([0-9a-f]{8})([0-9a-f]{4})([0-9a-f]{4})([0-9a-f]{4})([0-9a-f]{12})- ]] || continue
        printf 'UUID=%s-%s-%s-%s-%s\n' "${BASH_REMATCH[@]:1}"
    done
}

# attest_install_facts: what the image knows of this machine's volumes, against which the root is checked at boot
attest_install_facts() {
    local source facts volumes=()
    [[ ${attest_any_machine-} != yes ]] || return 0
    while read -r source; do
        if [[ $source != UUID=* && ! -e $source ]]; then
            dwarn "clevis-pin-attest: the volume $source of /etc/crypttab is not here"
            continue
        fi
        volumes+=("$source")
    done < <(attest_volumes | sort -u)
    ((${#volumes[@]})) || return 0
    [[ -x $attest_ours/clevis-attest-volumes ]] || attest_die "$attest_ours/clevis-attest-volumes is missing"
    if facts=$(
        "$attest_ours/clevis-attest-volumes" "${volumes[@]}" | sort -u
        exit "${PIPESTATUS[0]}"
    ); then
        printf '%s\n' "$facts" >"$initdir/etc/clevis-attest/volumes"
    else
        dwarn "clevis-pin-attest: not every volume can be read, so the image knows none (attest_any_machine=yes)"
    fi
}

# attest_check_cryptsetup: the program of systemd that opens the volumes, a package of its own in newer distributions
attest_check_cryptsetup() {
    local file
    for file in systemd-cryptsetup system-generators/systemd-cryptsetup-generator; do
        [[ -x $systemdutildir/$file ]] ||
            attest_die "$systemdutildir/$file is missing, so no volume would be opened: install the package systemd-cryptsetup"
    done
    if attest_own_cryptsetup; then
        dracut_module_included systemd-cryptsetup ||
            attest_die "dracut's module systemd-cryptsetup is not in the image, so no volume would be opened: add it to dracutmodules"
    fi
}

attest_install_systemd() {
    local file
    attest_check_cryptsetup
    [[ -r $attest_ours/systemd/clevis-attest-cap.service ]] ||
        attest_die "$attest_ours/systemd/clevis-attest-cap.service is missing"
    while read -r file; do
        inst_simple "$attest_ours/systemd/$file" "$systemdsystemunitdir/$file" ||
            attest_die "cannot copy $attest_ours/systemd/$file"
    done < <(cd "$attest_ours/systemd" && find . -type f -printf '%P\n')
    systemctl -q --root "$initdir" add-wants initrd.target clevis-attest-cap.service ||
        attest_die 'cannot enable clevis-attest-cap.service'
    # PID 1 is systemd, but not before a look at what nobody measured.
    [[ -x $attest_ours/clevis-attest-init ]] || attest_die "$attest_ours/clevis-attest-init is missing"
    rm -f "$initdir/init"
    inst_simple "$attest_ours/clevis-attest-init" /init || attest_die 'cannot install /init'
    # Other network modules turn rd.neednet=1 into DHCP where ip= says nothing; this one does not before dracut 060.
    if dracut_module_included systemd-networkd; then
        inst_simple "$attest_ours/systemd-network/zz-clevis-attest.network" \
            /usr/lib/systemd/network/zz-clevis-attest.network ||
            attest_die 'cannot copy zz-clevis-attest.network'
    fi
}

install() {
    local module
    for module in clevis network; do
        dracut_module_included "$module" ||
            attest_die "dracut's module $module is not in the image: is clevis-dracut installed?"
    done
    attest_refuse_resume
    attest_install_programs
    attest_install_files
    attest_install_signed_values
    attest_install_facts
    if dracut_module_included systemd; then
        attest_install_systemd
    else
        # Before everything else that is done there.
        inst_hook pre-mount 00 "$moddir/clevis-attest-opened.sh"
        inst_hook pre-pivot 00 "$moddir/clevis-attest-root-check.sh"
        inst_hook emergency 00 "$moddir/clevis-attest-before-shell.sh"
    fi
    dracut_need_initqueue
}
