#!/bin/sh
# Installs packages in the versions of constraints.txt: install.sh PYTHON ARGUMENTS-OF-PIP...
#
# On a terminal one line says what pip is doing; elsewhere it is quiet. Where it fails, its own reason comes first.
set -eu

python=$1
shift

install() {
    "$python" -m pip install --disable-pip-version-check -c constraints.txt "$@"
}

refuse() {
    cat >&2 <<MESSAGE
rerankd: pip could not install what is needed; its reason is above. Without a network, or behind a proxy: pip reads
rerankd: HTTPS_PROXY, PIP_INDEX_URL and PIP_FIND_LINKS. Then run make again.
MESSAGE
    exit 1
}

if [ ! -t 1 ]; then
    install --quiet "$@" || refuse
    exit 0
fi

failed=$(mktemp)
trap 'rm -f "$failed"' EXIT
{ install --progress-bar off "$@" || echo failed >"$failed"; } | awk '
    /^ *(Collecting|Downloading|Using cached|Building|Installing|Preparing|Getting)/ {
        sub(/^ +/, "")
        printf "\r\033[K  %s", substr($0, 1, 76)
        fflush()
    }
    END { printf "\r\033[K" }
'
[ ! -s "$failed" ] || refuse
