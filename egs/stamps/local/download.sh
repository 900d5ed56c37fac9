#!/usr/bin/env bash
# Fetches Tux Paint's stamps (their sound effects and captions, GPL-2) from Debian's or Ubuntu's package.
# usage: local/download.sh downloads        -> downloads/tuxpaint-stamps/…: .ogg and .wav without the spoken captions, and .txt
set -euo pipefail
export LC_ALL=C
# shellcheck source=utils/debian.sh
. "${BASH_SOURCE[0]%download.sh}../../../utils/debian.sh"

name=tuxpaint-stamps
packages=(tuxpaint-stamps-default)
size="161 MB, of which 7 MB are kept"
ways_on="ways on: run.sh --corpus DIR, the folder usr/share/tuxpaint/stamps of that package;
  or run this stage on a Debian or Ubuntu machine or container, and copy downloads/ here"

debian_packages "${@:1:1}" # the options after it are for data_prep.py
cp files/usr/share/doc/tuxpaint-stamps-default/copyright result/LICENCE
(cd files/usr/share/tuxpaint/stamps &&
  find . -type f \( -name '*.ogg' -o -name '*.wav' -o -name '*.txt' \) ! -name '*_desc*' -print0 | tar -c --null -T - -f -) |
  tar -x -C result -f -
(cd result && find . -type f \( -name '*.ogg' -o -name '*.wav' \) -print0 | sort -z | xargs -0 sha256sum) |
  check_sum "the sounds" 063be28e08234e4888889b544c5c54d70627469b4c1f026886ac1ce26bd2484c
debian_result
