#!/usr/bin/env bash
# AISHELL-2 cannot be downloaded: AISHELL gives it to those who apply. Says what to do then.
# usage: local/download.sh downloads
if [ -d "$1/AISHELL-2" ]; then
  echo "download: $1/AISHELL-2 up to date" >&2
  exit 0
fi
echo "download.sh: error: AISHELL-2 cannot be reached by a script: apply for it at aishelltech.com/aishell_2, then give" \
  "--corpus DIR, a folder that holds iOS/data, iOS/dev and iOS/test with trans.txt and wav.scp, or take ../aishell, which" \
  "anyone can download," \
  "or the recipe that needs neither: cd ../asterisk && ./run.sh" >&2
exit 1
