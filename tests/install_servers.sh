#!/usr/bin/env bash
# Installs the real servers, the browser and the clients that integration tests start, where that may be done: on Debian,
# as root. Elsewhere the tests that need them are skipped and say so.
#
#   install_servers.sh [PROGRAM...]
#
# A policy keeps the packages from starting their services: the tests start their own on free ports. Afterwards, also
# when this is interrupted, the machine has the policy that it had before; a killed run's leftover is put right by the next.
set -euo pipefail

[ $# -gt 0 ] || set -- redis-server prometheus haproxy nginx chromium chromedriver curl javac go openssl
policy=${POLICY_RC_D:-/usr/sbin/policy-rc.d}
before=$policy.before-rerankd-tests
none=$policy.none-before-rerankd-tests

missing=()
for server in "$@"; do
    command -v "$server" >/dev/null && continue
    case $server in
        chromedriver) missing+=(chromium-driver) ;;
        javac) missing+=(default-jdk-headless) ;;
        go) missing+=(golang-go) ;;
        nginx) missing+=(nginx-light) ;;
        *) missing+=("$server") ;;
    esac
done

restore_policy() {
    if [ -e "$before" ] || [ -L "$before" ]; then
        mv -f "$before" "$policy"
    elif [ -e "$none" ]; then
        rm -f "$policy" "$none"
    fi
}

forbid_starting() {
    if [ -e "$policy" ] || [ -L "$policy" ]; then
        mv "$policy" "$before"
    else
        : >"$none"
    fi
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
}

if [ "$(id -u)" -eq 0 ]; then
    restore_policy
fi
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "not installed: ${missing[*]}; the tests that need them will be skipped" >&2
    exit 0
fi
echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
trap restore_policy EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
forbid_starting
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
