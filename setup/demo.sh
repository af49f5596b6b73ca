#!/usr/bin/env bash
# Show AppPot: a command in the default appliance, and one in a small Debian.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# Lends what the user that runs the demo cannot reach, such as files below root's home directory.
# The kernel is found because it lies beside the command.
lend() {
    install -m 755 "$(release_binary)" "$work/bin/apppot"
    if [ -x "$(own_kernel)" ]; then install -m 755 "$(own_kernel)" "$work/bin/linux"; fi
    if ! as_user test -r "$image"; then
        cp --sparse=always --reflink=auto "$image" "$work/debian.img"
        image=$work/debian.img
    fi
}

# The words as one would type them.
quoted() {
    local word
    for word; do
        case $word in
        *[!A-Za-z0-9_./=-]*) printf "'%s' " "$word" ;;
        *) printf '%s ' "$word" ;;
        esac
    done
}

# show TITLE OPTIONS... -- COMMAND...: runs the command in an appliance, and says how long it took.
show() {
    local title=$1 start end
    shift
    printf '\n%s\n$ apppot run %s\n' "$title" "$(quoted "$@")"
    start=$(date +%s%N)
    (cd "$work/job" && as_user "$work/bin/apppot" run -v "$@" </dev/null)
    end=$(date +%s%N)
    printf '=> %d ms from start to finish\n' $(((end - start) / 1000000))
}

need_rust
need_some_kernel
need_test_user
build_release
image=$("$repository/images/build.sh")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/bin"
chmod 755 "$work" "$work/bin"
lend
mkdir "$work/job"
(($(id -u) != 0)) || chown "$test_user:" "$work/job"

# shellcheck disable=SC2016 # expanded in the appliance
{
    echo "AppPot runs commands in appliances: whole Linux systems, each with a kernel of its own."
    echo "Here the user $(as_user id -un) runs two, in the directory $work/job."
    show "1. In the default appliance: this machine's own files, of which only the job directory can be changed" \
        -- sh -c 'echo "kernel $(uname -r), user $(id -un), in $PWD"; echo "made in the default appliance" >result.txt'
    show "2. In a Debian image: other files, the same job directory" \
        --image "$image" -- sh -c '. /etc/os-release && echo "$PRETTY_NAME, kernel $(uname -r), user $(id -un)"; echo "and in Debian" >>result.txt'
}
printf '\nThe command is %s, the image %s.\n' "$(release_binary)" "$("$repository/images/build.sh")"
printf '\nresult.txt, as both have left it on this machine:\n'
ls -l "$work/job/result.txt"
cat "$work/job/result.txt"
if [ ! -x "$(own_kernel)" ]; then
    printf '\nThis was Debian'"'"'s kernel. AppPot'"'"'s own boots in less than a tenth of the time, makes system calls\nfaster and has no limit on scattered memory: make kernel (about 6 minutes).\n'
fi
