#!/bin/sh
# Installs what pip cannot, on Debian and Ubuntu:  system-packages.sh demo|test
#
# As root it installs what is missing. Otherwise it says what to install, and the tests that need
# it are skipped by name.
set -eu
missing=
"${PYTHON:-python3}" -c 'import ensurepip' 2>/dev/null || missing="$missing python3-venv"
if [ "${1:-demo}" = test ]; then
    command -v chromium >/dev/null || command -v google-chrome >/dev/null \
        || missing="$missing chromium"
    command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 \
        || missing="$missing postgresql"
    command -v gcc >/dev/null && [ -e /usr/include/stdio.h ] || missing="$missing gcc libc6-dev"
    command -v readelf >/dev/null || missing="$missing binutils"
fi
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "These Debian packages are missing:$missing"
    echo "As root: apt-get install$missing"
    exit 0
fi
apt-get update -qq
found=
for package in $missing; do
    # Ubuntu has Chromium only as a snap, behind a package of another name.
    if apt-cache show "$package" 2>/dev/null | grep -q .; then
        found="$found $package"
    else
        echo "This system has no package $package: tests that need it are skipped by name"
    fi
done
[ -n "$found" ] || exit 0
echo "Installing$found"
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $found >/dev/null
