#!/usr/bin/env bash
# Fetches the adventure games Flight of the Amazon Queen and Beneath a Steel Sky from Debian's or Ubuntu's packages.
# usage: local/download.sh downloads        -> downloads/adventure/{queen.1c,sky.dnr,sky.dsk,LICENCE.queen,LICENCE.sky}
set -euo pipefail
export LC_ALL=C
# shellcheck source=utils/debian.sh
. "${BASH_SOURCE[0]%download.sh}../../../utils/debian.sh"

name=adventure
packages=(flight-of-the-amazon-queen beneath-a-steel-sky)
size="101 MB"
ways_on="ways on: run.sh --corpus DIR, a folder that holds queen.1c, or sky.dnr and sky.dsk, or all;
  or run this stage on a Debian or Ubuntu machine or container, and copy downloads/ here"

debian_packages "$@"
mv files/usr/share/scummvm/flight-of-the-amazon-queen/queen.1c files/usr/share/scummvm/beneath-a-steel-sky/sky.d?? result/
cp files/usr/share/doc/flight-of-the-amazon-queen/copyright result/LICENCE.queen
cp files/usr/share/doc/beneath-a-steel-sky/copyright result/LICENCE.sky
check_sum queen.1c cc91960d133fcd4173eda4bac304e80d2bbdbaa085640287ab9e0507bd603f67 < result/queen.1c
check_sum sky.dnr 1aa426bc9b04d962c98f2c6108f770b23a45a32cb85bd4e053a6eb1779173164 < result/sky.dnr
check_sum sky.dsk 9ef6ca3dcb6f9ceb31e950bc3a05d5105bbbb38a5e9fc9a9f6508363c87849e2 < result/sky.dsk
debian_result
