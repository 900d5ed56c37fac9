#!/usr/bin/env bash
# Fetches the speech synthesiser flite with its English voices (free software, BSD-like) from Debian's or Ubuntu's packages.
# usage: local/download.sh downloads        -> downloads/flite/{bin/flite,lib/…}
set -euo pipefail
export LC_ALL=C
# shellcheck source=utils/debian.sh
. "${BASH_SOURCE[0]%download.sh}../../../utils/debian.sh"

name=flite
packages=()
size="13 MB"
ways_on="ways on: run.sh --tts 'COMMAND with {text} and {wav} in it', or run.sh --data DIR with your own recordings"
# shellcheck source=utils/flite.sh
. "${BASH_SOURCE[0]%download.sh}../../../utils/flite.sh"

debian_packages "$@"
flite_result
debian_result
