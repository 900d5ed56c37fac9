#!/usr/bin/env bash
# Fetches the speech synthesiser flite with its English voices (free software, BSD-like) from Debian's or Ubuntu's packages.
# usage: local/download.sh downloads        -> downloads/flite/{bin/flite,lib/…}
set -euo pipefail
export LC_ALL=C
# shellcheck source=utils/debian.sh
. "${BASH_SOURCE[0]%download.sh}../../../utils/debian.sh"

name=flite
packages=(flite libflite1)
size="13 MB"
ways_on="ways on: run.sh --tts 'COMMAND with {text} and {wav} in it', or run.sh --data DIR with your own recordings"

# flite is linked against ALSA's library, though it plays nothing here; the package's name has changed with 64-bit time.
if ! ldconfig -p 2> /dev/null | grep -q 'libasound\.so\.2'; then
  # shellcheck disable=SC1091
  release=$(. /etc/os-release && echo "$ID ${VERSION_ID%%.*}")
  case $release in
    debian\ 1[0-2] | ubuntu\ 1* | ubuntu\ 2[0-3]) packages+=(libasound2 libasound2-data) ;;
    *) packages+=(libasound2t64 libasound2-data) ;;
  esac
fi

debian_packages "$@"
mkdir result/bin result/lib
mv files/usr/bin/flite result/bin/
find files -name '*.so*' -exec mv -t result/lib {} +
cp files/usr/share/doc/libflite1/copyright result/LICENCE
voices=$(LD_LIBRARY_PATH=$PWD/result/lib result/bin/flite -lv 2>&1) || die "flite does not run on this machine: $voices;
  $ways_on"
debian_result
