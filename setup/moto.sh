#!/usr/bin/env bash
# moto, which answers as EC2, EBS, S3 and IAM do; for tests. Prints the directory of its programs.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

version=5.2.5
place=${XDG_CACHE_HOME:-$HOME/.cache}/apppot/moto-$version

if [ ! -x "$place/bin/moto_server" ]; then
    need_packages python3-venv
    mkdir -p "$(dirname "$place")"
    rm -rf "$place.new" "$place"
    /usr/bin/python3 -m venv "$place.new"
    say "installing moto $version"
    # Without the system's packages, and without its rule against installing beside them.
    "$place.new/bin/pip" install --quiet --disable-pip-version-check "moto[server,ec2,s3,ebs,iam]==$version" >&2
    # A virtual environment knows where it is: its programs name their interpreter.
    sed -i "1s|$place.new/|$place/|" "$place.new"/bin/*_server
    mv "$place.new" "$place"
fi
echo "$place/bin"
