#!/usr/bin/env bash
# Installs the real servers and the browser that integration tests start, where that may be done: on Debian, as root.
# Elsewhere the tests that need them are skipped and say so.
set -euo pipefail

missing=()
for server in redis-server prometheus haproxy chromium chromedriver; do
    # chromedriver's package has another name
    command -v "$server" >/dev/null || missing+=("${server/chromedriver/chromium-driver}")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "not installed: ${missing[*]}; the tests that need them will be skipped" >&2
    exit 0
fi
echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# policy-rc.d keeps the packages from starting their services: the tests start their own on free ports
printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
chmod +x /usr/sbin/policy-rc.d
trap 'rm -f /usr/sbin/policy-rc.d' EXIT
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
