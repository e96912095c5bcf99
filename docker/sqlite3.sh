#!/bin/sh
# Builds SQLite's program sqlite3 with its command .recover into a folder: sqlite3.sh DIR
# From the source package of this Debian or Ubuntu: the package itself has no .recover before Debian 13.
set -eu
mkdir -p "$1"
target=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir -p sources lists/partial
for list in /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list.d/ubuntu.sources; do
    [ ! -f "$list" ] || sed 's/^Types:.*/Types: deb-src/; s/^deb /deb-src /' "$list" >"sources/${list##*/}"
done
sources() { apt-get -qq -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$work/sources" -o Dir::State::Lists="$work/lists" "$@"; }
apt-get -qq update
DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends dpkg-dev gcc libc6-dev make tcl >/dev/null
sources update
sources source sqlite3 >/dev/null
cd sqlite3-*/
./configure --disable-shared --disable-readline --disable-tcl CFLAGS="-O1 -DSQLITE_ENABLE_DBPAGE_VTAB" >/dev/null
make sqlite3 >/dev/null
cp sqlite3 "$target"
