#!/usr/bin/env bash
# Fetches the Asterisk English prompts (one voice, 16 kHz G.722, 25 min, CC BY-SA 3.0) from Debian's or Ubuntu's packages.
# usage: local/download.sh downloads        -> downloads/asterisk-core-sounds-en/{sounds/…,core-sounds-en.txt}
set -euo pipefail
export LC_ALL=C
# shellcheck source=utils/debian.sh
. "${BASH_SOURCE[0]%download.sh}../../../utils/debian.sh"

name=asterisk-core-sounds-en
packages=("$name" "$name-g722")
size="10.6 MB"
ways_on="ways on: run.sh --corpus DIR, a folder that holds the .g722 files and core-sounds-en.txt (or .txt.gz);
  or run this stage on a Debian or Ubuntu machine or container, and copy downloads/ here"

debian_packages "$@"
mv files/usr/share/asterisk/sounds/en_US_f_Allison result/sounds
gzip -dc files/usr/share/doc/$name/core-sounds-en.txt.gz > result/core-sounds-en.txt
cp files/usr/share/doc/$name/copyright result/LICENCE
check_sum core-sounds-en.txt 4a5c1fea255e06020acd67efe37d162d0f0458f685efe578d224449f8e7f0bb4 < result/core-sounds-en.txt
sums_of result/sounds | check_sum "the sounds" 3da30bcf0792436240387b8008f9aa03db7353527d71070c62979b15cb484642
debian_result
