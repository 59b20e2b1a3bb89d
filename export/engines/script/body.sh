# What every emitted script does; the lines before and after it are made for one bundle.

say() { printf '%s\n' "$*" >&2; }

fail() {
  say "error: $*"
  exit 1
}

work='' child=''
clean_up() {
  local name
  if [[ -n $child ]]; then
    kill "$child" 2>/dev/null || true
    wait "$child" || true
  fi
  if [[ -n $work ]]; then
    if [[ -e $work/.old && ! -e $folder ]] && ! mv -T -- "$work/.old" "$folder"; then
      say "the engines that were there before lie in $work/.old"
    else
      rm -rf -- "$work"
    fi
    while IFS= read -r name; do rm -f -- "$parts/$name"; done < <(list_part_data)
  fi
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# older 10.3 10.13: whether the first comes before the second, by major and minor.
older() {
  local -a first second
  IFS=. read -r -a first <<<"$1"
  IFS=. read -r -a second <<<"$2"
  ((first[0] < second[0] || (first[0] == second[0] && first[1] < second[1])))
}

# available KEY...: KiB of /proc/meminfo, added up.
available() {
  local key kib rest wanted total=0
  while read -r key kib rest; do
    for wanted in "$@"; do
      if [[ $key == "$wanted:" ]]; then total=$((total + kib)); fi
    done
  done </proc/meminfo
  printf '%s' "$total"
}

# The program that builds: trtexec, or the Python module where there is none.
find_builder() {
  local place
  builder=${VLMEDGE_BUILDER:-}
  [[ $builder =~ ^(trtexec|python|)$ ]] ||
    fail "VLMEDGE_BUILDER is $builder, needed trtexec or python"
  if [[ $builder != python ]]; then
    for place in "${TRTEXEC:-}" "$(command -v trtexec || true)" /usr/src/tensorrt/bin/trtexec; do
      if [[ -n $place && -x $place ]]; then
        builder=trtexec trtexec=$place
        return
      fi
    done
    [[ -z $builder ]] || fail "no trtexec: set TRTEXEC to it, or sudo apt install libnvinfer-bin"
  fi
  builder=python
  embedded_builder --version >/dev/null 2>&1 || fail "no TensorRT: neither trtexec" \
    "(sudo apt install libnvinfer-bin) nor a python3 that can import tensorrt" \
    "(sudo apt install python3-libnvinfer)"
}

embedded_builder() { python3 -c "$(print_builder)" "$@"; }

# For a process in the background: what builds takes its place, so that a signal reaches it.
become_builder() {
  if [[ $builder == trtexec ]]; then exec "$trtexec" "$@"; fi
  exec python3 -c "$(print_builder)" "$@"
}

# The runtime compares the whole of it with its Python module's, and TensorRT does with the engine's.
# trtexec's banner holds v100300 for 10.3.0, v101303 and b9 for 10.13.3.9, v8601 for 8.6.1.
find_version() {
  local banner number module
  module=$(python3 -c 'import tensorrt; print(tensorrt.__version__)' 2>/dev/null || true)
  if [[ $builder == python ]]; then
    version=$module
  else
    banner=$("$trtexec" --help 2>&1 || true)
    [[ $banner =~ TensorRT\ v([0-9]+)\](\ \[b([0-9]+)\])? ]] ||
      fail "$trtexec --help does not tell a version"
    number=${BASH_REMATCH[1]}
    if ((number < 100000)); then
      version=$((number / 1000)).$((number / 100 % 10)).$((number % 100))
    else
      version=$((number / 10000)).$((number / 100 % 100)).$((number % 100))
    fi
    if [[ $module == "$version" || $module == "$version".* ]]; then
      version=$module
    else
      version=$version${BASH_REMATCH[3]:+.${BASH_REMATCH[3]}}
      [[ -z $module ]] || say "warning: trtexec is of TensorRT $version, python3's tensorrt of" \
        "$module: the runtime will want engines of the one that it loads"
    fi
  fi
  [[ $version =~ ^[0-9]+(\.[0-9]+){1,3}$ ]] || fail "TensorRT says its version is ${version:0:80}"
}

check_version() {
  if older "$version" "$needed"; then
    fail "TensorRT is $version here, the graphs need $needed or newer ($target):" \
      "export the bundle again with the --target of this device"
  elif older "$newest" "$version"; then
    say "note: TensorRT $version is newer than what this script was checked for ($newest)"
  fi
}

