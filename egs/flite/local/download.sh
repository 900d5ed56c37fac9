#!/usr/bin/env bash
# Fetches the speech synthesiser flite and texts for it (fortunes, the King James Bible; apart from them, for --text, novels by
# Jane Austen, and WordNet's examples) from Debian's or Ubuntu's packages.
# usage: local/download.sh downloads        -> downloads/flite/{bin/flite,lib/…,text/…,austen/….txt,wordnet/….txt}
set -euo pipefail
export LC_ALL=C
here=$(cd "${BASH_SOURCE[0]%download.sh}." && pwd)
# shellcheck source=utils/debian.sh
. "${BASH_SOURCE[0]%download.sh}../../../utils/debian.sh"

name=flite
packages=(fortunes fortunes-min bible-kjv bible-kjv-text r-cran-janeaustenr wordnet-base)
size="26 MB"
ways_on="ways on: install flite, and run.sh --corpus DIR, with your plain texts in DIR/text;
  or run this stage on a Debian or Ubuntu machine or container, and copy downloads/ here"
# shellcheck source=utils/flite.sh
. "${BASH_SOURCE[0]%download.sh}../../../utils/flite.sh"
add_library libreadline.so.8 libreadline8 # of the program that unpacks the Bible

[ ! -d "${1:-}/$name" ] || { [ -d "$1/$name/austen" ] && [ -d "$1/$name/wordnet" ]; } ||
  echo "download: $1/$name is an older one, without austen/ or wordnet/; remove it to have it made anew" >&2
debian_packages "${@:1:1}" # the options after it are for data_prep.py
flite_result
cp files/usr/share/doc/fortunes/copyright result/LICENCE.fortunes
cp files/usr/share/doc/bible-kjv-text/copyright result/LICENCE.bible
mkdir result/text
for file in files/usr/share/games/fortunes/*; do
  case ${file##*/} in
    *.dat | *.u8) ;;                                      # indices, second names
    art | ascii-art | debian | perl* | translate-me) ;; # pictures, technical, other languages
    *) cp "$file" result/text/ ;;
  esac
done
# Every sixth verse, or most sentences would be the Bible's.
(cd files/usr/lib && LD_LIBRARY_PATH=$work/result/lib ../bin/bible -f gen1:1-rev22:21 < /dev/null) | sed 's/^[^ ]* //' |
  awk 'NR % 6 == 0' > result/text/bible || true
[ "$(wc -l < result/text/bible)" -eq 5183 ] || die "the program bible does not write the Bible's 31102 verses;
  $ways_on"
sums=$(sums_of result/text | sha256sum)
[ "${sums%% *}" = d966ba1c88dbeb7027ab1b4bd9f06b64d6201282ad1b06f3c2a4a664d8bba191 ] ||
  echo "download: other texts than those of the published results: another version of the packages" >&2

# Not Northanger Abbey: it is read in LibriSpeech's dev sets.
cp files/usr/share/doc/r-cran-janeaustenr/copyright result/LICENCE.austen
PYTHONPATH=$here/../../.. "${PYTHON:-python3}" "$here/r_data.py" files/usr/lib/R/site-library/janeaustenr/data/Rdata \
  result/austen emma mansfieldpark persuasion prideprejudice sensesensibility ||
  die "Jane Austen's novels cannot be read, see above;
  $ways_on"
sums=$(sums_of result/austen | sha256sum)
[ "${sums%% *}" = 4ea76cf5106c04a974d459217b607bc8c24ad696767846c57a9f980a1c9e094c ] ||
  echo "download: other novels than those of the published results: another version of the package" >&2

cp files/usr/share/doc/wordnet-base/copyright result/LICENCE.wordnet
mkdir result/wordnet
PYTHONPATH=$here/../../.. "${PYTHON:-python3}" "$here/wordnet.py" files/usr/share/wordnet result/wordnet/examples.txt ||
  die "WordNet's examples cannot be read, see above;
  $ways_on"
sums=$(sums_of result/wordnet | sha256sum)
[ "${sums%% *}" = e77df8a2d468a329ced1711118e3124b4d41dd48a637bf20f0b2f4d82091b91b ] ||
  echo "download: other examples than those of the published results: another version of the package" >&2
debian_result
