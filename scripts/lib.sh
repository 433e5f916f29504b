# Helpers that the scripts beside this file share; sourced, never run.
# shellcheck shell=bash

ORB_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
BUN_VERSION=1.4.5

say() { printf '==> %s\n' "$*" >&2; }

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# as_root COMMAND...: runs it as root, through sudo when we are not root ourselves.
as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
    return
  fi
  command -v sudo >/dev/null || die "this step needs root, and sudo is not there: $*"
  sudo "$@"
}

package_installed() {
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

apt_install() { as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2; }

# need_packages NAME...: installs the Debian packages that are not there yet. The package lists are
# fetched only when an installation with those at hand fails.
need_packages() {
  local missing=() name
  for name in "$@"; do
    package_installed "$name" || missing+=("$name")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null || die "missing packages (${missing[*]}), and there is no apt-get: build on Debian 12 or 13"
  say "Installing Debian packages: ${missing[*]}"
  apt_install "${missing[@]}" 2>/dev/null && return 0
  say "Updating the package lists"
  as_root apt-get update -qq >&2
  apt_install "${missing[@]}" || die "could not install: ${missing[*]}"
}

# The address of the Debian archive (not its security part) in this machine's apt configuration. The
# label is known only where package lists were fetched; before that the release's name tells.
debian_mirror() {
  local codename found
  found="$(apt-get indextargets --format '$(REPO_URI)' 'Label: Debian' 'Created-By: Packages' | head -n 1)"
  if [ -z "$found" ]; then
    codename="$(. /etc/os-release && printf %s "${VERSION_CODENAME:-stable}")"
    found="$(apt-get update --print-uris | sed -n "s#^'\(.*\)/dists/$codename/InRelease'.*#\1#p" | head -n 1)"
  fi
  [ -n "$found" ] || die "no Debian archive in this machine's apt configuration (CRIU can be taken from a folder of .deb files: scripts/vendor-criu FOLDER)"
  printf '%s\n' "$found"
}

# need_node: node and npm, from Debian where no other is there.
need_node() {
  if ! command -v node >/dev/null; then need_packages nodejs; fi
  if ! command -v npm >/dev/null; then need_packages npm; fi
}

bun_runs() { command -v bun >/dev/null && [ "$(bun --version 2>/dev/null)" = "$BUN_VERSION" ]; }

# need_bun: Bun at exactly $BUN_VERSION, from npm. npm fetches bun's executable in a postinstall script,
# which newer npm runs only when told to; where it was not run we run it ourselves.
need_bun() {
  bun_runs && return 0
  need_node
  say "Installing Bun $BUN_VERSION from npm"
  as_root npm install -g --no-fund --no-audit --loglevel=error "bun@$BUN_VERSION" >&2 || die "npm could not install bun@$BUN_VERSION"
  hash -r
  bun_runs && return 0
  local dir
  dir="$(npm root -g)/bun"
  as_root sh -c 'cd "$1" && node install.js' sh "$dir" >&2 || true
  hash -r
  bun_runs || die "bun@$BUN_VERSION is installed in $dir, but \`bun --version\` does not print $BUN_VERSION (is $(npm prefix -g)/bin on PATH?)"
}

# need_modules: node_modules as bun.lock says.
need_modules() {
  local stamp="$ORB_ROOT/node_modules/.orb-lock-sha256" want
  want="$(cat "$ORB_ROOT/bun.lock" "$ORB_ROOT/package.json" | sha256sum)"
  [ "$(cat "$stamp" 2>/dev/null)" != "$want" ] || return 0
  say "Installing node_modules from bun.lock"
  (cd "$ORB_ROOT" && bun install --frozen-lockfile >&2) || die "bun install failed"
  printf '%s\n' "$want" >"$stamp"
}

# summary_count pass|fail REPORT: how many tests did so, as bun's report says.
summary_count() {
  local number
  number="$(tr -d '\r' <"$2" | sed -nE "s/^ +([0-9]+) $1\$/\1/p" | tail -n 1)"
  printf '%d\n' "${number:-0}"
}

# build_init: build/orb-init, the static pid 1, from its C source when that is newer.
build_init() {
  local source="$ORB_ROOT/src/runtime/init/orb-init.c" target="$ORB_ROOT/build/orb-init"
  [ -f "$source" ] || die "$source is missing"
  if [ -x "$target" ] && [ ! "$source" -nt "$target" ]; then return 0; fi
  need_packages gcc musl-tools linux-libc-dev
  say "Compiling build/orb-init"
  mkdir -p "$ORB_ROOT/build"
  # musl has no headers of the kernel: those of the host's come after its own.
  musl-gcc -static -Os -Wall -Wextra -Werror -s \
    -idirafter /usr/include -idirafter "/usr/include/$(gcc -print-multiarch)" -o "$target.new" "$source"
  mv "$target.new" "$target"
}

# build_console: build/console, the scripts and styles of the pages in src/console for the browser, each in one file.
build_console() {
  local target="$ORB_ROOT/build/console"
  say "Bundling build/console"
  mkdir -p "$target"
  (cd "$ORB_ROOT" && bun build src/console/terminal/main.ts --target=browser --minify \
    --outdir "$target.new" --entry-naming 'terminal.[ext]' >&2) || die "the pages could not be bundled"
  mv "$target.new"/terminal.* "$target"
  rmdir "$target.new"
}

# pack_runtime: build/runtime.tar.zst with all that the executable unpacks at start (CRIU, its libraries, the
# init), and build/runtime.manifest with a line `sha256 mode path` for each file. Same input, same bytes.
pack_runtime() {
  local build="$ORB_ROOT/build" files manifest path
  files="$(cd "$build" && find criu orb-init -type f | LC_ALL=C sort)"
  manifest="$(cd "$build" && while read -r path; do
    printf '%s %s %s\n' "$(sha256sum "$path" | cut -d ' ' -f 1)" "$(stat -c %a "$path")" "$path"
  done <<<"$files")"
  if [ -f "$build/runtime.tar.zst" ] && [ "$(cat "$build/runtime.manifest" 2>/dev/null)" = "$manifest" ]; then return 0; fi
  need_packages tar zstd
  say "Packing CRIU and the init into build/runtime.tar.zst"
  rm -f "$build/runtime.manifest"
  tar -C "$build" --create --format=ustar --mtime=@0 --owner=0 --group=0 --numeric-owner --no-recursion --files-from=- <<<"$files" |
    zstd -19 -q -f -o "$build/runtime.tar.zst"
  printf '%s\n' "$manifest" >"$build/runtime.manifest"
}
