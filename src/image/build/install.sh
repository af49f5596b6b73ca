# Run by root in the image that is being built: packages that lie in it unpacked become installed ones.
# usage: install.sh [USER]
set -eu
export DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true
# A kernel's package makes no initrd, which takes minutes here: whoever boots the image has one.
export INITRD=No

cd /var/cache/apt/archives
# Only root can give directories their owners and modes, and dpkg leaves alone those that are there.
for package in ./*.deb; do
    dpkg-deb --fsys-tarfile "$package" >/run/package.tar
    tar -tf /run/package.tar --quoting-style=literal | sed -n 's,^\./\(.\+\)/$,\1,p' | while read -r directory; do
        if [ -d "/$directory" ]; then echo "./$directory/"; fi
    done >/run/directories
    tar -C / -xpf /run/package.tar --numeric-owner --keep-directory-symlink --no-recursion --verbatim-files-from \
        -T /run/directories
done
rm /run/package.tar /run/directories
# Everything lies unpacked, so that every script finds what it needs; dpkg does not know that yet. Owners and
# accounts come first.
dpkg --force-depends --force-unsafe-io --install base-passwd_*.deb
dpkg --force-depends --force-unsafe-io --unpack ./*.deb
dpkg --force-unsafe-io --configure --pending
rm -f ./*.deb

if [ $# -gt 0 ]; then
    useradd --create-home --uid 1000 --shell /bin/bash "$1"
fi
if [ -d /.apppot-build/files ]; then
    tar -C /.apppot-build/files -c . | tar -C / -x --no-overwrite-dir --keep-directory-symlink
fi
