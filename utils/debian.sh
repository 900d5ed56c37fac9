# shellcheck shell=bash disable=SC2154,SC2164 # the caller sets the variables, and set -e
# What recipes share whose corpus comes from Debian's or Ubuntu's packages: apt-get and dpkg, but no root. local/download.sh sets
#
#   name      the folder that it leaves below downloads/
#   packages  an array
#   size      of the packages, to be shown
#   ways_on   what to do where they cannot be had
#
# calls `debian_packages "$@"`, makes ./result of ./files, the packages' content, and calls `debian_result`. Where the machine has
# no package lists, it gets its own into a temporary folder.

die() { printf 'download.sh: error: %s\n' "$*" >&2; exit 1; }

apt() { apt-get -q -o APT::Sandbox::User=root -o Acquire::Retries=2 -o Acquire::http::Timeout=20 "$@"; }

# Adds the packages of a shared library to `packages`, unless the machine has it. The first's name has changed with 64-bit time.
add_library() { # SONAME PACKAGE…
  local release
  [[ $(ldconfig -p 2> /dev/null) != *"$1 "* ]] || return 0
  # shellcheck disable=SC1091
  release=$(. /etc/os-release && echo "$ID ${VERSION_ID%%.*}")
  case $release in
    debian\ 1[0-2] | ubuntu\ 1* | ubuntu\ 2[0-3]) packages+=("${@:2}") ;;
    *) packages+=("$2t64" "${@:3}") ;;
  esac
}

# Leaves the shell in an empty folder that is removed at the end, with the packages' content in ./files; ends if NAME is there.
debian_packages() { # DOWNLOADS
  [ $# -eq 1 ] || die "usage: local/download.sh downloads"
  downloads=$1
  if [ -d "$downloads/$name" ]; then
    echo "download: $downloads/$name up to date" >&2
    exit 0
  fi
  local program package own
  for program in apt-get dpkg sha256sum; do
    command -v "$program" > /dev/null || die "this machine has no $program, and the corpus comes as Debian packages;
  $ways_on"
  done

  mkdir -p "$downloads"
  downloads=$(cd "$downloads" && pwd)
  work=$(mktemp -d "$downloads/.download.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  trap 'exit 130' INT TERM
  cd "$work"
  echo "download: ${packages[*]} ($size)" >&2
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
}

# Packages are built again by each distribution, so what is checked is their content.
check_sum() { # WHAT WANTED < content
  local got
  got=$(sha256sum)
  [ "${got%% *}" = "$2" ] ||
    die "$1: SHA-256 ${got%% *}, wanted $2: another version of ${packages[*]};
  $ways_on"
}

# The list "SHA-256  ./file" of all files in a folder.
sums_of() { (cd "$1" && find . -type f -print0 | sort -z | xargs -0 sha256sum); }

debian_result() {
  cd "$downloads"
  if ! mv -T "$work/result" "$downloads/$name" 2> /dev/null; then
    [ -d "$downloads/$name" ] || die "$downloads/$name cannot be written" # else another run was faster
  fi
  echo "download: $downloads/$name ready" >&2
}
