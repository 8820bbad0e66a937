#!/bin/sh
# Deploys a branch when GitHub says that it was pushed: deploy.sh BRANCH, the push on standard input.
# Exit codes: 0 done, 75 again later, 100 no retry can help.
set -eu
push=$(cat)
case $push in
*"\"refs/heads/$1\""*) ;;
*) echo "not $1: nothing to do"; exit 0 ;;
esac
cd "$(dirname "$0")"
if ! mkdir deploying 2>/dev/null; then
    echo "another deployment is going on"
    exit 75
fi
trap 'rmdir deploying' EXIT
# Yours: git fetch, build, restart. It may run twice for one delivery, so it should end the same.
echo "$WEBHOOKD_DELIVERY_ID" >>deployed
echo "deployed $1, attempt $WEBHOOKD_ATTEMPT"
