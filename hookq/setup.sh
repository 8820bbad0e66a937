#!/bin/sh
# What a fresh Debian or Ubuntu lacks: python3-venv, redis-server. Installed with apt-get where that is allowed, else
# one sentence says what to type. Used by the Makefile: setup.sh venv PYTHON | redis | browser | prometheus | faults (for
# the tests that are skipped without) | wrk | node (for the bench)
set -eu

install() {
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        # The distribution's own Redis service must not start: it would listen on a port and save files nobody asked for.
        # Debian asks this file before it starts anything; one that is there already is the administrator's.
        policy=/usr/sbin/policy-rc.d
        if [ ! -e "$policy" ]; then
            printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy"
            trap 'rm -f "$policy"' EXIT
        fi
        echo "Installing $* with apt-get (its service is not started)." >&2
        if DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" >/dev/null 2>&1 ||
            { apt-get update -q >/dev/null 2>&1 && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" >/dev/null 2>&1; }; then
            return
        fi
    fi
    echo "$* is missing. Type: sudo apt-get install $*" >&2
    exit 1
}

case "$1" in
venv)
    [ -x .venv/bin/pip ] && exit 0  # there already: only what it holds is brought up to date
    "$2" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "webhookd needs Python 3.11 or later; set PYTHON=/path/to/it." >&2; exit 1; }
    "$2" -c 'import ensurepip' 2>/dev/null || install python3-venv
    "$2" -m venv .venv
    ;;
redis) install redis-server ;;
browser) command -v chromium >/dev/null || install chromium ;;
prometheus) command -v promtool >/dev/null || install prometheus ;;
faults) command -v strace >/dev/null && command -v cc >/dev/null || install strace gcc libc6-dev ;;
hosts)
    command -v nginx >/dev/null && command -v ip >/dev/null && command -v openssl >/dev/null || install nginx-light iproute2 openssl
    ;;
wrk) command -v wrk >/dev/null || install wrk ;;
node) command -v npm >/dev/null || install nodejs npm ;;
esac
