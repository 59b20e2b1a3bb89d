#!/usr/bin/env bash
# Sourced by the other scripts: a virtual environment with this checkout installed in it.
#
# make_environment FOLDER MODE EXTRAS [GROUP]
#   MODE is "copy" (as a user installs it) or "editable". Quick when nothing has changed: a stamp in
#   the folder remembers what was installed, and is written last, so that an interrupted run is redone.
#   PYTHON names the interpreter to use instead of the first fitting one.

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  echo "environment.sh makes nothing by itself: run demo.sh, quantize.sh or test.sh" >&2
  exit 2
fi

say() { echo "== $*" >&2; }

# A Python that can run exporter and tests: 3.11 or newer.
find_python() {
  local name
  for name in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
    if [ -n "$name" ] && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      "$name" -c 'import sys; print(sys.executable)'
      return
    fi
  done
  return 1
}

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

# Debian ships Python without ensurepip, small images without Python: take both from apt if we may.
install_python() {
  local packages=$*
  if command -v apt-get >/dev/null && { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }; then
    say "installing $packages with apt-get"
    as_root apt-get update -qq >&2 || true
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >&2 && return
  fi
  echo "Python 3.11 or newer with its venv module is needed: sudo apt-get install $packages" >&2
  exit 1
}

hash_sources() {
  {
    cat pyproject.toml constraints.txt
    if [ "$1" = copy ]; then
      find runtime export quant -type f -name '*.py' | LC_ALL=C sort | xargs cat
    fi
  } | sha256sum | cut -d' ' -f1
}

make_environment() {
  local folder=$1 mode=$2 extras=$3 group=${4:-} python stamp
  stamp="${PYTHON:-} $mode $extras $group $(hash_sources "$mode")"
  if [ "$(cat "$folder/installed" 2>/dev/null)" = "$stamp" ]; then return; fi

  rm -f "$folder/installed"
  if [ -n "${PYTHON:-}" ]; then rm -rf "$folder"; fi  # another one made it, maybe
  if ! "$folder/bin/python" -m pip --version >/dev/null 2>&1; then
    python=$(find_python) || { install_python python3 python3-venv; python=$(find_python); } || {
      echo "this system's python3 is older than 3.11: install a newer one and name it, PYTHON=/path/to/python3.11" >&2
      exit 1
    }
    "$python" -c 'import ensurepip, venv' 2>/dev/null || install_python python3-venv "$("$python" -c 'import sys; print("python3.%d-venv" % sys.version_info[1])')"
    say "making $folder with $python"
    rm -rf "$folder"
    "$python" -m venv "$folder"
  fi
  say "installing vlmedge[$extras] into $folder: minutes, once"
  rm -rf build  # setuptools would ship files that are no longer there
  # no bytecode ahead: most of what is installed is never imported
  local pip=("$folder/bin/python" -m pip --disable-pip-version-check)
  "${pip[@]}" install -qq --upgrade 'pip>=25.1'  # the first with --group
  if [ "$mode" = editable ]; then
    "${pip[@]}" install -qq --no-compile -c constraints.txt ${group:+--group "$group"} -e ".[$extras]"
  else
    "${pip[@]}" install -qq --no-compile -c constraints.txt ${group:+--group "$group"} ".[$extras]"
  fi
  rm -rf build
  echo "$stamp" > "$folder/installed"
}
