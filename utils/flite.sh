# shellcheck shell=bash disable=SC2034,SC2154 # the variables are those of debian.sh
# The speech synthesiser flite with its English voices (free software, BSD-like) from packages; to be sourced after debian.sh,
# when local/download.sh has set `packages`. It adds its own; between debian_packages and debian_result, call flite_result.

packages+=(flite libflite1)
# flite is linked against ALSA's library, though it plays nothing here.
add_library libasound.so.2 libasound2 libasound2-data

# Leaves result/bin/flite, result/lib with the libraries of all packages, and the licence.
flite_result() {
  local voices
  mkdir result/bin result/lib
  mv files/usr/bin/flite result/bin/
  find files -name '*.so*' -exec mv -t result/lib {} +
  cp files/usr/share/doc/libflite1/copyright result/LICENCE
  voices=$(LD_LIBRARY_PATH=$PWD/result/lib result/bin/flite -lv 2>&1) || die "flite does not run on this machine: $voices;
  $ways_on"
}
