#!/bin/sh
# Brings the peers of the bench into bench/.peers, by name, with the ordinary clients: bring.sh PYTHON
# Without wrk there is no bench. A peer that cannot be had is left out, and the bench says so.
set -eu

sh hookq/setup.sh wrk
mkdir -p bench/.peers

echo "Bringing the peers of the bench into bench/.peers." >&2
[ -x bench/.peers/venv/bin/pip ] || "$1" -m venv bench/.peers/venv
bench/.peers/venv/bin/pip install -q --disable-pip-version-check -r bench/peers/requirements.txt ||
    echo "The Python peers cannot be installed: the bench goes without them." >&2

cp bench/peers/package.json bench/.peers/package.json
(sh hookq/setup.sh node && npm install --prefix bench/.peers --silent --no-audit --no-fund) ||
    echo "The JavaScript peers cannot be installed: the bench goes without them." >&2