# trtexec describes the GPU before it looks for the graph.
find_gpu() {
  local answer least precision instead
  if [[ $builder == trtexec ]]; then
    answer=$("$trtexec" --onnx=none --skipInference 2>&1 || true)
  else
    answer=$(embedded_builder --gpu 2>&1 || true)
  fi
  [[ $answer =~ Compute\ Capability:\ ([0-9]+\.[0-9]) ]] ||
    fail "TensorRT finds no GPU: $(tail -n 3 <<<"$answer")"
  sm=${BASH_REMATCH[1]}
  [[ $answer =~ Selected\ Device:\ ([^$'\n']*) ]] || fail "TensorRT does not name the GPU"
  gpu=${BASH_REMATCH[1]//[^A-Za-z0-9 ._()-]/}
  while IFS='|' read -r least precision instead; do
    if older "$sm" "$least"; then
      fail "this GPU ($gpu) has compute capability $sm, no arithmetic for the bundle's" \
        "$precision (that begins at $least): $instead, and export again"
    fi
  done < <(list_precisions)
}

check_bundle() {
  [[ -f $bundle/manifest.json ]] || fail "$bundle is no bundle: it has no manifest.json"
  say "comparing the hashes of the graphs and their weights"
  check_hashes list_hashes "$bundle" ||
    fail "$bundle is not the bundle that this script was written for, or was damaged on the way"
  check_hashes list_part_hashes "$parts" ||
    fail "$parts is missing or damaged: unpack the tar again"
}

# check_hashes FUNCTION FOLDER: whether the files that the function lists are what they were.
check_hashes() {
  [[ -z $("$1") ]] || (cd -- "$2" && "$1" | sha256sum --check --quiet --strict) >&2
}

check_room() {
  local free memory
  free=$(df -k --output=avail -- "$bundle" | tail -n 1)
  ((free >= disk_kib)) ||
    fail "engines need $((disk_kib / 1024)) MiB of disk, $((free / 1024)) MiB are free in $bundle"
  memory=$(available MemAvailable SwapFree)
  if ((memory < 2 * weights_kib)); then
    say "warning: $((memory / 1024)) MiB of memory and swap are free; building holds the largest" \
      "engine's $((weights_kib / 1024)) MiB of weights at least twice: add swap, close" \
      "programs, or write the script with --split"
  fi
}

open_folder() {
  local key stale
  key=sm${sm/./}-tensorrt$version-$dtype
  folder=$bundle/engines/$key
  mkdir -p -- "$bundle/engines"
  cache=${timing_cache:-$bundle/engines/sm${sm/./}-tensorrt$version.timing}
  [[ -d $(dirname -- "$cache") ]] ||
    fail "the timing cache is to be $cache, but there is no such directory: make it first"
  for stale in "$bundle/engines/.$key.partial-"*; do # of builds that were killed
    if [[ -d $stale ]]; then flock -n "$stale/.lock" rm -rf -- "$stale" || true; fi
  done
  until [[ $work/.lock -ef /proc/self/fd/9 ]]; do # else another build took it for such a one
    work=$(mktemp -d -- "$bundle/engines/.$key.partial-XXXXXX")
    exec 9>"$work/.lock" # tells others that this folder is at work
    flock 9
  done
  chmod 755 -- "$work"
  json=$(print_record)
  json=${json//"@version@"/"$version"}
  json=${json//"@gpu@"/"$gpu"}
  json=${json//"@sm@"/"$sm"}
}

# build_engine NAME GRAPH OPTION...: one engine, its log, its hash and size in the record.
build_engine() {
  local name=$1 graph=$2 began=$SECONDS status=0 pause=0.1 lowest now bytes hash refused
  local log=$work/$1.log engine=$work/$1.engine
  shift 2
  say "$name: building; this takes minutes"
  become_builder --onnx="$graph" --saveEngine="$engine" --timingCacheFile="$cache" "$@" \
    >"$log" 2>&1 </dev/null &
  child=$!
  lowest=$(available MemAvailable)
  while kill -0 "$child" 2>/dev/null; do
    sleep "$pause"
    pause=1
    now=$(available MemAvailable)
    if ((now < lowest)); then lowest=$now; fi
  done
  wait "$child" || status=$?
  child=''
  if ((status != 0)) || [[ ! -s $engine ]]; then
    keep_log "$name"
    fail "$name was not built (exit code $status; 137 and 9: out of memory):" \
      "$(grep -E '\[[EF]\]' "$kept" | tail -n 5 || true)" "(all of it: $kept)"
  fi
  refused=$(grep -F '[W] [TRT]' "$log" | grep -Ei -f <(list_refusals) |
    grep -Eiv -f <(list_harmless) | sort -u || true)
  if [[ -n $refused ]]; then
    keep_log "$name"
    fail "$name was built, but not as the graph says: $refused (all of it: $kept)"
  fi
  bytes=$(stat -c %s -- "$engine")
  read -r hash _ < <(sha256sum <"$engine")
  json=${json//"@bytes:$name@"/"$bytes"}
  json=${json//"@sha256:$name@"/"$hash"}
  say "$name: $((bytes >> 20)) MiB in $((SECONDS - began)) s," \
    "$((lowest / 1024)) MiB of memory were left at the lowest"
}

# Graphs that were made for this script lie in a folder of their own; loaders want the weights beside.
link_data() {
  local name
  while IFS= read -r name; do
    if [[ ! $parts/$name -ef $bundle/$name ]]; then
      ln -f -- "$bundle/$name" "$parts/$name" 2>/dev/null || cp -- "$bundle/$name" "$parts/$name"
    fi
  done < <(list_part_data)
}

keep_log() {
  kept=$bundle/engines/$1.failed.log
  mv -f -- "$work/$1.log" "$kept"
}

# The folder gets its name when everything in it is whole; an older one of that name goes last, or
# back to its place where the new one can't take it (clean_up). The lock is kept up to the end.
close_folder() {
  printf '%s\n' "$json" >"$work/engines.json"
  sync
  if [[ -e $folder ]]; then mv -T -- "$folder" "$work/.old"; fi
  mv -T -- "$work" "$folder" || fail "the engines are built, but can't be moved to $folder"
  rm -rf -- "$folder/.old"
  rm -f -- "$folder/.lock"
  printf '%s\n' "$folder"
}

prepare() {
  local here
  here=$(dirname -- "$0")
  if (($# > 1)) || [[ ${1:-} == -* ]]; then
    say "usage: bash $0 [BUNDLE]"
    exit 2
  fi
  bundle=${1:-$here/$bundle_name}
  parts=$here/$parts_name
  check_bundle
  find_builder
  find_version
  check_version
  find_gpu
  check_room
  open_folder
  link_data
}
