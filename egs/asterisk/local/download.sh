#!/usr/bin/env bash
# Fetches the Asterisk English prompts (one voice, 16 kHz G.722, 25 min, CC BY-SA 3.0) from Debian's or Ubuntu's packages.
# usage: local/download.sh downloads        -> downloads/asterisk-core-sounds-en/{sounds/…,core-sounds-en.txt}
# Needs apt-get and dpkg, but no root: where the machine has no package lists, it gets its own into a temporary folder.
set -euo pipefail
export LC_ALL=C

# Packages are built again by each distribution, so what is checked is their content: SHA-256 of the transcripts, and of the list
# "SHA-256  ./file" of all sounds.
transcripts_sha256=4a5c1fea255e06020acd67efe37d162d0f0458f685efe578d224449f8e7f0bb4
sounds_sha256=3da30bcf0792436240387b8008f9aa03db7353527d71070c62979b15cb484642

name=asterisk-core-sounds-en
packages=("$name" "$name-g722")
ways_on="ways on: run.sh --corpus DIR, a folder that holds the .g722 files and core-sounds-en.txt (or .txt.gz);
  or run this stage on a Debian or Ubuntu machine or container, and copy downloads/ here"

die() { printf 'download.sh: error: %s\n' "$*" >&2; exit 1; }

[ $# -eq 1 ] || die "usage: local/download.sh downloads"
downloads=$1
if [ -d "$downloads/$name" ]; then
  echo "download: $downloads/$name up to date" >&2
  exit 0
fi
for program in apt-get dpkg sha256sum; do
  command -v "$program" > /dev/null || die "this machine has no $program, and the prompts come as Debian packages;
  $ways_on"
done

mkdir -p "$downloads"
work=$(cd "$downloads" && mktemp -d "$PWD/.download.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
cd "$work"

apt() { apt-get -q -o APT::Sandbox::User=root -o Acquire::Retries=2 -o Acquire::http::Timeout=20 "$@"; }
echo "download: ${packages[*]} (10.6 MB)" >&2
if ! apt download "${packages[@]}" > apt.log 2>&1; then
  echo "download: no package lists on this machine, getting them into a temporary folder" >&2
  mkdir -p state/lists/partial cache/archives/partial
  own=(-o Dir::State="$work/state" -o Dir::State::status=/var/lib/dpkg/status -o Dir::Cache="$work/cache")
  apt "${own[@]}" update > apt.log 2>&1 || true
  apt "${own[@]}" download "${packages[@]}" > apt.log 2>&1 ||
    die "apt-get cannot get ${packages[*]}: $(grep '^E:' apt.log | head -n 3)
  $ways_on"
fi
for package in ./*.deb; do
  dpkg -x "$package" files
done

mkdir result
mv files/usr/share/asterisk/sounds/en_US_f_Allison result/sounds
gzip -dc files/usr/share/doc/$name/core-sounds-en.txt.gz > result/core-sounds-en.txt
cp files/usr/share/doc/$name/copyright result/LICENCE
got=$(sha256sum < result/core-sounds-en.txt)
[ "${got%% *}" = "$transcripts_sha256" ] ||
  die "core-sounds-en.txt has SHA-256 ${got%% *}, wanted $transcripts_sha256: another version of the package $name;
  $ways_on"
got=$(cd result/sounds && find . -type f | sort | xargs sha256sum | sha256sum)
[ "${got%% *}" = "$sounds_sha256" ] ||
  die "the sounds have SHA-256 ${got%% *}, wanted $sounds_sha256: another version of the package $name-g722;
  $ways_on"
cd - > /dev/null
if ! mv -T "$work/result" "$downloads/$name" 2> /dev/null; then
  [ -d "$downloads/$name" ] || die "$downloads/$name cannot be written" # else another run was faster
fi
echo "download: $downloads/$name ready" >&2
